"""What a run is made of: kept beside its metrics, and compared between its processes."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from typing import Any

from etils import epath

from alexnet_jax import config as config_lib
from alexnet_jax.parallel import processes
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
    """Save the resolved configuration and what it runs on beside the metrics."""
    (workdir / 'config.json').write_text(config_lib.to_json(experiment.config))
    try:
        git = subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=_SOURCE,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:
        git = ''
    environment = {
        'arguments': sys.argv[1:],
        'git': git or 'unknown',
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': _versions(),
        'devices': [str(device.device_kind) for device in experiment.mesh.devices.flat],
    }
    (workdir / 'environment.json').write_text(json.dumps(environment, indent=2))


def require_same_in_all_processes(experiment: Experiment, mode: str) -> None:
    """Raise UserError, naming what differs, unless all processes do the same with the same.

    They are asked for the mode, the configuration, the data, the versions and this package's
    source; only where the data lies may differ.
    """
    assert experiment.dataset is not None
    facts: dict[str, Any] = {'--mode': mode}
    facts |= {f'config.{k}': v for k, v in config_lib.flatten(experiment.config).items()}
    del facts['config.data.dir']
    facts |= {f'the data set, its {k},': v for k, v in experiment.dataset.fingerprint().items()}
    facts |= {f'the version of {k}': v for k, v in _versions().items()}
    facts['the digest of the source of alexnet_jax'] = _source_digest()
    processes.require_same(facts)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob('*.py')):
        digest.update(f'{path.relative_to(_SOURCE)} '.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
