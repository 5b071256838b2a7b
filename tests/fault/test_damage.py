"""A hundred flipped bits over all files of a checkpoint: none is silent."""

import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from alexnet_jax.checkpoint.checkpoints import CheckpointConfig, Checkpoints
from alexnet_jax.checkpoint.manifest import find_damage
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed

pytestmark = [pytest.mark.fault, pytest.mark.slow]
FLIPS = 100


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run with the steps 1 and 2 of the tiny network, the experiment, and the state of step 1."""
    workdir = tmp_path_factory.mktemp('saved')
    experiment = build(typed(tiny.get_config()), with_data=False)
    config = CheckpointConfig(save_every_steps=1, keep_latest=3, keep_best=0)
    drawn = np.random.default_rng(0)
    shapes = jax.tree.map(lambda leaf: leaf.update(sharding=None), experiment.abstract_state())
    first = jax.tree.map(lambda x: drawn.normal(size=x.shape).astype(x.dtype), shapes)
    second = jax.tree.map(lambda leaf: leaf + np.ones_like(leaf), first)
    meta = {'config': experiment.config.to_dict(), 'data': {}}
    with Checkpoints(epath.Path(workdir), config) as checkpoints:
        checkpoints.save(1, first, meta)
        checkpoints.save(2, second, meta, {'eval/top1_error': 0.5})
    return workdir, experiment, first


def _flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.timeout(600)
def test_each_of_a_hundred_flipped_bits_is_seen(saved, tmp_path):
    """Every file at least once; for some the run is restored, bitwise as of the step before."""
    workdir, experiment, first = saved
    step = workdir / 'checkpoints' / '2'
    files = sorted(path.relative_to(step) for path in step.rglob('*') if path.is_file())
    files = [file for file in files if (step / file).stat().st_size]
    assert len(files) > 10
    drawn = random.Random(0)
    chosen = files + drawn.choices(files, k=FLIPS - len(files))
    silent = []
    for number, file in enumerate(chosen):
        copy = tmp_path / 'run'
        shutil.copytree(workdir, copy)
        damaged = copy / 'checkpoints' / '2'
        bit = drawn.randrange(8 * (step / file).stat().st_size)
        _flip(damaged / file, bit)
        words = find_damage(epath.Path(damaged))
        if words is None or (str(file) not in words and file.name != 'manifest.json'):
            silent.append((str(file), bit, words))
        if number % 12 == 0:
            with Checkpoints(epath.Path(copy)) as checkpoints:
                restored = checkpoints.restore(experiment.abstract_state(), lambda meta: None)
            assert restored is not None
            assert restored.step == 1, (file, bit)
            got = jax.tree.leaves(jax.device_get(restored.state))
            for a, b in zip(got, jax.tree.leaves(first), strict=True):
                np.testing.assert_array_equal(a, b, strict=True)
        shutil.rmtree(copy)
    assert not silent
