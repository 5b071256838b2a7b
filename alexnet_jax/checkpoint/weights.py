"""Weights files: a trained network in one safetensors file, with all that its predictions need.

The tensors are `conv1.kernel`, `conv1.bias` and so on, whole and in the layout of `network/`, as
float32 or float16; and `statistics.mean_image`, `statistics.eigenvectors` and `statistics.std`,
always float32. The metadata has one key, `alexnet_jax`, whose value is JSON: `format`, `version`,
`config` (the configuration of the run, nested), `class_names`, `preparation` (how its photographs
became images) and `about` (where the weights come from).
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

from alexnet_jax import __version__
from alexnet_jax.checkpoint import earlier
from alexnet_jax.input.batch import Statistics
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError, first_line

SUFFIX = '.safetensors'
FORMAT = 1  # of a weights file; a release that writes what this one cannot read raises it
KEY = 'alexnet_jax'  # in the metadata
_STATISTICS = 'statistics'
_OTHERS = 'python -m alexnet_jax.convert makes a weights file of a run or of other formats'


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network in the memory of the host, independent of any mesh and data set."""

    network: Mapping[str, Mapping[str, np.ndarray]]  # {layer: {kernel, bias}}, see `join_network`
    config: Mapping[str, Any]  # the configuration of its run, nested, with the present names
    class_names: tuple[str, ...]  # as in its data, in the order of the logits
    statistics: Statistics  # float32, of its training data
    preparation: Mapping[str, Any] | None  # settings of `prepare`, where they are known
    about: Mapping[str, Any]  # where it comes from: `step`, `data` and `run`, or `imported_from`


def write(path: epath.Path, trained: TrainedNetwork, dtype: str = 'float32') -> None:
    """Write a weights file, atomically; the same network always gives the same bytes.

    `dtype` is that of the weights, 'float32' or 'float16'. Raises UserError for a weight that is
    not finite in that dtype, and if the file cannot be written.
    """
    leaves: dict[str, Any] = dict(traverse_util.flatten_dict(dict(trained.network), sep='.'))
    tensors = {name: finite(name, leaf, dtype) for name, leaf in leaves.items()}
    for name, array in trained.statistics._asdict().items():
        tensors[f'{_STATISTICS}.{name}'] = np.ascontiguousarray(array, np.float32)
    metadata = {KEY: json.dumps(described(trained), sort_keys=True, allow_nan=False)}
    with storage.writing(path):
        storage.replace(path, safetensors.numpy.save(tensors, metadata))


def finite(name: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    """Return a weight in a dtype; raise UserError if it is not finite there."""
    with np.errstate(over='ignore'):  # checked in the next line
        converted = np.ascontiguousarray(leaf, dtype)
    if not np.isfinite(converted).all():
        remedy = ' as float16; write float32' if dtype == 'float16' else ', so it is of no use'
        raise UserError(f'a weight of {name} is not finite{remedy}')
    return converted


def described(trained: TrainedNetwork) -> dict[str, Any]:
    """Return what a file says of a network besides its arrays, for the metadata."""
    return {
        'format': FORMAT,
        'version': __version__,
        'config': trained.config,
        'class_names': trained.class_names,
        'preparation': trained.preparation,
        'about': trained.about,
    }


def require_format(path: epath.Path, said: Mapping[str, Any]) -> None:
    """Raise UserError if the metadata are of a format that a later version wrote."""
    if said['format'] != FORMAT:
        raise UserError(
            f'{path} has format {said["format"]}, written by alexnet_jax {said["version"]}; '
            f'this is {__version__}, which reads format {FORMAT}: install that version'
        )


def read(path: epath.Path) -> TrainedNetwork:
    """Read a weights file; its weights become float32, or float64 if the network computes so.

    Raises UserError for a file that is not a weights file of this project or is damaged. Whether
    the weights fit the configuration is checked where a network is made of them.
    """
    tensors, metadata = open_safetensors(path)
    if KEY not in metadata:
        raise UserError(
            f'{path} is a safetensors file, but not a weights file of alexnet_jax; {_OTHERS}'
        )
    try:
        about = json.loads(metadata[KEY])
        require_format(path, about)
        config = earlier.in_present_names(about['config'])
        parts = {name: tensors.pop(f'{_STATISTICS}.{name}') for name in Statistics._fields}
        dtype = 'float64' if config['model']['dtype'] == 'float64' else 'float32'
        network = {tuple(name.split('.')): x.astype(dtype) for name, x in tensors.items()}
        if any(len(name) != 2 for name in network):
            raise ValueError('a tensor is not of a layer')
        return TrainedNetwork(
            network=traverse_util.unflatten_dict(network),
            config=config,
            class_names=tuple(map(str, about['class_names'])),
            statistics=Statistics(**parts),
            preparation=about['preparation'],
            about=dict(about['about']),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a whole weights file ({type(error).__name__}: {first_line(error)}); '
            'copy or convert it again'
        ) from error


def open_safetensors(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file.

    Raises UserError if there is no such file, or if it is not a whole safetensors file of types
    that NumPy has.
    """
    if not os.path.isfile(path):  # etils takes a pipe for a file
        raise UserError(f'{path} is not a file; name a weights file or the workdir of a run')
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (safetensors.SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a safetensors file that can be read ({first_line(error)}); {_OTHERS}'
        ) from error
