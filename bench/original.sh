#!/usr/bin/env bash
# The original system's two settings, BitFit and LoRA r=2, with MiniLM: RTE by both protocols, SST-2 whole for two epochs.
# Run again after a cut, it goes on where it stopped. Usage: bench/original.sh GLUE_FOLDER RUNS_FOLDER [fleetune]
set -euo pipefail
glue=$1 runs=$2 fleetune=${3:-fleetune}
original=(--methods bitfit,lora --set r=2 --set lora_alpha=8 --set lora_dropout=0.01 --learning-rate 5e-4
    --per-device-train-batch-size 16 --gradient-accumulation-steps 4 --warmup-steps 100 --weight-decay 0.01)
"$fleetune" train --task rte --data-dir "$glue" "${original[@]}" --num-train-epochs 25 --protocol holdout --output-dir "$runs/rte-holdout"
"$fleetune" train --task rte --data-dir "$glue" "${original[@]}" --num-train-epochs 25 --protocol paper --output-dir "$runs/rte-paper"
"$fleetune" train --task sst2 --data-dir "$glue" "${original[@]}" --num-train-epochs 2 --protocol holdout --output-dir "$runs/sst2-holdout"
