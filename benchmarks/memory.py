"""Peak memory of a process that runs two first-order steps: python -m benchmarks.memory WHICH BATCH THREADS.

WHICH is textbook, own or recompute.
"""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.subjects import Shape, native_kernels, own_step, textbook_step
from darts_sg.engine.environment import keep_freed_memory
from darts_sg.engine.memory import peak_memory


def peak_mib(which: str, batch: int, threads: int) -> float:
    """Peak resident memory in MiB of a separate process, including PyTorch itself."""
    command = [sys.executable, "-m", "benchmarks.memory", which, str(batch), str(threads)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(which: str, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    shape = Shape(batch=batch)
    if which == "textbook":
        step = textbook_step(shape)
    else:
        keep_freed_memory()  # as in a search
        step = own_step(shape, native=native_kernels() is None, recompute=which == "recompute")
    for _ in range(2):
        step()
    print(peak_memory(torch.device("cpu")) / 2**20)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
