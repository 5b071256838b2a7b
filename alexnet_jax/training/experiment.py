"""Build the parts of a run from its configuration: mesh, data, network, optimizer and steps."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alexnet_jax.input import pipeline
from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.input.sources import Dataset, Split
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import count_macs
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.parallel import processes
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import dataset as dataset_lib
from alexnet_jax.training.config import Config
from alexnet_jax.training.evaluate import (
    collect,
    eval_step,
    evaluate,
    probability_step,
    ranking_step,
)
from alexnet_jax.training.optim import Optimizer, make_optimizer
from alexnet_jax.training.plan import Plan, make_plan
from alexnet_jax.training.step import TrainState, init_state, state_specs, train_step

_LARGE_PX = 1024  # an image large enough for every layer to have an output
BATCH_SPECS = Batch(images=mesh_lib.IMAGES, labels=mesh_lib.LABELS, mask=mesh_lib.LABELS)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts of one run.

    In `config`, the values that the user left to the data (the number of classes and the split to
    evaluate on) are filled in. `dataset` and `host_statistics` are None without data.
    """

    config: Config
    mesh: Mesh
    plan: Plan
    image_shape: tuple[int, ...]  # of the stored images
    dataset: Dataset | None
    host_statistics: Statistics | None
    model: AlexNet
    optimizer: Optimizer
    augment: Augment

    @property
    def crop_shape(self) -> tuple[int, ...]:
        """The shape of the network's input: (crop_px, crop_px, channels)."""
        return (*2 * (self.config.augment.crop_px,), self.image_shape[-1])

    @functools.cached_property
    def specs(self) -> TrainState:
        """PartitionSpec of every leaf of the state."""
        return state_specs(self.model, self.optimizer, self.crop_shape, ema=self._has_ema)

    @functools.cached_property
    def state_shardings(self) -> TrainState:
        """NamedSharding of every leaf of the state."""
        return mesh_lib.shardings(self.mesh, self.specs)

    @property
    def batch_shardings(self) -> Batch:
        """NamedSharding of a batch."""
        return mesh_lib.shardings(self.mesh, BATCH_SPECS)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean image and colour statistics on every device, in the dtype of the parameters."""
        everywhere = NamedSharding(self.mesh, mesh_lib.REPLICATED)
        dtype = self.config.model.param_dtype
        arrays = jax.tree.map(lambda x: np.asarray(x, dtype), self.host_statistics)
        return jax.tree.map(lambda x: jax.device_put(x, everywhere), processes.same_arrays(arrays))

    @property
    def _has_ema(self) -> bool:
        return self.config.training.ema_decay > 0

    def _init(self) -> TrainState:
        seed, ema = self.config.seed, self._has_ema
        return init_state(self.model, self.optimizer, self.crop_shape, seed, ema=ema)

    def init_state(self) -> TrainState:
        """Draw the state on its own devices, so that none ever holds the whole of a split array."""
        return jax.jit(self._init, out_shardings=self.state_shardings)()

    def abstract_state(self) -> TrainState:
        """Return shape, dtype and sharding of every leaf of the state."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(self._init),
            self.state_shardings,
        )

    def abstract_arguments(self) -> tuple[TrainState, Batch, Statistics]:
        """Return the arguments of `train_step` as shapes, dtypes and shardings."""
        size, channels = self.config.training.batch_size, self.image_shape[-1]
        batch = Batch(
            images=jax.ShapeDtypeStruct((size, *self.image_shape), np.uint8),
            labels=jax.ShapeDtypeStruct((size,), np.int32),
            mask=jax.ShapeDtypeStruct((size,), np.bool_),
        )
        batch = jax.tree.map(lambda x, s: x.update(sharding=s), batch, self.batch_shardings)
        everywhere = NamedSharding(self.mesh, mesh_lib.REPLICATED)
        statistics = Statistics(
            *(
                jax.ShapeDtypeStruct(shape, self.config.model.param_dtype, sharding=everywhere)
                for shape in (self.image_shape, (channels, channels), (channels,))
            )
        )
        return self.abstract_state(), batch, statistics

    def _per_device(self, step: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        return mesh_lib.per_device(step, self.mesh, self.config.parallel.backend, **how)

    def train_batches(self, steps: range) -> Generator[Batch, None, None]:
        """Yield the batches of these steps as global arrays; each process reads its own rows."""
        assert self.dataset is not None
        size = self.config.training.batch_size
        rows = pipeline.local_rows(self.batch_shardings, size)
        batches = pipeline.train_batches(
            self.dataset,
            seed=self.config.seed,
            batch_size=size,
            start_step=steps.start,
            num_steps=len(steps),
            rows=rows,
        )
        return pipeline.to_device(batches, self.batch_shardings, batch_size=size, rows=rows)

    @functools.cached_property
    def train_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """The jitted training step, `(state, batch, statistics) -> (state, metrics)`."""
        step = functools.partial(
            train_step,
            model=self.model,
            optimizer=self.optimizer,
            augment=self.augment,
            param_specs=self.specs.params,
            seed=self.config.seed,
            accumulation_steps=self.config.training.accumulation_steps,
            label_smoothing=self.config.training.label_smoothing,
            ema_decay=self.config.training.ema_decay,
        )
        return self._per_device(
            step,
            in_specs=(self.specs, BATCH_SPECS, mesh_lib.REPLICATED),
            out_specs=(self.specs, mesh_lib.REPLICATED),
            donate=(0,),
        )

    @functools.cache  # noqa: B019 - one experiment lives as long as its process
    def eval_step(self, views: int) -> Callable[..., dict[str, jax.Array]]:
        """The jitted evaluation step, `(network, batch, statistics) -> sums`."""
        step = functools.partial(eval_step, model=self.model, augment=self.augment, views=views)
        return self._per_device(
            step,
            in_specs=(self.specs.network, BATCH_SPECS, mesh_lib.REPLICATED),
            out_specs=mesh_lib.REPLICATED,
        )

    @functools.cache  # noqa: B019 - as above
    def probability_step(self, views: int) -> Callable[..., dict[str, jax.Array]]:
        """The jitted prediction step, `(network, batch, statistics) -> softmax outputs`."""
        return self._of_each_example(probability_step, views)

    @functools.cache  # noqa: B019 - as above
    def ranking_step(self, views: int) -> Callable[..., dict[str, jax.Array]]:
        """The jitted ranking step, `(network, batch, statistics) -> five best classes`."""
        return self._of_each_example(ranking_step, views)

    def _of_each_example(self, step: Callable[..., Any], views: int) -> Callable[..., Any]:
        return self._per_device(
            functools.partial(step, model=self.model, augment=self.augment, views=views),
            in_specs=(self.specs.network, BATCH_SPECS, mesh_lib.REPLICATED),
            out_specs=mesh_lib.LABELS,
        )

    def eval_batches(self, split: Split) -> Generator[Batch, None, None]:
        """Yield every example of a split once, on the devices; close this to end its threads."""
        size = self.config.evaluation.batch_size
        rows = pipeline.local_rows(self.batch_shardings, size)
        batches = pipeline.eval_batches(
            split,
            batch_size=size,
            rows=rows,
            read_threads=self.config.data.read_threads,
            prefetch_batches=self.config.data.prefetch_batches,
        )
        return pipeline.to_device(batches, self.batch_shardings, batch_size=size, rows=rows)

    def evaluate(
        self, network: Any, views: int, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return the metrics of the evaluation split, or None if `stop` returned True midway."""
        assert self.dataset is not None
        split = self.dataset.eval
        with contextlib.closing(self.eval_batches(split)) as batches:
            return evaluate(
                self.eval_step(views), network, self.statistics, batches, len(split), stop
            )

    def collect(
        self, step: Callable[..., dict[str, jax.Array]], network: Any, split: Split
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return what a step returns for each example of a split, in its order, and the labels."""
        with contextlib.closing(self.eval_batches(split)) as batches:
            return collect(step, network, self.statistics, batches, len(split))


def build(config: Config, *, with_data: bool = True, mesh: Mesh | None = None) -> Experiment:
    """Build the parts of a run; raise UserError for parts that do not fit each other.

    With `with_data=False` the data set is not opened, and its sizes are taken from the `data`
    section. `mesh` replaces the mesh of the `parallel` section.
    """
    mesh = mesh or mesh_lib.make_mesh(config.parallel, config.model.towers)
    training = config.training
    mesh_lib.check_batch(
        mesh, training.batch_size, training.accumulation_steps, 'training.batch_size'
    )
    mesh_lib.check_batch(mesh, config.evaluation.batch_size, 1, 'evaluation.batch_size')
    _check_pairs(config, mesh)
    if with_data:
        dataset, statistics = dataset_lib.load(config.data)
        image_shape, num_examples = dataset.image_shape, len(dataset.train)
        config = _fill_in(config, dataset)
    else:
        dataset, statistics = None, None
        image_shape, num_examples = config.data.image_shape, config.data.train_examples
    plan = make_plan(training, num_examples)
    experiment = Experiment(
        config=config,
        mesh=mesh,
        plan=plan,
        image_shape=image_shape,
        dataset=dataset,
        host_statistics=statistics,
        model=AlexNet(config.model, mesh_lib.collectives(mesh, config.parallel.backend)),
        optimizer=make_optimizer(config.optim, plan),
        augment=Augment(config.augment, plan.first_step(config.augment.colour_epochs)),
    )
    _check_sizes(experiment)
    return experiment


def _fill_in(config: Config, dataset: Dataset) -> Config:
    """Fill in the number of classes and the evaluation split from the data.

    Raises UserError unless the network has one output for each class.
    """
    classes = config.model.num_classes or dataset.num_classes
    if dataset.num_classes != classes:
        raise UserError(
            f'config.model.num_classes = {classes}, but {dataset.full_name} has '
            f'{dataset.num_classes} classes; set --config.model.num_classes={dataset.num_classes}'
        )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=classes),
        data=dataclasses.replace(config.data, eval_split=dataset.eval.name),
    )


