"""One made-up batch and three programs that train on it, timed by `step.py`."""

import copy
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alexnet_jax.benchmarks import plain_step
from alexnet_jax.config import CONVOLUTIONS, flatten
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import experiment as experiment_lib

MEAN_PIXEL = 120.0


def make_batch(config: ml_collections.ConfigDict) -> Batch:
    """Return a host batch of noise, uint8, with labels; a function of the seed."""
    size = config.training.batch_size
    random = np.random.default_rng(config.seed)
    images = random.integers(0, 256, (size, *config.data.image_shape), dtype=np.uint8)
    labels = random.integers(0, config.model.num_classes, size, dtype=np.int32)
    return Batch(images, labels, np.ones(size, bool))


# What the programs that are compared with, and the layers timed one by one, know.
_LAYERS = {
    **{f'{c}.{field}': False for c in CONVOLUTIONS for field in ('local', 'map_norm')},
    **{f'{c}.pool_partial': False for c in CONVOLUTIONS},
    **{f'{c}.order': ('activation', 'lrn', 'pool') for c in CONVOLUTIONS},
    **{'fc6.sees_both_towers': True, 'fc7.sees_both_towers': True},
    **{'lrn.divide_alpha': False, 'lrn.across_towers': False, 'activation': 'relu'},
    **{'dropout_inverted': False, 'dropout_inputs': False},
}
_UPDATE = {
    **{'reference_batch': 0, 'warmup_epochs': 0.0, 'lars_trust': 0.0},
    **{'rate_factors': (), 'decay_factors': (), 'events': ()},
}


def require_paper_layers(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for a network whose layers are other than the paper's in kind or order."""
    _require('model', flatten(config.model), _LAYERS)


def require_paper_step(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for other layers, pixels or rates of some parameters than the paper's."""
    require_paper_layers(config)
    _require('augment', flatten(config.augment), {'pixel_divisor': 1.0})
    _require('optim', flatten(config.optim), _UPDATE)


def _require(section: str, fields: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if fields[name] != value:
            raise UserError(
                f'config.{section}.{name} = {fields[name]!r} is known to the training step alone; '
                f'compare and time with {value!r}'
            )


def paper_norm(lrn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants of the paper's response normalisation."""
    return {name: lrn[name] for name in ('k', 'n', 'alpha', 'beta')}


def without_chance(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the configuration without dropout and random augmentation: all draw differently."""
    config = copy.deepcopy(config)
    config.model.dropout = 0.0
    config.augment.update(random_crop=False, mirror=False, colour_std=0.0, rotation_degrees=0.0)
    return config


class Ours:
    """The training step of a run, with its augmentation, on the mesh of the configuration."""

    def __init__(self, config: ml_collections.ConfigDict, *, one_device: bool = False):
        experiment = experiment_lib.build(config, with_data=False)
        if one_device and experiment.mesh.size > 1:
            raise UserError(
                f'this takes one device and the mesh has {experiment.mesh.size}; '
                'set --config.parallel.data=1 --config.parallel.model=1'
            )
        self.experiment = experiment
        self.batch = jax.device_put(make_batch(config), experiment.batch_shardings)
        channels = experiment.image_shape[-1]
        dtype = experiment.float_dtype
        self.statistics = Statistics(
            jnp.full(experiment.image_shape, MEAN_PIXEL, dtype),
            jnp.eye(channels, dtype=dtype),
            jnp.full(channels, 40.0, dtype),
        )
        self.state = experiment.init_state()
        arguments = (self.state, self.batch, self.statistics)
        self.compiled = experiment.train_step.lower(*arguments).compile()

    def train(self, steps: int) -> list[float]:
        """Do training steps; return their losses once all is done."""
        losses = []
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.batch, self.statistics)
            losses.append(metrics['train/loss'])
        jax.block_until_ready(self.state)
        return [float(loss) for loss in losses]


def centre_crops(config: ml_collections.ConfigDict) -> np.ndarray:
    """Return what `Ours` sees of its batch without random augmentation, float32."""
    images, crop = make_batch(config).images, config.augment.crop_px
    top, left = ((length - crop) // 2 for length in images.shape[1:3])
    return images[:, top : top + crop, left : left + crop].astype(np.float32) - MEAN_PIXEL


class Plain:
    """The step of `plain_step.py`, on ready crops."""

    def __init__(self, config: ml_collections.ConfigDict, params: Any):
        require_paper_step(config)
        config = copy.deepcopy(config)
        with config.unlocked():
            config.model.lrn = paper_norm(config.model.lrn)
        init, self.step = plain_step.make_step(config)
        self.params = jax.tree.map(jnp.asarray, params)
        self.opt_state = init(self.params)
        self.images = jnp.asarray(centre_crops(config))
        self.labels = jnp.asarray(make_batch(config).labels)

    def train(self, steps: int) -> list[float]:
        """Do training steps; return their losses once all is done."""
        losses = []
        for number in range(steps):
            self.params, self.opt_state, loss = self.step(
                self.params, self.opt_state, self.images, self.labels, jax.random.key(number)
            )
            losses.append(loss)
        jax.block_until_ready(self.params)
        return [float(loss) for loss in losses]


class Torch:
    """The step of `torch_step.py`, in a process of its own, on ready crops."""

    def __init__(self, config: ml_collections.ConfigDict, params: Any, product_size: int):
        if importlib.util.find_spec('torch') is None:
            raise UserError('--against=torch needs PyTorch: pip install -e ".[compare]"')
        if config.model.dtype == 'float64':
            raise UserError('--against=torch compares float32 and bfloat16; set config.model.dtype')
        require_paper_step(config)
        self.dropout = config.model.dropout
        towers = config.model.towers
        convolutions = {
            name: {
                **{k: layer[k] for k in ('stride', 'padding', 'lrn', 'pool_window', 'pool_stride')},
                'groups': 1 if layer.get('sees_both_towers', True) else towers,
                'towers': towers,
            }
            for name in CONVOLUTIONS
            if (layer := config.model[name]).features
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
                'lrn': paper_norm(config.model.lrn),
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
        """Do training steps; return their losses once all is done."""
        return self.ask('train', self.dropout, steps)

    def restart(self, dropout: float) -> None:
        """Begin anew from the given weights, with another rate of dropout."""
        self.dropout = dropout
        self.ask('reset')

    def ask(self, *words: Any) -> list[float]:
        """Have it do one thing; return its answer once all is done."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + '\n')
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UserError('the process of --against=torch ended; its message stands above')
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def assert_same_losses(name: str, got: list[float], want: list[float], tolerance: float) -> float:
    """Return the largest relative difference of the losses; raise UserError above a tolerance."""
    apart = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
    if not (apart <= tolerance and math.isfinite(apart)):
        raise UserError(
            f'--against={name} computes another function: losses {got}, ours {want}; '
            'lower optim.learning_rate, or it is a bug'
        )
    return apart
