"""A batch of noise, and the three programs that train on it for `step.py`."""

import dataclasses
import fnmatch
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.benchmarks import plain_step
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.config import MEANING, Rule
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import experiment as experiment_lib
from alexnet_jax.training.config import Config

MEAN_PIXEL = 120.0
_IN_FLIGHT = 2  # steps dispatched ahead of the one that is waited for, as in a run


def make_batch(config: Config) -> Batch:
    """Return a host batch of uint8 noise with random labels, as a function of the seed."""
    size = config.training.batch_size
    random = np.random.default_rng(config.seed)
    images = random.integers(0, 256, (size, *config.data.image_shape), dtype=np.uint8)
    labels = random.integers(0, config.model.num_classes, size, dtype=np.int32)
    return Batch(images, labels, np.ones(size, bool))


_SIZES = {  # the fields that a configuration may leave to the data set, with example values
    'data.image_shape': '"(256, 256, 3)"',
    'data.train_examples': 1_281_167,
    'model.num_classes': 1000,
}


def require_sizes(config: Config, names: Collection[str] = tuple(_SIZES)) -> None:
    """Raise UserError for a size that is left to the data set, because none is opened."""
    values = sections.flatten(config.to_dict())
    for name in names:
        if not values[name]:
            raise UserError(
                f'config.{name} must be set here, as no data set is opened; for example '
                f'--config.{name}={_SIZES[name]}'
            )


def without_chance(config: Config) -> Config:
    """Return the configuration without dropout and random augmentation.

    Otherwise the programs would differ, because each draws its own random numbers.
    """
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        augment=dataclasses.replace(
            config.augment,
            random_crop=False,
            resized_crop_area=(),
            mirror=False,
            colour_std=0.0,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            rotation_degrees=0.0,
        ),
    )


class Ours:
    """The training step of a run, with its augmentation, on the mesh of the configuration."""

    def __init__(self, config: Config, *, one_device: bool = False):
        require_sizes(config)
        experiment = experiment_lib.build(config, with_data=False)
        if one_device and experiment.mesh.size > 1:
            raise UserError(
                f'this benchmark takes one device, but the mesh has {experiment.mesh.size}; '
                'set --config.parallel.data=1 --config.parallel.model=1'
            )
        self.experiment = experiment
        self.batch = jax.device_put(make_batch(config), experiment.batch_shardings)
        channels = experiment.image_shape[-1]
        dtype = experiment.config.model.param_dtype
        self.statistics = Statistics(
            jnp.full(experiment.image_shape, MEAN_PIXEL, dtype),
            jnp.eye(channels, dtype=dtype),
            jnp.full(channels, 40.0, dtype),
        )
        self.state = experiment.init_state()
        arguments = (self.state, self.batch, self.statistics)
        self.compiled = experiment.train_step.lower(*arguments).compile()

    def train(self, steps: int) -> list[float]:
        """Do some training steps, and return their losses when all are done."""
        losses = []
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.batch, self.statistics)
            losses.append(metrics['train/loss'])
            if len(losses) > _IN_FLIGHT:  # with many small steps ahead, XLA's CPU devices can hang
                jax.block_until_ready(losses[-1 - _IN_FLIGHT])
        jax.block_until_ready(self.state)
        return [float(loss) for loss in losses]