def _check_pairs(config: Config, mesh: Mesh) -> None:
    """Raise UserError unless each device and part of a batch has whole pairs where it needs them.

    The partners of mixup and cutmix are a pair, and with pairs the parts of a batch, of which batch
    normalisation takes the mean, are the same on any mesh.
    """
    training, model, augment = config.training, config.model, config.augment
    layers = (getattr(model, name) for name in CONVOLUTIONS)
    parts_have_means = training.accumulation_steps > 1 and any('bn' in x.after for x in layers)
    copies_and_shards = mesh.shape['data'] * mesh.shape['shard'] * training.accumulation_steps
    for needs, words in (
        (augment.mixup_alpha > 0, 'augment.mixup_alpha > 0'),
        (augment.cutmix_alpha > 0, 'augment.cutmix_alpha > 0'),
        (parts_have_means, "'bn' and training.accumulation_steps > 1"),
    ):
        if needs and training.batch_size % (2 * copies_and_shards):
            raise UserError(
                f'config.training.batch_size = {training.batch_size} must be a multiple of '
                f'{2 * copies_and_shards} with {words}, so that each device and part has pairs of '
                'rows'
            )


def _check_sizes(experiment: Experiment) -> None:
    """Raise UserError unless the crop fits into the images and every layer has an output."""
    crop_px, shape = experiment.config.augment.crop_px, experiment.image_shape
    if crop_px > min(shape[:2]):
        raise UserError(
            f'config.augment.crop_px = {crop_px} is larger than the images, which are {shape}; '
            'lower it'
        )
    try:
        macs = count_macs(experiment.model, experiment.crop_shape)
    except (ValueError, TypeError):  # a kernel or a pooling window larger than its input
        # With another cause, such as a bug, this fails on a large image, too.
        count_macs(experiment.model, (_LARGE_PX, _LARGE_PX, shape[-1]))
        macs = {'a layer': 0}
    for name, count in macs.items():
        if count == 0:
            raise UserError(
                f'config.augment.crop_px = {crop_px} is too small: {name} has no output; raise it '
                'or lower the strides and windows of model.conv1 to model.conv6'
            )
