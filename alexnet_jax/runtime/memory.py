"""Memory that a process keeps: what a training step on the CPU frees, the next one takes again."""

import ctypes
import importlib.metadata
import importlib.util
import os

import jax

# Of mallopt(3), glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_kept = False


def keep() -> bool:
    """Have malloc keep what it is given back, where JAX will use the CPU; say whether it does.

    A step allocates its temporary arrays anew, 1.6 GB for the full network at a batch of 128, and
    glibc returns them to the system, which clears 400,000 pages for the next step. Kept, they cost
    memory: holes that are too small for the next step stay with the process until `trim`. Call it
    before any use of a device: threads that have begun keep their own arenas, which return memory.

    It does nothing with an accelerator, with another C library, and where the environment has its
    own settings of malloc (GLIBC_TUNABLES, MALLOC_...).
    """
    global _kept
    own = any(name == 'GLIBC_TUNABLES' or name.startswith('MALLOC_') for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt and not own and _cpu_only():
        settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
        _kept = all([mallopt(name, value) == 1 for name, value in settings.items()])
    return _kept


def trim() -> None:
    """Return to the system what is free, or holes would add up in a long run; costs half a second.

    It does nothing where `keep` did nothing.
    """
    if _kept:
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_only() -> bool:
    """Say whether JAX will find no accelerator, without starting it."""
    if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return platforms == 'cpu'
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    return not plugins and not any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
