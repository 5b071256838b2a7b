"""The digests of a checkpoint's files: the seal that says a step is whole and unchanged."""

import contextlib
import hashlib
import json
import typing
from typing import Any

from etils import epath

NAME = 'manifest.json'


def write_manifest(directory: epath.Path) -> None:
    """Write the SHA-256 of every file of a step: under a temporary name, then renamed."""
    digests = {name: _sha256(directory / name) for name in _files(directory)}
    temporary = directory / f'{NAME}.tmp'
    temporary.write_text(json.dumps({'format': 1, 'files': digests}, indent=1))
    temporary.replace(directory / NAME)


def find_damage(directory: epath.Path) -> str | None:
    """Say in a few words what is wrong with a step's directory; None for nothing."""
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


def _files(directory: epath.Path) -> list[str]:
    paths = [root / file for root, _, files in directory.walk() for file in files]
    names = [str(path.relative_to(directory)) for path in paths]
    return sorted(name for name in names if not name.startswith(NAME))


def _sha256(path: epath.Path) -> str:
    with contextlib.closing(path.open('rb')) as file:
        return hashlib.file_digest(typing.cast(Any, file), 'sha256').hexdigest()
