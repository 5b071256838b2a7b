# shellcheck shell=bash
# For speed on NVIDIA GPUs; `source` it before python. From documentation, not measured here yet.

# An error when CUDA cannot be used, instead of a run on the CPU that nobody asked for.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}

# XLA's level 1 for GPUs: collectives run beside the arithmetic (latency hiding, pipelining).
export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}

# JAX takes this part of the memory at its start; the default is 0.75.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

# NCCL says one line when it fails; INFO is for looking for a fault, and not for every day.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
