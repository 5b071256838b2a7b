"""A process on the CPU keeps its memory: pages cleared a step, and who decides otherwise."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')

PAGES = 64 * 2**20 // os.sysconf('SC_PAGE_SIZE')  # of the array below
# A step with a temporary array of 64 MB; prints the pages that the system clears for one.
SCRIPT = """
import resource
import jax
import jax.numpy as jnp
from alexnet_jax import heap
kept = heap.keep() if {keep} else False
step = jax.jit(lambda x: jnp.outer(x, x) @ jnp.outer(x, x[:8]))
x = jnp.arange(4096.0)
cleared = []
for _ in range(25):  # the heap grows to its size in the first ones
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    cleared.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1])
before = resident()
heap.trim()
print(kept, sorted(cleared[-9:])[4], before - resident())
"""


def run(keep, **environment):
    """Return whether memory is kept, pages cleared in the median step, pages that `trim` frees."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(('MALLOC_', 'GLIBC_'))}
    answer = subprocess.run(
        [sys.executable, '-c', SCRIPT.format(keep=keep)],
        env=clean | {'JAX_PLATFORMS': 'cpu'} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, cleared, given_back = answer.stdout.split()
    return kept == 'True', int(cleared), int(given_back)


def test_a_step_takes_the_memory_of_the_step_before_and_trim_gives_it_back():
    kept, cleared, given_back = run(keep=True)
    assert kept
    assert cleared < PAGES / 100
    assert given_back > PAGES


def test_without_it_a_step_has_all_its_memory_cleared_and_trim_does_nothing():
    kept, cleared, given_back = run(keep=False)
    assert not kept
    assert cleared > PAGES
    assert given_back < PAGES / 4  # others' pages


@pytest.mark.parametrize(
    'environment',
    [{'MALLOC_TOP_PAD_': '131072'}, {'GLIBC_TUNABLES': 'glibc.malloc.tcache_count=7'}],
)
def test_settings_of_the_environment_win(environment):
    kept, cleared, _ = run(keep=True, **environment)
    assert not kept
    assert cleared > PAGES


def test_where_jax_may_take_an_accelerator_nothing_is_set():
    script = 'from alexnet_jax import heap; print(heap.keep())'
    answer = subprocess.run(
        [sys.executable, '-c', script],
        env=os.environ | {'JAX_PLATFORMS': 'cuda,cpu'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == 'False\n'
