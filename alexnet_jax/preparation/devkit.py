"""Read the development kit of ILSVRC-2010: the synset of each class number, and the answers."""

import io
import os
import tarfile
import zlib
from collections.abc import Sequence

from alexnet_jax.runtime.errors import UserError, first_line

_META, _ANSWERS = 'data/meta.mat', 'data/ILSVRC2010_validation_ground_truth.txt'
_MAX_BYTES = 16 * 1024**2  # of a member; the original meta.mat has 184,207


def read_devkit(path: str | os.PathLike, num_classes: int = 1000) -> tuple[list[str], str]:
    """Return the synset of each ILSVRC2010_ID, from 1 on, and the text of the validation answers.

    `path` is `ILSVRC2010_devkit-1.0.tar.gz`. Its `data/meta.mat` has 1,676 structs `synsets`, each
    with a number and a WordNet id. The first 1,000 numbers are the classes and the others their
    ancestors (see the kit's readme.txt). The numbers are not in the order of the WordNet ids.

    Raises UserError if the file cannot be read or has other contents.
    """
    # Imported here, because it takes a fifth of the start of a worker, which does not need it.
    import scipy.io

    files = _members(path)
    try:
        meta = scipy.io.loadmat(
            io.BytesIO(files[_META]), squeeze_me=True, variable_names=['synsets']
        )
        numbers, names = (meta['synsets'][field] for field in ('ILSVRC2010_ID', 'WNID'))
        synsets = {int(number): str(name) for number, name in zip(numbers, names, strict=True)}
        classes = [synsets[number] for number in range(1, num_classes + 1)]
        answers = files[_ANSWERS].decode()
    except Exception as error:  # scipy raises errors of many types for other files
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise UserError(
            f'{os.fspath(path)} is not the development kit of ILSVRC-2010 ({reason}); '
            f'download it again'
        ) from error
    if len(set(classes)) != num_classes:
        raise UserError(f'{os.fspath(path)} has a synset with two numbers; download it again')
    return classes, answers


def _members(path: str | os.PathLike) -> dict[str, bytes]:
    """Return the bytes of the two files that are needed, from any folder of the archive."""
    found = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                for wanted in (_META, _ANSWERS):
                    if f'/{member.name}'.endswith(f'/{wanted}') and member.size <= _MAX_BYTES:
                        file = tar.extractfile(member)
                        found[wanted] = file.read() if file else b''
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise UserError(
            f'cannot read {os.fspath(path)} ({reason}); copy or download it again'
        ) from error
    return found


def parse_answers(text: str, path: str | os.PathLike, synsets: Sequence[str]) -> list[str]:
    """Return the synset of each image from the class numbers in `text`, one per image, in order."""
    try:
        numbers = [int(line) for line in text.split()]
    except ValueError as error:
        raise UserError(f'{os.fspath(path)}: {error}; download it again') from error
    if not all(0 < number <= len(synsets) for number in numbers):
        raise UserError(
            f'{os.fspath(path)} has answers that are not 1 to {len(synsets)}; download it again'
        )
    return [synsets[number - 1] for number in numbers]
