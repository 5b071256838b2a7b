"""Own photographs as a data set: folders named for the classes, on disk or in a tar."""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.preparation import archives
from alexnet_jax.preparation.photographs import Item, write_photographs
from alexnet_jax.runtime.errors import UserError

VERSION = '1.0.0'

_OPEN = {'.xz': lzma.open, '.gz': gzip.open, '.bz2': bz2.open}
_OPEN |= {'.txz': lzma.open, '.tgz': gzip.open, '.tbz2': bz2.open}
_SPLITS = ('train', 'test', 'validation', 'val')
_IMAGES = ('.jpg', '.jpeg', '.png')

Found = tuple[str, archives.Entry]  # the file below the source, and where in it


def prepare_folder(
    data_dir: epath.PathLike,
    source: str | os.PathLike,
    *,
    name: str,
    size: int = 256,
    eval_fraction: float | None = None,
    seed: int = 0,
    encoding: str = 'raw',
    workers: int = 1,
    skip_broken: bool = False,
) -> epath.Path:
    """Write the data set NAME 1.0.0 from a folder or a tar and return its directory.

    The source holds `train/CLASS/*` and `test/CLASS/*` (or `validation`, `val`), or one level
    `CLASS/*`, which `eval_fraction` divides; folders around them with nothing beside them are
    passed over. Classes and examples are sorted by name. JPEG and PNG, by suffix; other files, and
    links that leave the source, are named in the report. Nothing is extracted; a compressed tar,
    in which nothing can be found by place, is unpacked to a temporary tar beside the output.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: a folder, or a tar, `.tar.xz`, `.tar.gz` or `.tar.bz2`.
      name: of the data set: lower-case letters, digits and underscores, a letter first.
      size: shorter side and crop; 0 keeps the images, which must all have one size.
      eval_fraction: of each class, the part for `test` where no folder says; 0: no test split.
      seed: of that choice.

    Raises UserError for a source or a name that cannot be used, and as `write_photographs` does.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(f'--name={name!r} must be of a-z, 0-9 and _, with a letter first')
    if size < 0 or not 0 <= (eval_fraction or 0) < 1:
        raise UserError(
            f'--size={size} must not be negative and --eval_fraction={eval_fraction} be in [0, 1)'
        )
    path = os.fspath(source)
    if os.path.splitext(path)[1] in _OPEN and not os.path.isdir(path):
        path = _unpack(path, epath.Path(data_dir).expanduser() / name)
    found, ignored = find(path)
    splits, classes = _splits(os.fspath(source), found, eval_fraction, seed)
    directory = write_photographs(
        data_dir,
        path,
        name=name,
        version=VERSION,
        description='Photographs in folders named for their classes.',
        size=size,
        class_names=classes,
        splits=splits,
        settings={
            'source': os.fspath(source),
            'size': size,
            'encoding': encoding,
            'eval_fraction': eval_fraction,
            'seed': seed,
        },
        ignored=ignored,
        encoding=encoding,
        workers=workers,
        skip_broken=skip_broken,
    )
    if path != os.fspath(source):  # kept after an error, for the next run
        os.remove(path)
    return directory


def find(path: str) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the images of a folder or an uncompressed tar, and what else is there."""
    if os.path.isdir(path):
        found, ignored = _in_folder(path)
    elif os.path.isfile(path) and not path.endswith('.tar'):
        raise UserError(
            f'{path} is neither a folder nor a .tar, .tar.xz, .tar.gz or .tar.bz2; unpack it first'
        )
    else:
        found, ignored = [('', entry) for entry in archives.tar_entries(path)], []
    ignored += [('no image', entry.name) for _, entry in found if not _is_image(entry.name)]
    return [(file, entry) for file, entry in found if _is_image(entry.name)], ignored


def _is_image(name: str) -> bool:
    base = name.rpartition('/')[2]
    return base.lower().endswith(_IMAGES) and not base.startswith('.')


