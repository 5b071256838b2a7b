"""The same loss, gradients and steps on every mesh; collectives only where the paper says."""

import collections
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alexnet_jax import paper
from alexnet_jax.config import UserError, make_plan
from alexnet_jax.data.augment import Augment
from alexnet_jax.data.pipeline import Batch
from alexnet_jax.data.stats import Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.training import step as step_lib
from alexnet_jax.training.experiment import BATCH_SPECS
from alexnet_jax.training.optim import make_optimizer
from configs import tiny
from tests import reference

BATCH, CROP = 16, (7, 7, 1)


def _host_batch() -> Batch:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)
    labels = random.integers(0, 10, BATCH).astype(np.int32)
    return Batch(images, labels, np.ones(BATCH, bool))


def _statistics(dtype: str) -> Statistics:
    mean = np.random.default_rng(1).uniform(50, 200, (8, 8, 1)).astype(dtype)
    return Statistics(mean, np.ones((1, 1), dtype), np.full(1, 40, dtype))


@dataclasses.dataclass
class Setup:
    """A tiny network on one mesh, the same numbers whatever the mesh."""

    towers: int
    data: int
    model: int
    dtype: str = 'float64'
    conv6: int = 0
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        config = tiny.get_config()
        config.model.update(towers=self.towers, dtype=self.dtype)
        config.model.conv6.update(features=self.conv6, init_std=0.05)
        self.mesh = mesh_lib.make_mesh(
            **reference.parallel(data=self.data, model=self.model), towers=self.towers
        )
        self.network = AlexNet(
            **config.model.to_dict(), collectives=mesh_lib.collectives(self.mesh)
        )
        plan = make_plan(**config.training, num_examples=1437)
        self.optimizer = make_optimizer(**config.optim, first_step=plan.first_step)
        self.augment = Augment(**config.augment)
        self.specs = step_lib.state_specs(self.network, self.optimizer, CROP)
        state = _initial_state(self.network, self.optimizer, self.dtype)
        self.state = jax.device_put(state, mesh_lib.shardings(self.mesh, self.specs))
        self.batch = jax.device_put(_host_batch(), mesh_lib.shardings(self.mesh, BATCH_SPECS))
        self.statistics = _statistics(self.dtype)

    def train_step(self) -> Any:
        step = functools.partial(
            step_lib.train_step,
            model=self.network,
            optimizer=self.optimizer,
            augment=self.augment,
            param_specs=self.specs.params,
            seed=3,
            accumulation_steps=self.accumulation_steps,
        )
        return mesh_lib.per_device(
            step,
            self.mesh,
            (self.specs, BATCH_SPECS, P()),
            (self.specs, P()),
        )

    def gradients(self) -> tuple[float, Any]:
        """Loss and gradients, reduced, of one batch with dropout on and no other part of a step."""
        comm = self.network.collectives

        def body(params, batch):
            images = comm.gather_images(batch.images)[:, :7, :7].astype(self.dtype) - 100.0
            rows = step_lib.copy_rows(self.network, batch.labels.shape[0])
            (loss, _), gradients = step_lib.loss_and_gradients(
                params, images, batch.labels, rows, jax.random.key(5), model=self.network
            )
            reduced = comm.sum_gradients(gradients, self.specs.params)
            return comm.mean_over_data(loss), reduced

        run = mesh_lib.per_device(
            body, self.mesh, (self.specs.params, BATCH_SPECS), (P(), self.specs.params)
        )
        loss, gradients = run(self.state.params, self.batch)
        return loss.item(), jax.device_get(gradients)


@functools.cache
def _weights(towers: int, conv6: int) -> Any:
    """Weights by NumPy, larger than the initial ones, so that every path carries signal."""
    config = tiny.get_config()
    config.model.towers = towers
    config.model.conv6.update(features=conv6)
    shapes = jax.eval_shape(
        lambda: step_lib.init_parameters(AlexNet(**config.model.to_dict()), CROP, jax.random.key(0))
    )
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: random.normal(0.02, 0.2, leaf.shape), shapes)


def _initial_state(network: AlexNet, optimizer: Any, dtype: str) -> step_lib.TrainState:
    params = jax.tree.map(
        lambda w: jnp.asarray(w, dtype), _weights(network.towers, network.conv6['features'])
    )
    return step_lib.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.rule.init(params),
        plateau=optimizer.init_plateau(),
    )


