"""Write and verify the digests of checkpoints, and choose the steps that are sound."""

import contextlib
import hashlib
import itertools
import json
import logging
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from alexnet_jax.parallel import processes
from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)
NAME = 'manifest.json'


def write_manifest(directory: epath.Path) -> None:
    """Write the SHA-256 of every file of a step, atomically."""
    digests = {name: _sha256(directory / name) for name in _files(directory)}
    temporary = directory / f'{NAME}.tmp'
    temporary.write_text(json.dumps({'format': 1, 'files': digests}, indent=1))
    temporary.replace(directory / NAME)


def find_damage(directory: epath.Path) -> str | None:
    """Return in a few words what is wrong with a step's directory, or None if it is sound."""
    try:
        digests = json.loads((directory / NAME).read_text())['files']
    except FileNotFoundError:
        return 'its save was not finished (no manifest.json)'
    except (ValueError, KeyError, TypeError):
        return 'its manifest.json is damaged'
    for name in sorted(digests.keys() | set(_files(directory))):
        if name not in digests:
            return f'{name} is not in its manifest.json'
        if not (directory / name).exists():
            return f'its file {name} is missing'
        if _sha256(directory / name) != digests[name]:
            return f'its file {name} has changed since it was written'
    return None


def find_sound(
    directory: epath.Path, steps: Sequence[int], which: str
) -> tuple[int | None, list[int]]:
    """Return the first sound step, or None, and the damaged and unfinished steps before it.

    `which` is what the user asked for: 'latest', 'best' or a step. Raises UserError if there are
    steps but none is sound, except for 'latest' if the only step is unfinished: then a kill cut
    short the first save of the run.
    """
    bad: dict[int, str] = {}
    for step in steps:
        if (problem := find_damage(directory / str(step))) is None:
            return step, list(bad)
        bad[step] = problem
        _logger.warning('checkpoint %d is not used: %s', step, problem)
    if not bad:
        return None, []
    step, problem = next(iter(bad.items()))
    if which != 'latest':
        name = f'the best checkpoint, {step},' if which == 'best' else f'checkpoint {step}'
        raise UserError(
            f'{name} in {directory} is not sound: {problem}; '
            'restore it from a copy, or choose another'
        )
    if len(bad) == 1 and not (directory / str(step) / NAME).exists():
        return None, [step]
    raise UserError(
        f'no checkpoint in {directory} is sound: {step}: {problem}; '
        'restore one from a copy, or choose another --workdir to start again'
    )


def move_aside(step: epath.Path, damaged: epath.Path) -> None:
    """Move a step's directory into `damaged`, under a name that is free there."""
    damaged.mkdir(parents=True, exist_ok=True)
    names = (damaged / f'{step.name}-{count}' for count in itertools.count(1))
    step.rename(next(name for name in names if not name.exists()))


def take_back(superseded: epath.Path, directory: epath.Path, damaged: epath.Path) -> None:
    """Move superseded steps back where a kill cut short the save that was to replace them."""
    for old in superseded.iterdir() if superseded.exists() else ():
        new = directory / old.name
        if new.exists() and find_damage(new) is None:
            continue
        if new.exists():
            move_aside(new, damaged)
        old.rename(new)
    if superseded.exists():
        superseded.rmtree()


def parameters_sha256(params: Any) -> str:
    """Return the SHA-256 of the name, dtype, shape and little-endian bytes of all parameters."""
    digest = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(dict(params), sep='.').items()):
        array = processes.whole(leaf)
        array = array.astype(array.dtype.newbyteorder('<'))
        digest.update(f'{name} {array.dtype.name} {array.shape} '.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _files(directory: epath.Path) -> list[str]:
    paths = [root / file for root, _, files in directory.walk() for file in files]
    names = [str(path.relative_to(directory)) for path in paths]
    return sorted(name for name in names if not name.startswith(NAME))


def _sha256(path: epath.Path) -> str:
    with contextlib.closing(path.open('rb')) as file:
        return hashlib.file_digest(typing.cast(Any, file), 'sha256').hexdigest()
