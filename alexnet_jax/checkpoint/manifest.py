"""Write and verify the digests of checkpoints, and choose the steps that are sound."""

import contextlib
import hashlib
import itertools
import json
import logging
import re
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from alexnet_jax import __version__
from alexnet_jax.parallel import processes
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)
NAME = 'manifest.json'
FORMAT = 1  # of a checkpoint; a release that writes what this one cannot read raises it
_SHOWN = 3  # names in a warning
# What file managers, network file systems and editors leave beside the files of others.
_JUNK = re.compile(
    r'(^|/)(\.(?!z(array|group|attrs)$)|@eaDir(/|$)|(thumbs\.db|desktop\.ini)$)', re.I
)


def write_manifest(directory: epath.Path) -> None:
    """Write the SHA-256 of every file of a step, atomically."""
    names = [name for name in _files(directory) if not _JUNK.search(name)]
    digests = {name: _sha256(directory / name) for name in names}
    content = {'format': FORMAT, 'version': __version__, 'files': digests}
    storage.replace(directory / NAME, json.dumps(content, indent=1).encode())


def _read_digests(directory: epath.Path) -> dict[str, str]:
    """Return the digest of each file of a step.

    Raises FileNotFoundError or ValueError for a manifest that is absent or damaged, and UserError
    for one that a later release wrote.
    """
    manifest = json.loads((directory / NAME).read_text())
    try:
        number, digests = manifest['format'], dict(manifest['files'])
    except (KeyError, TypeError) as error:
        raise ValueError(f'no manifest: {error}') from error
    if number == FORMAT:
        return digests
    if (version := manifest.get('version', __version__)) != __version__:
        raise UserError(
            f'checkpoint {directory} has format {number}, written by alexnet_jax {version}; this '
            f'is {__version__}, which reads format {FORMAT}: install that version'
        )
    raise ValueError(f'format {number}')  # this version does not write it


def find_damage(directory: epath.Path) -> str | None:
    """Return in a few words what is wrong with a step's directory, or None if it is sound.

    Files that the manifest does not name are not damage: nothing reads them.
    """
    try:
        digests = _read_digests(directory)
    except FileNotFoundError:
        return 'its save was not finished (no manifest.json)'
    except ValueError:
        return 'its manifest.json is damaged'
    return next(filter(None, (_damage(directory, digests, name) for name in sorted(digests))), None)


def find_damage_of(directory: epath.Path, name: str) -> str | None:
    """Return what is wrong with one file of a step; None for a sound or an unfinished step."""
    try:
        return _damage(directory, _read_digests(directory), name)
    except FileNotFoundError:
        return None
    except ValueError:
        return 'its manifest.json is damaged'


def _damage(directory: epath.Path, digests: dict[str, str], name: str) -> str | None:
    try:
        found = _sha256(directory / name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return f'its file {name} is missing' if name in digests else None
    except OSError as error:  # the file may be sound, so the step is not passed over
        raise UserError(
            f'{directory / name} cannot be read ({error.strerror}); if it stays so, move '
            f'{directory} away and run the same command again'
        ) from error
    changed = found != digests.get(name)
    return f'its file {name} has changed since it was written' if changed else None


def _warn_of_strangers(directory: epath.Path) -> None:
    if strangers := sorted(set(_files(directory)) - _read_digests(directory).keys()):
        _logger.warning('in %s, %s', directory, words_for_strangers(strangers))


def words_for_strangers(names: Sequence[str]) -> str:
    """Return how many names do not belong to a checkpoint, and the first of them."""
    shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
    return f'what does not belong to a checkpoint is left alone ({len(names)}): {shown}'


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
            _warn_of_strangers(directory / str(step))
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