def centre_crops(config: Config) -> np.ndarray:
    """Return the crops that `Ours` makes without random augmentation, float32."""
    images, crop = make_batch(config).images, config.augment.crop_px
    top, left = ((length - crop) // 2 for length in images.shape[1:3])
    return images[:, top : top + crop, left : left + crop].astype(np.float32) - MEAN_PIXEL


def _only(value: Any) -> Rule:
    return Rule(lambda v: v == value, repr(value))


_ANY = Rule(lambda v: True, 'anything')

# The values of each field that `plain_step.py` and `torch_step.py` can compute. A field of role
# MEANING that is not named here must have its `off` value, so that a field that is added to the
# configuration later is refused until these programs support it.
_RIVALS_CAN = {
    **dict.fromkeys(('model.num_classes', 'model.towers', 'model.dropout'), _ANY),
    **{f'model.conv?.{name}': _ANY for name in ('features', 'kernel', 'stride', 'padding')},
    **{f'model.conv?.{name}': _ANY for name in ('sees_both_towers', 'pool_window', 'pool_stride')},
    'model.conv?.after': Rule(
        lambda v: not {'map_norm', 'bn'} & set(v), "a tuple without 'map_norm' and 'bn'"
    ),
    **{f'model.bn.{name}': _ANY for name in ('momentum', 'epsilon')},  # the same
    **dict.fromkeys(('model.conv?.local', 'model.conv?.pool_partial'), _only(False)),
    'model.fc[67].features': Rule(lambda v: v > 0, 'above 0'),
    'model.fc[67].sees_both_towers': _only(True),
    **{f'model.lrn.{name}': _ANY for name in ('k', 'n', 'alpha', 'beta')},
    **{f'model.map_norm.{name}': _ANY for name in ('k', 'n', 'alpha', 'beta')},  # see `after`
    **dict.fromkeys(('model.lrn.divide_alpha', 'model.lrn.across_towers'), _only(False)),
    'model.activation': _only('relu'),
    **dict.fromkeys(('model.dropout_inverted', 'model.dropout_inputs'), _only(False)),
    # The programs get their initial weights from ours.
    **dict.fromkeys(('model.initializer', 'model.*.init_std', 'model.*.init_bias'), _ANY),
    # They also get the crops, without random augmentation, less a mean image of one value.
    **{f'augment.{name}': _ANY for name in ('crop_px', 'random_crop', 'mirror', 'mean')},
    **{f'augment.{name}': _ANY for name in ('images_per_crop', 'rotation_degrees')},
    **{f'augment.colour_{name}': _ANY for name in ('std', 'divisor', 'epochs')},
    'augment.pixel_divisor': _only(1.0),
    # With a constant rate it does not matter whether the rate is inside the velocity.
    **{f'optim.{name}': _ANY for name in ('learning_rate', 'momentum', 'weight_decay')},
    'optim.rate_inside_velocity': _ANY,
    'optim.reference_batch': _only(0),
    **dict.fromkeys(('optim.warmup_epochs', 'optim.lars_trust_coefficient'), _only(0.0)),
    **dict.fromkeys(('optim.lr_multipliers', 'optim.weight_decay_multipliers'), _only(())),
    'optim.events': _only(()),
}
# The sections that define what a step computes; of `training`, the fields that were added later.
_COMPARED = ('model.', 'augment.', 'optim.', 'training.')
_GIVEN = {'training.batch_size', 'training.init_from'}  # these programs take them from ours


def require_known_to_rivals(config: Config) -> None:
    """Raise UserError for a field that the programs to compare with would ignore."""
    values = sections.flatten(config.to_dict())
    for name, declared in sections.fields(type(config)).items():
        matching = [p for p in _RIVALS_CAN if fnmatch.fnmatchcase(name, p)]
        if matching:
            rule = _RIVALS_CAN[matching[0]]
        elif (
            name.startswith(_COMPARED)
            and declared.metadata['role'] == MEANING
            and name not in _GIVEN
        ):
            rule = _only(declared.default)
        else:
            continue
        if not rule.accepts(values[name]):
            raise UserError(
                f'config.{name} = {values[name]!r} must be {rule.words} for --against, '
                'because the other program supports nothing else'
            )


class Plain:
    """The step of `plain_step.py`, on prepared crops."""

    def __init__(self, config: Config, params: Any):
        require_known_to_rivals(config)
        init, self.step = plain_step.make_step(config)
        self.params = jax.tree.map(jnp.asarray, params)
        self.opt_state = init(self.params)
        self.images = jnp.asarray(centre_crops(config))
        self.labels = jnp.asarray(make_batch(config).labels)

    def train(self, steps: int) -> list[float]:
        """Do some training steps, and return their losses when all are done."""
        losses = []
        for number in range(steps):
            self.params, self.opt_state, loss = self.step(
                self.params, self.opt_state, self.images, self.labels, jax.random.key(number)
            )
            losses.append(loss)
        jax.block_until_ready(self.params)
        return [float(loss) for loss in losses]


class Torch:
    """The step of `torch_step.py`, in its own process, on prepared crops."""

    def __init__(self, config: Config, params: Any, product_size: int):
        if importlib.util.find_spec('torch') is None:
            raise UserError('--against=torch needs PyTorch: pip install -e ".[compare]"')
        if config.model.dtype == 'float64':
            raise UserError('--against=torch compares float32 and bfloat16; set config.model.dtype')
        require_known_to_rivals(config)
        self.dropout, towers = config.model.dropout, config.model.towers
        convolutions = {
            name: {
                **dataclasses.asdict(layer),
                'groups': 1 if plain_step.sees_all(name, config.model) else towers,
            }
            for name in CONVOLUTIONS
            if (layer := getattr(config.model, name)).features
        }
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / 'problem.npz'
            arrays: dict[str, Any] = {
                f'{layer}/{name}': np.asarray(leaf)
                for layer, leaves in params.items()
                for name, leaf in leaves.items()
            }
            labels = make_batch(config).labels
            np.savez(file, images=centre_crops(config), labels=labels, **arrays)
            settings = {
                'problem': str(file),
                'size': product_size,
                'dtype': config.model.dtype,
                'tf32': config.model.precision != 'highest',
                'learning_rate': config.optim.learning_rate,
                'momentum': config.optim.momentum,
                'weight_decay': config.optim.weight_decay,
                'lrn': dataclasses.asdict(config.model.lrn),
                'towers': towers,
                'convolutions': convolutions,
            }
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'alexnet_jax.benchmarks.torch_step', json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.version, self.device = self._answer()

    def train(self, steps: int) -> list[float]:
        """Do some training steps, and return their losses when all are done."""
        return self.ask('train', self.dropout, steps)

    def restart(self, dropout: float) -> None:
        """Start again from the initial weights, with another dropout rate."""
        self.dropout = dropout
        self.ask('reset')

    def ask(self, *words: Any) -> list[float]:
        """Send a command to the process, and return its answer when the work is done."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + '\n')
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UserError('the process of --against=torch ended; see its message above')
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def assert_same_losses(name: str, got: list[float], want: list[float], tolerance: float) -> float:
    """Return the largest relative difference of the losses; raise UserError above `tolerance`."""
    apart = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
    if not (apart <= tolerance and math.isfinite(apart)):
        raise UserError(
            f'--against={name} computes another function: its losses are {got} and ours are {want};'
            ' lower optim.learning_rate; if that does not help, this is a bug'
        )
    return apart
