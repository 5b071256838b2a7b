# shellcheck shell=bash
# Settings for speed on NVIDIA GPUs; `source` this file before starting Python. They come from the
# documentation of JAX and XLA and were not measured yet.

# If CUDA cannot be used, this is an error, instead of a run on the CPU that nobody asked for.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}

# XLA's level 1 for GPUs: collectives run while the device computes (latency hiding, pipelining).
export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}

# JAX reserves this share of the memory when it starts; its default is 0.75.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

# NCCL writes one line when it fails; set INFO to look for a fault.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
