#!/usr/bin/env bash
# The original system's two settings, BitFit and LoRA r=2, with MiniLM: RTE by both protocols, SST-2 whole for two epochs.
# Run again after a cut, it goes on where it stopped. Usage: bench/original.sh GLUE_FOLDER RUNS_FOLDER [RUN ...]
# where RUN is rte-holdout, rte-paper or sst2-holdout; without one, all three. FLEETUNE names the command, fleetune if unset.
set -euo pipefail
glue=$1 runs=$2
shift 2
[ $# -gt 0 ] || set -- rte-holdout rte-paper sst2-holdout
for name in "$@"; do
    task=${name%-*} epochs=25
    [ "$task" = sst2 ] && epochs=2
    "${FLEETUNE:-fleetune}" train --task "$task" --data-dir "$glue" --protocol "${name#*-}" --num-train-epochs "$epochs" \
        --methods bitfit,lora --set r=2 --set lora_alpha=8 --set lora_dropout=0.01 --learning-rate 5e-4 \
        --per-device-train-batch-size 16 --gradient-accumulation-steps 4 --warmup-steps 100 --weight-decay 0.01 \
        --output-dir "$runs/$name"
done
