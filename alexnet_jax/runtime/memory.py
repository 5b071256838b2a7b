"""Keep freed memory in the process, so that the next training step on the CPU can reuse it."""

import ctypes
import importlib.metadata
import importlib.util
import os

import jax

# The parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_kept = False


def keep() -> bool:
    """Make malloc keep freed memory if JAX will use the CPU; return whether it does.

    Each step allocates its temporary arrays again, 1.6 GB for the full network with a batch of 128.
    By default glibc returns them to the system, which then clears 400,000 pages for the next step.
    Keeping them costs memory: fragments that are too small for the next step stay in the process
    until `trim`. Call this before any use of a device, because threads that have already started
    keep arenas of their own, which return memory.

    This does nothing with an accelerator, with another C library, or if the environment configures
    malloc itself (GLIBC_TUNABLES, MALLOC_...).
    """
    global _kept
    own = any(name == 'GLIBC_TUNABLES' or name.startswith('MALLOC_') for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt and not own and _cpu_only():
        settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
        _kept = all([mallopt(name, value) == 1 for name, value in settings.items()])
    return _kept


def trim() -> None:
    """Return free memory to the system, before fragments add up; this takes half a second.

    It does nothing if `keep` did nothing.
    """
    if _kept:
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_only() -> bool:
    """Say, without initialising JAX, whether it will find no accelerator."""
    if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return platforms == 'cpu'
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    return not plugins and not any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
