"""Devices that are asked for and cannot be used: one line with JAX's reason and the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax import config_command
from alexnet_jax.parallel import mesh
from alexnet_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
_SET = " (set JAX_PLATFORMS='' to automatically choose an available backend)"
NO_GPU = "Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices." + _SET
OLD_DRIVER = (
    "Unable to initialize backend 'cuda': INTERNAL: CUDA error: Failed call to cuInit:\n"
    'CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: system has unsupported display driver / cuda driver '
    'combination'
)
FULL = "Unable to initialize backend 'cuda': RESOURCE_EXHAUSTED: failed to allocate 1.2KiB"


@pytest.mark.parametrize('error', [RuntimeError(w) for w in (NO_GPU, OLD_DRIVER, FULL)])
def test_the_whole_reason_is_said(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, 'devices', devices)
    monkeypatch.setattr(mesh, '_installed_platforms', lambda: ['cpu', 'cuda'])
    monkeypatch.setattr(mesh, '_wanted_platforms', lambda: 'cuda')
    with pytest.raises(UserError) as caught:
        mesh.start_devices()
    line = str(caught.value)
    assert '\n' not in line
    assert ' '.join(str(error).split()) in line
    assert 'installed here: cpu, cuda; unset JAX_PLATFORMS' in line


@pytest.mark.parametrize('platform', ['cuda', 'tpu,cpu', 'gpu', 'foo'])
def test_cpu_devices_do_not_go_with_another_platform(monkeypatch, platform):
    monkeypatch.setattr(mesh, '_wanted_platforms', lambda: platform)
    with pytest.raises(UserError, match=f'JAX_PLATFORMS={platform} asks for another device'):
        mesh.select_platform(8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('platform', 'words'),
    [
        ('cuda', 'installed here: cpu; pip install "jax[cuda13]", or unset JAX_PLATFORMS'),
        ('cuda,cpu', 'JAX sees no device of that kind on this machine; installed here: cpu; pip'),
        ('tpu', 'installed here: cpu; pip install "jax[tpu]", or unset JAX_PLATFORMS'),
        ('gpu', 'installed here: cpu; pip install "jax[cuda13]", or unset JAX_PLATFORMS'),
        ('foo', "Backend 'foo' is not in the list of known backends"),
    ],
)
def test_a_platform_that_is_not_there(platform, words):
    """This machine has no accelerator; one that has would need other expectations."""
    done = subprocess.run(
        [sys.executable, '-m', 'alexnet_jax.main', '--config=configs/alexnet.py', '--dry_run'],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert f'error: the devices that JAX_PLATFORMS={platform} asks for cannot be used: ' in (
        done.stderr
    )
    assert words in done.stderr


def _too_much_on_the_device(argv):
    return jnp.zeros((2**44,), jnp.float32)


def _too_much_on_the_host(argv):
    raise MemoryError('Unable to allocate 500. GiB for an array')


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        (
            _too_much_on_the_device,
            'the memory of the devices is too small (RESOURCE_EXHAUSTED: Out of memory allocating '
            f'{2**46} bytes.); lower config.training.batch_size',
        ),
        (_too_much_on_the_host, 'the memory of this machine is too small (Unable to allocate 500.'),
    ],
)
def test_a_lack_of_memory_is_one_line(capsys, command, words):
    with pytest.raises(SystemExit) as end:
        config_command.run(command, ())
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith(f'error: {words}')
    assert err.count('\n') == 1
    assert 'config.training.accumulation_steps' in err


def test_a_full_disk_is_no_lack_of_memory(capsys):
    def command(argv):
        raise jax.errors.JaxRuntimeError(
            'RESOURCE_EXHAUSTED: Error writing "runs/a/d/1": No space left on device'
        )

    with pytest.raises(jax.errors.JaxRuntimeError):
        config_command.run(command, ())