def _assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Relative error of each leaf: max|a - b| / max|b|."""
    flat, _ = jax.tree_util.tree_flatten_with_path(want)
    for (path, b), a in zip(flat, jax.tree.leaves(got), strict=True):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= tolerance, f'{jax.tree_util.keystr(path)}: relative error {error:.1e}'


@functools.cache
def _single_device(towers: int, conv6: int, dtype: str) -> tuple[float, Any]:
    return Setup(towers, 1, 1, dtype, conv6).gradients()


@pytest.mark.parametrize(
    ('towers', 'data', 'model', 'conv6'),
    [(2, 2, 1, 0), (2, 1, 2, 0), (2, 2, 2, 0), (2, 1, 4, 8), (1, 2, 1, 0), (1, 1, 2, 0)],
)
def test_loss_and_gradients_equal_one_device(x64, towers, data, model, conv6):
    loss, gradients = _single_device(towers, conv6, 'float64')
    got_loss, got = Setup(towers, data, model, conv6=conv6).gradients()
    assert got_loss == pytest.approx(loss, rel=1e-9)
    _assert_close(got, gradients, 1e-9)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_loss_and_gradients_in_float32():
    loss, gradients = _single_device(2, 0, 'float32')
    got_loss, got = Setup(2, 2, 2, 'float32').gradients()
    assert got_loss == pytest.approx(loss, rel=1e-5)
    _assert_close(got, gradients, 1e-5)


def _three_steps(setup: Setup) -> tuple[list[float], Any]:
    step, state, losses = setup.train_step(), setup.state, []
    for _ in range(3):
        state, metrics = step(state, setup.batch, setup.statistics)
        losses.append(metrics['train/loss'].item())
    return losses, jax.device_get((state.params, state.opt_state))


def test_training_steps_with_augmentation_and_accumulation_equal_one_device(x64):
    """Crop, colour, dropout, LRN, decay and momentum; parts of the batch change nothing."""
    losses, state = _three_steps(Setup(2, 1, 1))
    assert len(set(losses)) == 3
    for setup in (Setup(2, 2, 2), Setup(2, 1, 4, accumulation_steps=2)):
        got_losses, got = _three_steps(setup)
        np.testing.assert_allclose(got_losses, losses, rtol=1e-9)
        _assert_close(got, state, 1e-9)


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from _equations(inner)


def _collectives(setup: Setup) -> collections.Counter:
    """Count (layer, primitive, axes, backward or forward) in the traced training step."""
    traced = jax.make_jaxpr(setup.train_step())(setup.state, setup.batch, setup.statistics)
    counts: collections.Counter = collections.Counter()
    for equation in _equations(traced.jaxpr):
        axes = equation.params.get('axes') or equation.params.get('axis_name')
        if equation.primitive.name in ('axis_index', 'pvary') or not axes or axes == ():
            continue
        axes = axes if isinstance(axes, tuple) else (axes,)
        axes = tuple(axis for axis in axes if isinstance(axis, str))
        if not axes:
            continue
        stack = str(equation.source_info.name_stack)
        layer = re.search(r'(conv|fc)\d', stack)
        direction = 'backward' if 'transpose' in stack else 'forward'
        name = layer.group() if layer else '-'
        counts[name, equation.primitive.name, axes, direction] += len(equation.invars)
    return counts


def test_towers_meet_only_where_the_paper_says():
    counts = _collectives(Setup(2, 2, 2, 'float32'))
    activations = {
        key: count for key, count in counts.items() if key[0] != '-' and 'tower' in key[2]
    }
    assert {key[0] for key in activations} == set(paper.EXCHANGES)
    assert activations == {
        ('conv3', 'all_gather', ('tower',), 'forward'): 1,
        ('fc6', 'all_gather', ('tower',), 'forward'): 1,
        ('fc7', 'all_gather', ('tower',), 'forward'): 1,
        ('fc8', 'psum', ('tower', 'shard'), 'forward'): 1,
        ('conv3', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc6', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc7', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc8', 'psum', ('tower', 'shard'), 'backward'): 1,
    }
    others = {key: count for key, count in counts.items() if key not in activations}
    leaves = 16  # kernels and biases of 8 layers
    assert others == {
        ('-', 'all_gather', ('tower',), 'forward'): 1,  # the uint8 images
        (
            '-',
            'psum',
            ('tower',),
            'forward',
        ): 1,  # the gradient of fc8's bias, which all devices have
        ('-', 'psum', ('data',), 'forward'): leaves + 2,  # gradients, loss and error
    }


def test_one_tower_or_one_device_does_not_communicate():
    assert not _collectives(Setup(2, 1, 1, 'float32'))
    assert {key[2] for key in _collectives(Setup(2, 2, 1, 'float32'))} == {('data',)}


def test_compiled_step_has_no_other_collective():
    """XLA adds none of its own: what a grouped convolution under automatic partitioning does."""
    setup = Setup(2, 1, 2, 'float32')
    text = setup.train_step().lower(setup.state, setup.batch, setup.statistics).compile().as_text()
    kinds = re.findall(
        r' = (?:\S+|\(.*?\)) (all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute)'
        r'\(',
        text,
    )
    counts = collections.Counter(kinds)
    assert counts['all-gather'] == 4  # images, conv3, fc6, fc7
    assert counts['all-to-all'] == counts['collective-permute'] == 0
    # fc8 forward and backward, the gradient of its bias, and on the CPU each reduce-scatter may be
    # written as an all-reduce of the same operand.
    assert counts['reduce-scatter'] + counts['all-reduce'] <= 6
    for line in text.splitlines():
        if re.search(r'(all-gather|reduce-scatter|all-reduce)\(', line):
            assert not re.search(r'/conv[1245]/', line), line


@pytest.mark.parametrize(
    ('sizes', 'words'),
    [
        ({'data': 9, 'model': 1}, 'needs 9 devices and there are 8'),
        ({'data': 4, 'model': 4}, 'needs 16 devices'),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(sizes, words):
    with pytest.raises(UserError, match=words) as error:
        mesh_lib.make_mesh(**reference.parallel(**sizes), towers=2)
    assert '\n' not in str(error.value)


def test_mesh_takes_all_devices_by_default():
    shape = mesh_lib.make_mesh(**reference.parallel(data=-1, model=2), towers=2).shape
    assert dict(shape) == {'data': 4, 'tower': 2, 'shard': 1}
    shape = mesh_lib.make_mesh(**reference.parallel(data=-1, model=4), towers=1).shape
    assert dict(shape) == {'data': 2, 'tower': 1, 'shard': 4}


def test_batch_must_divide():
    mesh = mesh_lib.make_mesh(**reference.parallel(data=2, model=2), towers=2)
    mesh_lib.check_batch(mesh, 16, 2, 'training.batch_size')
    with pytest.raises(UserError, match=r'training\.batch_size = 12 must divide by 8'):
        mesh_lib.check_batch(mesh, 12, 2, 'training.batch_size')
