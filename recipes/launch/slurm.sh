#!/usr/bin/env bash
# Slurm: a torchrun on every node of the job, which starts a process for each of its GPUs.
#   sbatch slurm.sh qwen3-0.6b
#   sbatch --nodes=4 --export=ALL,OUTPUT_DIR=/shared/runs/qwen slurm.sh qwen3-0.6b --save_steps 200
# Every start continues from the latest checkpoint in OUTPUT_DIR, so a job that is preempted, requeued or submitted
# again goes on; what was trained after that checkpoint is trained again.
#SBATCH --job-name=orthoopt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

# source /shared/venv/bin/activate

output="${OUTPUT_DIR:-$PWD/runs/${SLURM_JOB_NAME:-orthoopt}}"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node must not share a port

# Python else looks for modules in the folder this is started from first, whose names may be those of libraries.
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Slurm sends USR1 two minutes before the time is up. The shell must wait in the background to hear it.
again() {
  trap '' USR1
  echo "out of time: ending the step and queueing job $SLURM_JOB_ID again"
  kill -TERM "$step" 2>/dev/null || true
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

srun --kill-on-bad-exit=1 torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${PROCESSES:-auto}" \
  --rdzv_backend=c10d --rdzv_endpoint="${hosts[0]}:$port" --rdzv_id="$SLURM_JOB_ID" \
  -m "orthoopt.recipes.${RECIPE:-pretrain}" "$@" --output_dir "$output" --resume_from_checkpoint auto &
step=$!
wait "$step"
