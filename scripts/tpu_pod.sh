#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice; run it on your own machine.
#
#   scripts/tpu_pod.sh NAME ZONE WORKDIR [main.py's flags ...]
#
# The source tree must lie in ~/unsup3d_jax on every host (docs/clusters.md).
# WORKDIR is a folder that the first host sees: a persistent disk, or NFS.
# Running it again after any failure goes on from the last checkpoint.
set -euo pipefail
(($# >= 3)) || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1 zone=$2 workdir=$3
shift 3

printf -v flags ' %q' "$@"
printf -v workdir '%q' "$workdir"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd ~/unsup3d_jax && . .venv/bin/activate &&
        exec python main.py --distributed --workdir=$workdir$flags"
