#!/bin/bash
# Retrain a genotype on 2 machines with 8 GPUs each: sbatch examples/slurm.sh, from the checkout of darts_sg.
# A requeued or restarted job goes on from the newest checkpoint in the run folder.
#SBATCH --job-name=darts_sg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

# The first machine of the job is where the processes meet.
meeting_point=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun .venv/bin/torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$meeting_point:29500" \
    augment.py --genotype "${GENOTYPE:-DARTS_V2}" --run-dir "runs/augment-${GENOTYPE:-DARTS_V2}" \
    --batch-size 1536 --learning-rate 0.4 --warmup-epochs 5
