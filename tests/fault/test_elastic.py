"""What one mesh saved, others restore bitwise, and the next batch is the same on all of them."""

import jax
import numpy as np
import pytest
from etils import epath

from alexnet_jax.checkpoint.checkpoints import CheckpointConfig, Checkpoints
from alexnet_jax.training.experiment import Experiment, build
from configs import tiny
from tests.typed_config import typed

pytestmark = pytest.mark.fault
MESHES = [(4, 1), (2, 2), (1, 1), (2, 1), (1, 8)]  # copies of the network, devices of each


def _experiment(data_dir, data: int, model: int) -> Experiment:
    config = tiny.get_config()
    config.data.dir = str(data_dir)
    config.parallel.update(data=data, model=model)
    return build(typed(config))


@pytest.fixture(scope='module')
def experiments(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('data')
    return {mesh: _experiment(data_dir, *mesh) for mesh in MESHES}


def _equal(got, want) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize('saved_on', [(4, 1), (2, 2)])
def test_every_mesh_restores_the_state(experiments, tmp_path, saved_on):
    drawn = np.random.default_rng(0)
    shapes = experiments[saved_on].abstract_state()
    state = jax.tree.map(lambda x: drawn.normal(size=x.shape).astype(x.dtype), shapes)
    placed = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), state, shapes)
    config = CheckpointConfig(save_every_steps=1, keep_latest=2, keep_best=0)
    with Checkpoints(epath.Path(tmp_path), config) as checkpoints:
        checkpoints.save(7, placed, {'config': {'model': {}, 'optim': {}}, 'data': {}})
    for experiment in experiments.values():
        with Checkpoints(epath.Path(tmp_path)) as checkpoints:
            restored = checkpoints.restore(experiment.abstract_state(), lambda meta: None)
        assert restored is not None
        _equal(jax.device_get(restored.state), state)


def test_the_next_batch_is_the_same(experiments):
    """By the pixels and labels of the steps after 7; they are not those of the first steps."""
    batches = {}
    for mesh, experiment in experiments.items():
        reader = experiment.train_batches(range(7, 9))
        batches[mesh] = jax.device_get(list(reader))
    for batch in batches.values():
        _equal(batch, batches[1, 1])
    first = jax.device_get(next(experiments[1, 1].train_batches(range(0, 1))))
    assert not np.array_equal(first.images, batches[1, 1][0].images)
