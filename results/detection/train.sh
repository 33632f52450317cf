#!/bin/sh
# One training of the table in README.md: sh results/detection/train.sh DATA_SET MODEL SEED FOLDER_OF_THE_DATA RUN_DIR
set -e
case $1 in
  bccd) note="BCCD (364 images)"; options="--epochs 40 --box-augment mirror" ;;
  coco20) note="COCO-20 (802 images)"; options="--epochs 30 --box-augment crop" ;;
  *) echo "$1: expected bccd or coco20" >&2; exit 2 ;;
esac
exec python augment.py --recipe voc-small --model "$2" --seed "$3" --data "$4" --run-dir "$5" --data-note "$note" \
  --image-size 160 --batch-size 8 --learning-rate 0.02 --threads 1 --workers 0 $options
