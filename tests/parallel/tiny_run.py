"""A tiny network on any mesh, the same numbers on all of them: what the tests of meshes run."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import init_parameters, init_statistics, join_network
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.training import step as step_lib
from alexnet_jax.training.experiment import BATCH_SPECS
from alexnet_jax.training.optim import make_optimizer
from alexnet_jax.training.plan import make_plan
from configs import tiny
from tests.typed_config import typed

BATCH, CROP = 16, (7, 7, 1)


def host_batch() -> Batch:
    """Return random images and labels; some of 10 classes, whatever the network has."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)
    labels = random.integers(0, 10, BATCH).astype(np.int32)
    return Batch(images, labels, np.ones(BATCH, bool))


def _statistics(dtype: str) -> Statistics:
    mean = np.random.default_rng(1).uniform(50, 200, (8, 8, 1)).astype(dtype)
    return Statistics(mean, np.ones((1, 1), dtype), np.full(1, 40, dtype))


@dataclasses.dataclass
class Run:
    """The parts of a run on one mesh."""

    towers: int
    data: int
    model: int
    dtype: str = 'float64'
    conv6: int = 0
    accumulation_steps: int = 1
    backend: str = 'shard_map'
    num_classes: int = 10
    changes: tuple[tuple[str, Any], ...] = ()  # (field, value), over those above

    def __post_init__(self) -> None:
        config = tiny.get_config()
        config.model.update(towers=self.towers, dtype=self.dtype, num_classes=self.num_classes)
        config.model.conv6.update(features=self.conv6, init_std=0.05)
        config.augment.mirror = True
        config.parallel.update(data=self.data, model=self.model)
        config.update_from_flattened_dict(dict(self.changes))
        sections = typed(config)
        self.mesh = mesh_lib.make_mesh(sections.parallel, self.towers)
        collectives = mesh_lib.collectives(self.mesh, self.backend)
        self.network = AlexNet(sections.model, collectives)
        plan = make_plan(sections.training, num_examples=1437)
        self.label_smoothing = sections.training.label_smoothing
        self.ema_decay = sections.training.ema_decay
        self.optimizer = make_optimizer(sections.optim, plan)
        colour_steps = plan.first_step(sections.augment.colour_epochs)
        self.augment = Augment(sections.augment, colour_steps)
        ema = self.ema_decay > 0
        self.specs = step_lib.state_specs(self.network, self.optimizer, CROP, ema=ema)
        state = _initial_state(self.network, self.optimizer, self.dtype, ema)
        self.state = jax.device_put(state, mesh_lib.shardings(self.mesh, self.specs))
        self.batch = jax.device_put(host_batch(), mesh_lib.shardings(self.mesh, BATCH_SPECS))
        everywhere = NamedSharding(self.mesh, P())
        self.statistics = jax.device_put(_statistics(self.dtype), everywhere)

    def train_step(self) -> Any:
        """Return the step of `training/step.py` on this mesh."""
        step = functools.partial(
            step_lib.train_step,
            model=self.network,
            optimizer=self.optimizer,
            augment=self.augment,
            param_specs=self.specs.params,
            seed=3,
            accumulation_steps=self.accumulation_steps,
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
        )
        return mesh_lib.per_device(
            step, self.mesh, self.backend, (self.specs, BATCH_SPECS, P()), (self.specs, P())
        )

    def gradients(self) -> tuple[float, Any]:
        """Loss and gradients, reduced, of one batch with dropout on and no other part of a step."""
        comm = self.network.collectives

        def body(params, batch_stats, batch):
            images = comm.gather_images(batch.images)[:, :7, :7].astype(self.dtype) - 100.0
            rows = step_lib.copy_rows(self.network, batch.labels.shape[0])
            (loss, _, _), gradients = step_lib.loss_and_gradients(
                *(params, images, batch.labels, rows, jax.random.key(5)),
                model=self.network,
                batch_stats=batch_stats,
            )
            reduced = comm.sum_gradients(gradients, self.specs.params)
            return comm.mean_over_data(loss), reduced

        specs, of_stats = self.specs.params, self.specs.batch_stats
        run = mesh_lib.per_device(
            body, self.mesh, self.backend, (specs, of_stats, BATCH_SPECS), (P(), specs)
        )
        loss, gradients = run(self.state.params, self.state.batch_stats, self.batch)
        return loss.item(), jax.device_get(gradients)


def _weights(network: AlexNet) -> Any:
    """Weights by NumPy, larger than the initial ones, so that every path carries signal."""
    shapes = jax.eval_shape(lambda: init_parameters(network, CROP, jax.random.key(0)))
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: random.normal(0.02, 0.2, leaf.shape), shapes)


def _initial_state(network: AlexNet, optimizer: Any, dtype: str, ema: bool) -> step_lib.TrainState:
    weights = _weights(network)
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), weights)
    batch_stats = jax.jit(lambda: init_statistics(network, CROP))()
    return step_lib.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.rule.init(params),
        plateau=optimizer.init_plateau(),
        batch_stats=batch_stats,
        ema=jax.tree.map(jnp.copy, join_network(params, batch_stats)) if ema else {},
    )


def train(run: Run, steps: int) -> tuple[list[float], Any]:
    """Return the losses and, on the host, all that is averaged or learned after some steps."""
    step, state, losses = run.train_step(), run.state, []
    for _ in range(steps):
        with jax.transfer_guard_host_to_device('disallow'):  # the batch is on the devices
            state, metrics = step(state, run.batch, run.statistics)
        losses.append(metrics['train/loss'].item())
    learned = (state.params, state.opt_state, state.batch_stats, state.ema)
    return losses, jax.device_get(learned)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Relative error of each leaf: max|a - b| / max|b|."""
    flat, _ = jax.tree_util.tree_flatten_with_path(want)
    for (path, b), a in zip(flat, jax.tree.leaves(got), strict=True):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= tolerance, f'{jax.tree_util.keystr(path)}: relative error {error:.1e}'
