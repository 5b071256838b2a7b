"""Read a trained network: from a run, by its checkpoints, or from a weights file."""

import io
import json
import os
import zipfile
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging as absl_logging
from etils import epath
from jax.sharding import SingleDeviceSharding

from alexnet_jax.checkpoint import pretrained, weights
from alexnet_jax.checkpoint.checkpoints import Checkpoints, differences_in_kind, kinds
from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.input import sources
from alexnet_jax.input.batch import Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import init_parameters, init_statistics, join_network
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config

_PREPARATION = ('size', 'encoding', 'turn')  # the settings that change pixels


def read(place: epath.Path, which: str = 'latest') -> TrainedNetwork:
    """Read a trained network to the memory of the host.

    `place` is a weights file, WORKDIR, or WORKDIR/checkpoints/STEP. For WORKDIR, `which` is
    'latest', 'best' or a step. If the run kept a moving average of its weights, they are that.
    Raises UserError if there is no sound checkpoint or file.
    """
    if os.path.isfile(place):
        if which != 'latest':
            raise UserError(f'{place} is one file and has no checkpoint {which}; leave that out')
        return weights.read(place)
    if not place.exists():
        raise UserError(f'{place} does not exist; name the workdir of a run, or a weights file')

    def restore(checkpoints: Checkpoints, step: int, meta: dict[str, Any]) -> TrainedNetwork:
        return _restore(place, checkpoints, step, meta)

    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs how it opens a checkpoint
    try:
        return pretrained.read(place, which, restore)
    finally:
        absl_logging.set_verbosity(verbosity)


def _restore(
    place: epath.Path, checkpoints: Checkpoints, step: int, meta: dict[str, Any]
) -> TrainedNetwork:
    workdir = pretrained.workdir_of(place)
    config = Config.from_dict(meta['config'])
    about, statistics = _read_data(workdir)
    names = tuple(about['class_names'])
    if sources.class_names_digest(names) != meta['data']['class_names']:
        raise UserError(
            f'{workdir / "data"} has the class names of other data than checkpoint {step}; bring '
            'back the files of that run'
        )
    with jax.enable_x64(config.model.dtype == 'float64'):
        wanted = abstract_network(config, statistics.mean_image.shape[-1])
        device = SingleDeviceSharding(jax.local_devices()[0])
        wanted = jax.tree.map(lambda x: x.update(sharding=device), wanted)
        network = pretrained.restore_network(wanted, checkpoints, step, workdir)
        network = jax.tree.map(np.asarray, network)
    saved = config.to_dict()
    saved['data']['dir'] = ''  # a directory of this machine
    preparation = about['preparation'] or {}
    return TrainedNetwork(
        network=network,
        config=saved,
        class_names=names,
        statistics=statistics,
        preparation={key: preparation[key] for key in _PREPARATION if key in preparation},
        about={'run': workdir.name, 'step': step, 'data': meta['data']['train_name']},
    )


def abstract_network(config: Config, channels: int) -> Any:
    """Return shape and dtype of each leaf of the network, see `join_network`."""
    model, side = AlexNet(config.model), config.augment.crop_px

    def init(key: jax.Array) -> Any:
        shape = (side, side, channels)
        return join_network(init_parameters(model, shape, key), init_statistics(model, shape))

    return jax.eval_shape(init, jax.random.key(0))


def require_fit(trained: TrainedNetwork) -> Config:
    """Return the typed configuration of a network.

    Raises UserError unless it is a configuration, and weights, classes and statistics fit it.
    """
    config, shape = Config.from_dict(trained.config), trained.statistics.mean_image.shape
    origin = ', '.join(f'{key} {value}' for key, value in trained.about.items())

    def refuse(problem: str) -> NoReturn:
        raise UserError(f'the trained network ({origin}) is not whole: {problem}; convert it again')

    if len(trained.class_names) != config.model.num_classes:
        refuse(f'{len(trained.class_names)} names for {config.model.num_classes} classes')
    channels = shape[-1] if len(shape) == 3 else 0
    if channels not in (1, 3) or min(shape) < 1 or config.augment.crop_px > min(shape[:2]):
        refuse(f'images {list(shape)} for crops of {config.augment.crop_px} pixels')
    if trained.statistics.eigenvectors.shape != (channels, channels):
        refuse('its colour statistics are of other images')
    with jax.enable_x64(config.model.dtype == 'float64'):
        wanted = kinds(abstract_network(config, channels))
    for name, difference in differences_in_kind(kinds(trained.network), wanted).items():
        refuse(f'{name} is {difference.replace(" here", " in its configuration")}')
    return config


def _read_data(workdir: epath.Path) -> tuple[dict[str, Any], Statistics]:
    """Return what `provenance.save` has written about the data, and the statistics."""
    directory = workdir / 'data'
    try:
        about = json.loads((directory / 'data.json').read_text())
        content = io.BytesIO((directory / 'statistics.npz').read_bytes())
        with np.load(content, allow_pickle=False) as arrays:
            statistics = Statistics(**{k: np.asarray(arrays[k]) for k in Statistics._fields})
        return {k: about[k] for k in ('class_names', 'preparation')}, statistics
    except FileNotFoundError as error:
        raise UserError(
            f'{error.filename} is missing; start the training of that run once more with its data, '
            'which writes the file'
        ) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f'{directory} is damaged ({type(error).__name__}); delete it and start the training of '
            'that run once more with its data, which writes it'
        ) from error
