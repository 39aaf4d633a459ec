#!/usr/bin/env bash
# One machine, a process for each of its GPUs:
#   bash torchrun.sh qwen3-0.6b --output_dir runs/qwen
#   RECIPE=finetune bash torchrun.sh runs/qwen --data chats.jsonl
# PROCESSES is their number; auto takes all GPUs, or else all CPU cores.
set -euo pipefail

# Python else looks for modules in the folder this is started from first, whose names may be those of libraries.
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec torchrun --standalone --nproc_per_node="${PROCESSES:-auto}" -m "orthoopt.recipes.${RECIPE:-pretrain}" "$@"
