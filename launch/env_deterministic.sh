# shellcheck shell=bash
# Settings for runs that repeat bit for bit on NVIDIA GPUs, which makes them slower; `source` this
# file before starting Python. A run repeats only with the same number and kind of devices and the
# same versions. TPUs need no such settings.

# shellcheck source=launch/env_gpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/env_gpu.sh"

# XLA uses no kernel that adds in a varying order (atomics) and chooses none by timing; an operation
# that has only such kernels is an error.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
