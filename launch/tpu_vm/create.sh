#!/bin/bash
# Create a TPU VM and copy the committed state of this checkout to each of its hosts.
#
#   NAME=alexnet ZONE=us-central1-a TYPE=v5litepod-16 launch/tpu_vm/create.sh
#
# STARTUP_SCRIPT names a script that root runs on each host at each boot: it must mount the prepared
# data and a shared disk (Filestore) for the workdir, because each host writes its part of a checkpoint.
set -euo pipefail

: "${NAME:?set it to the name of the TPU VM}" "${ZONE:?set it to the zone of the TPUs}"
: "${TYPE:?set it to the type of the TPUs, for example v5litepod-16}"
VERSION=${VERSION:-tpu-ubuntu2204-base}  # https://cloud.google.com/tpu/docs/runtimes
SPOT=${SPOT:-true}                       # cheaper, but may be taken away at any time: see babysit.sh
STARTUP_SCRIPT=${STARTUP_SCRIPT:-}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}   # the Python of the image is too old for JAX

options=("--zone=$ZONE" "--accelerator-type=$TYPE" "--version=$VERSION")
if [[ $SPOT == true ]]; then options+=(--spot); fi
if [[ -n $STARTUP_SCRIPT ]]; then
  options+=("--metadata-from-file=startup-script=$STARTUP_SCRIPT")
fi
gcloud compute tpus tpu-vm create "$NAME" "${options[@]}"

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$(dirname "${BASH_SOURCE[0]}")/../.." archive --prefix=alexnet_jax/ --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$NAME:alexnet_jax.tar.gz" --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
  set -e
  tar -xzf alexnet_jax.tar.gz
  cd alexnet_jax
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python=$PYTHON_VERSION
  python3 -m uv pip install --quiet --editable='.[tpu]'"
