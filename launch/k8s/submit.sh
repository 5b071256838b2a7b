#!/bin/bash
# Fill in jobset_gpu.yaml or jobset_tpu.yaml and submit it to the cluster.
#
#   NAME=run1 IMAGE=registry/alexnet_jax:1 NODES=2 DEVICES=8 DATA_CLAIM=imagenet WORK_CLAIM=runs \
#       launch/k8s/submit.sh gpu --config=configs/alexnet.py [--config.section.field=value ...]
#
# What follows `gpu` or `tpu` goes to alexnet_jax.main; the workdir and the data directory are set
# here. KUBECTL=cat shows what would be submitted. docs/clusters.md says what the cluster needs.
set -euo pipefail

# These must be set.
: "${NAME:?set it to the name of the run and its workdir: lower-case letters, digits and hyphens}"
: "${IMAGE:?set it to the image that launch/Dockerfile makes, in a registry that the cluster reads}"
: "${DATA_CLAIM:?set it to the PersistentVolumeClaim with the prepared data sets}"
: "${WORK_CLAIM:?set it to the PersistentVolumeClaim for the workdirs, ReadWriteMany}"
# Sizes.
NODES=${NODES:-1}               # one process runs on each; for TPUs, the hosts of one slice
DEVICES=${DEVICES:-8}           # GPUs or TPU chips of each node
CPUS=${CPUS:-32}                # for each node; reading data needs them
MEMORY=${MEMORY:-128Gi}         # for each node
# For TPUs only: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
SLICES=${SLICES:-1}
TPU_TYPE=${TPU_TYPE:-tpu-v6e-slice}
TPU_TOPOLOGY=${TPU_TOPOLOGY:-2x4}
# The cluster.
NAMESPACE=${NAMESPACE:-default}
QUEUE=${QUEUE:-alexnet}         # a LocalQueue of Kueue; without Kueue the label means nothing
MAX_RESTARTS=${MAX_RESTARTS:-10}
GRACE_S=${GRACE_S:-300}         # from SIGTERM to SIGKILL: a step and a save must fit into it
KUBECTL=${KUBECTL:-kubectl create --filename=-}  # `create` refuses a name that is in use

case ${1:-} in
  gpu | tpu) template=$(<"$(dirname "${BASH_SOURCE[0]}")/jobset_$1.yaml") ;;
  *) echo "error: the first argument must be gpu or tpu" >&2; exit 2 ;;
esac
shift

# Each argument becomes one YAML string: within single quotes only the quote itself has a meaning.
ARGUMENTS=''
for argument in "$@"; do ARGUMENTS+="'${argument//\'/\'\'}', "; done

for name in NAME IMAGE DATA_CLAIM WORK_CLAIM NODES DEVICES CPUS MEMORY SLICES TPU_TYPE TPU_TOPOLOGY \
  NAMESPACE QUEUE MAX_RESTARTS GRACE_S ARGUMENTS; do
  template=${template//"\${$name}"/"${!name}"}
done
$KUBECTL <<<"$template"
