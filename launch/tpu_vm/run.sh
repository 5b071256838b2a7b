#!/bin/bash
# Start or stop a run on all hosts of a TPU VM. The run goes on when this terminal is closed.
#
#   NAME=alexnet ZONE=us-central1-a launch/tpu_vm/run.sh start --config=configs/alexnet.py \
#       --workdir=/mnt/runs/one --data_dir=/mnt/data
#   NAME=alexnet ZONE=us-central1-a launch/tpu_vm/run.sh state|stop
#
# It always runs on all hosts, because one alone would wait for the others (jax#22436). `stop` saves
# first.
set -euo pipefail

: "${NAME:?set it to the name of the TPU VM}" "${ZONE:?set it to the zone of the TPU VM}"
(($#)) || { echo "error: the first argument must be start, state or stop" >&2; exit 2; }

# Each argument is quoted once, for the host's shell, which reads the command that ssh passes on.
printf -v command ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
  --command="alexnet_jax/launch/tpu_vm/host.sh$command"
