#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, one process a GPU:
#
#   sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh --config=configs/celeba.py
#
# SLURM sends SIGTERM 60 s before the time limit: the run saves its step, and the
# job goes back to the queue until training is finished.
#SBATCH --job-name=unsup3d
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
[[ ! -e .venv/bin/activate ]] || . .venv/bin/activate

# Unset: JAX warns, and gRPC may hang, where a proxy stands between the nodes.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

# --kill-on-bad-exit: when one process dies the others are waiting for it.
# A run that a signal has stopped says so in a line that starts with this word.
status=0
srun --kill-on-bad-exit=1 python main.py --distributed "$@" 2>&1 |
    tee "unsup3d-${SLURM_JOB_ID}.last" || status=$?
grep -q '^stopped' "unsup3d-${SLURM_JOB_ID}.last" || exit "$status"
scontrol requeue "$SLURM_JOB_ID"
