"""Record the configuration, versions and data of a run, and compare them between processes."""

import hashlib
import importlib.metadata
import io
import itertools
import json
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from etils import epath

from alexnet_jax.parallel import processes
from alexnet_jax.preparation import photographs
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import flatten
from alexnet_jax.training.experiment import Experiment

_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'tensorflow-datasets',
)
_SOURCE = pathlib.Path(__file__).parents[1]


def save(experiment: Experiment, workdir: epath.Path) -> None:
    """Save the configuration, the environment and a description of the data in the workdir.

    `config.json` (the resolved configuration) and `environment.json` (versions, arguments and
    devices) describe the newest start of the run; `starts/N` keeps both files of each start, N from
    1. `data` holds what is needed to use the network without its data set: `statistics.npz`, the
    mean image and the colour statistics; and `data.json`, the names of the classes, the data set's
    fingerprint and, where it is known, how the data were prepared.
    """
    environment = {
        'arguments': sys.argv[1:],
        'git': _git_revision(),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': _versions(),
        'devices': [str(device.device_kind) for device in experiment.mesh.devices.flat],
    }
    start = next(
        directory
        for count in itertools.count(1)
        if not (directory := workdir / 'starts' / str(count)).exists()
    )
    config = json.dumps(experiment.config.to_dict(), indent=2, sort_keys=True)
    with storage.writing(f'the description of this start to {workdir}'):
        for directory in (start, workdir):
            storage.replace(directory / 'config.json', config.encode())
            storage.replace(
                directory / 'environment.json', json.dumps(environment, indent=2).encode()
            )
        _save_data(experiment, workdir / 'data')


def _save_data(experiment: Experiment, directory: epath.Path) -> None:
    dataset = experiment.dataset
    assert dataset is not None
    about = {
        'class_names': dataset.class_names,
        'fingerprint': dataset.fingerprint(),
        'preparation': photographs.read_settings(dataset.directory),
    }
    storage.replace(directory / 'data.json', json.dumps(about, indent=1).encode())
    arrays = jax.tree.map(np.asarray, experiment.host_statistics._asdict())  # pyright: ignore
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    storage.replace(directory / 'statistics.npz', buffer.getvalue())


def require_same_in_all_processes(experiment: Experiment, mode: str) -> None:
    """Raise UserError, naming the first difference, unless all processes run the same program.

    The mode, the configuration, the data, the versions and this package's source are compared; only
    the path of the data may differ.
    """
    assert experiment.dataset is not None
    facts: dict[str, Any] = {'--mode': mode}
    facts |= {f'config.{k}': v for k, v in flatten(experiment.config.to_dict()).items()}
    del facts['config.data.dir']
    facts |= {f'the data set, its {k},': v for k, v in experiment.dataset.fingerprint().items()}
    facts |= {f'the version of {k}': v for k, v in _versions().items()}
    facts['the digest of the source of alexnet_jax'] = _source_digest()
    processes.require_same(facts)


def _git_revision() -> str:
    command = ['git', 'describe', '--always', '--dirty']
    try:
        done = subprocess.run(command, cwd=_SOURCE, capture_output=True, text=True, check=False)
    except OSError:
        return 'unknown'
    return done.stdout.strip() or 'unknown'


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob('*.py')):
        digest.update(f'{path.relative_to(_SOURCE)} '.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
