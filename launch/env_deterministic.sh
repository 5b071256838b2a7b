# shellcheck shell=bash
# For runs that repeat bit for bit on NVIDIA GPUs; `source` it before python. Slower. A run repeats
# only with the same number and kind of devices and the same versions. TPUs need none of this.

# shellcheck source=launch/env_gpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/env_gpu.sh"

# No kernel that adds in an order of its own (atomics), none chosen by timing; what has no such
# kernel is an error.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