def _in_folder(root: str) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the files below a folder, and the links that leave it, which are not followed."""
    found, ignored = [], []
    real_root = os.path.realpath(root)
    for folder, folders, files in os.walk(root, onerror=_cannot_list):  # follows no linked folder
        for name in folders + files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            is_link = os.path.islink(path)
            inside = os.path.realpath(path).startswith(real_root + os.sep)
            if is_link and (name in folders or not inside):
                ignored.append(('link', relative))
            elif name in files and os.path.isfile(path):
                found.append((relative, archives.Entry(relative, 0, os.path.getsize(path))))
            elif name in files:
                ignored.append(('no file', relative))
    return found, ignored


def _cannot_list(error: OSError) -> None:
    raise UserError(f'cannot list {error.filename} ({error.strerror})') from error


def _unpack(path: str, directory: epath.Path) -> str:
    """Decompress a tar to DIRECTORY/source_HASH.tar and return that; a whole one is taken as it is.

    The hash is of the archive's place, size and time.
    """
    try:
        stat = os.stat(path)
        identity = f'{os.path.realpath(path)} {stat.st_size} {stat.st_mtime_ns}'.encode()
        target = directory / f'source_{hashlib.sha256(identity).hexdigest()[:16]}.tar'
        if target.exists():
            return os.fspath(target)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f'{target.name}.{os.getpid()}.tmp')
        print(f'unpacking {path} to {target}, for as long as it is needed')
        try:
            opened: Any = _OPEN[os.path.splitext(path)[1]](path)
            with opened, open(temporary, 'wb') as copy:
                shutil.copyfileobj(opened, copy, 1 << 20)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(f'cannot unpack {path} to {directory} ({reason})') from error
    return os.fspath(target)


def _splits(
    source: str, found: Sequence[Found], eval_fraction: float | None, seed: int
) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the examples of each split, and the classes."""
    layout = 'it must hold train/CLASS/* and test/CLASS/*, or CLASS/*, of JPEG or PNG images'
    if not found:
        raise UserError(f'{source} holds no image; {layout}')
    parts = {entry.name: entry.name.split('/') for _, entry in found}
    above = 0  # folders around all of it
    while len({tuple(p[: above + 1]) for p in parts.values()}) == 1:
        if (
            min(map(len, parts.values())) - above < 3
            or next(iter(parts.values()))[above] in _SPLITS
        ):
            break
        above += 1
    examples = sorted(((parts[e.name][above:], file, e) for file, e in found), key=lambda x: x[0])
    has_splits = all(p[0] in _SPLITS for p, _, _ in examples)
    for p, _, entry in examples:
        if len(p) != 2 + has_splits:
            raise UserError(f'{source} holds {entry.name}; {layout}')
    classes = sorted({p[-2] for p, _, _ in examples})
    splits: dict[str, list[Item]] = {}
    for p, file, entry in examples:
        item = Item(file, entry, classes.index(p[-2]))
        splits.setdefault(p[0] if has_splits else 'train', []).append(item)
    if 'train' not in splits:
        raise UserError(f'{source} holds {", ".join(splits)} and no train folder; {layout}')
    unknown = set(range(len(classes))) - {item.label for item in splits['train']}
    if unknown:
        names = ', '.join(classes[label] for label in sorted(unknown))
        raise UserError(f'{source} has no training images of {names}; add some')
    if len(splits) > 1 and eval_fraction is not None:
        raise UserError(f'{source} has a {next(iter(splits))} folder: leave --eval_fraction away')
    if len(splits) == 1 and eval_fraction is None:
        raise UserError(f'{source} has no test folder; say how much to keep: --eval_fraction=0.1')
    if len(splits) == 1 and eval_fraction:
        splits = _divide(source, splits['train'], eval_fraction, seed)
    return dict(sorted(splits.items(), key=lambda split: _SPLITS.index(split[0]))), classes


def _divide(
    source: str, items: Sequence[Item], eval_fraction: float, seed: int
) -> dict[str, list[Item]]:
    """Return train and test, the fraction taken from each class by chance, both in order."""
    chosen: set[Item] = set()
    for label in sorted({item.label for item in items}):
        of_class = [item for item in items if item.label == label]
        order = np.random.default_rng([seed, label]).permutation(len(of_class))
        chosen.update(of_class[i] for i in order[: round(eval_fraction * len(of_class))])
    splits = {
        'train': [item for item in items if item not in chosen],
        'test': [item for item in items if item in chosen],
    }
    if not all(splits.values()):
        raise UserError(f'--eval_fraction={eval_fraction} of {len(items)} images leaves none apart')
    return splits
