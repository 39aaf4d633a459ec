#!/usr/bin/env bash
# Several machines: start this on each of them, with the same words everywhere. Here on two, which meet at node0:
#   HEAD=node0:29500 NODES=2 bash torchrun_nodes.sh qwen3-0.6b --output_dir /shared/runs/qwen
# HEAD is the name of one of the machines and a free port of it; the output folder is one that all of them see.
set -euo pipefail
: "${HEAD:?is not set: the name of one machine and a free port of it, such as node0:29500}"
: "${NODES:?is not set: the number of machines}"

# Python else looks for modules in the folder this is started from first, whose names may be those of libraries.
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec torchrun --nnodes="$NODES" --nproc_per_node="${PROCESSES:-auto}" \
  --rdzv_backend=c10d --rdzv_endpoint="$HEAD" --rdzv_id="${RUN_ID:-orthoopt}" \
  -m "orthoopt.recipes.${RECIPE:-pretrain}" "$@"
