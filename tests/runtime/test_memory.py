"""A process on the CPU keeps its memory: pages cleared a step, and who decides otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

from alexnet_jax.runtime import memory

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = 64 * 2**20 // os.sysconf('SC_PAGE_SIZE')  # of the array below
# A step with a temporary array of 64 MB; prints the pages that the system clears for one.
SCRIPT = """
import resource
import jax
import jax.numpy as jnp
from alexnet_jax.runtime import memory
kept = memory.keep() if {keep} else False
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
memory.trim()
print(kept, sorted(cleared[-9:])[4], before - resident())
"""


def in_a_process(script, **environment):
    """Return what a script prints in a process whose environment says nothing of malloc."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(('MALLOC_', 'GLIBC_', 'JAX_'))}
    answer = subprocess.run(
        [sys.executable, '-c', script],
        env=clean | {'PYTHONPATH': str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout


def run(keep, **environment):
    """Return whether memory is kept, pages cleared in the median step, pages that `trim` frees."""
    answer = in_a_process(SCRIPT.format(keep=keep), JAX_PLATFORMS='cpu', **environment)
    kept, cleared, given_back = answer.split()
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


KEEP = 'from alexnet_jax.runtime import memory; print(memory.keep())'


@pytest.mark.parametrize(
    ('platforms', 'kept'), [('cpu', True), ('cuda,cpu', False), ('tpu', False), ('', True)]
)
def test_it_is_for_the_cpu_alone(platforms, kept):
    assert in_a_process(KEEP, JAX_PLATFORMS=platforms) == f'{kept}\n'


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, '_kept', False)
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: object())  # has no mallopt
    assert not memory.keep()
    memory.trim()


@pytest.mark.parametrize('package', ['libtpu', 'jax_plugins/xla_cuda13'])
def test_an_installed_accelerator_is_noticed(tmp_path, package):
    (tmp_path / package).mkdir(parents=True)
    (tmp_path / package / '__init__.py').touch()
    assert in_a_process(KEEP, PYTHONPATH=f'{tmp_path}:{ROOT}') == 'False\n'


def test_a_plugin_that_names_itself_is_noticed(tmp_path):
    metadata = tmp_path / 'some_device-1.0.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text('Name: some_device\nVersion: 1.0\n')
    (metadata / 'entry_points.txt').write_text('[jax_plugins]\nsome = some_device\n')
    assert in_a_process(KEEP, PYTHONPATH=f'{tmp_path}:{ROOT}') == 'False\n'


def test_a_command_keeps_its_memory():
    script = """
from alexnet_jax import config_command
from alexnet_jax.command_line import Parser
from alexnet_jax.runtime import memory
parser = Parser()
config_command.add_options(parser)
config_command.parse(parser, ['--config=configs/tiny.py'])
print(memory._kept)
"""
    assert in_a_process(script, JAX_PLATFORMS='cpu') == 'True\n'
