"""Resolve every path that a user gives, and refuse paths that are not supported."""

import os
from typing import Any

from etils import epath

from alexnet_jax.runtime.config import Rule
from alexnet_jax.runtime.errors import UserError

_REMEDY = (
    'object stores are not supported; mount the bucket (gcsfuse, mount-s3) and give the path of '
    'the mount, or copy the files to a disk'
)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and '://' not in value


path_field = Rule(_is_path, f'a path in the file system, or empty; {_REMEDY}')
paths_field = Rule(
    lambda value: isinstance(value, tuple) and all(v and _is_path(v) for v in value),
    f"a tuple of paths in the file system, such as ('runs/a', 'runs/b'); {_REMEDY}",
)


def resolve(path: epath.PathLike, option: str) -> epath.Path:
    """Return a path with `~` expanded; raise UserError, naming the option, for an object store."""
    if '://' in os.fspath(path):
        raise UserError(f'{option}: {path} is not a path in the file system; {_REMEDY}')
    return epath.Path(path).expanduser()


def data_directory(flag: str, field: str = '') -> str:
    """Return --data_dir, else data.dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    named = {
        '--data_dir': flag,
        'config.data.dir': field,
        'TFDS_DATA_DIR': os.environ.get('TFDS_DATA_DIR', ''),
        'the default': '~/tensorflow_datasets',
    }
    option, path = next((option, path) for option, path in named.items() if path)
    return os.fspath(resolve(path, option))
