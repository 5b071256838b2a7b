"""Prepare photographs of one's own from folders named after the classes, on disk or in a tar."""

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

    The source has `train/CLASS/*` and `test/CLASS/*` (or `validation`, `val`), or only `CLASS/*`,
    which `eval_fraction` divides into splits. Outer folders that contain nothing else are ignored.
    Classes and examples are sorted by name. Images are recognised by the suffixes of JPEG and PNG;
    the report names all other files and the links that leave the source. Nothing is extracted,
    except that a compressed tar, which has no random access, is decompressed to a temporary tar
    beside the output.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: a folder, or a `.tar`, `.tar.xz`, `.tar.gz` or `.tar.bz2`.
      name: name of the data set: lower-case letters, digits and underscores, a letter first.
      size: length of the shorter side and of the crop; 0 keeps the images, which must then all have
        the same size.
      eval_fraction: fraction of each class for the split `test`, if there are no folders of splits;
        0 makes no test split.
      seed: seed of that choice.

    Raises UserError for a source or a name that cannot be used, and as `write_photographs` does.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(f'--name={name!r} must consist of a-z, 0-9 and _, with a letter first')
    if size < 0 or not 0 <= (eval_fraction or 0) < 1:
        raise UserError(
            f'--size={size} must be at least 0, and --eval_fraction={eval_fraction} at least 0 and '
            'below 1'
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
    if path != os.fspath(source):  # after an error it is kept for the next run
        os.remove(path)
    return directory


def find(path: str) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the images of a folder or an uncompressed tar, and (kind, name) of other files."""
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
    """Return the files below a folder, and the links out of it, which are not followed."""
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
    raise UserError(
        f'cannot list {error.filename} ({error.strerror}); make it readable, or move it away'
    ) from error


def _unpack(path: str, directory: epath.Path) -> str:
    """Decompress a tar to DIRECTORY/source_HASH.tar, unless that exists, and return its path.

    HASH is that of the archive's path, size and modification time.
    """
    try:
        stat = os.stat(path)
        identity = f'{os.path.realpath(path)} {stat.st_size} {stat.st_mtime_ns}'.encode()
        target = directory / f'source_{hashlib.sha256(identity).hexdigest()[:16]}.tar'
        if target.exists():
            return os.fspath(target)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f'{target.name}.{os.getpid()}.tmp')
        print(f'decompressing {path} to {target}, which is removed at the end')
        try:
            opened: Any = _OPEN[os.path.splitext(path)[1]](path)
            with opened, open(temporary, 'wb') as copy:
                shutil.copyfileobj(opened, copy, 1 << 20)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'cannot decompress {path} to {directory} ({reason}); download it again, or decompress '
            'it yourself and name the tar'
        ) from error
    return os.fspath(target)


def _splits(
    source: str, found: Sequence[Found], eval_fraction: float | None, seed: int
) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the examples of each split, and the classes."""
    layout = 'it must contain train/CLASS/* and test/CLASS/*, or CLASS/*, of JPEG or PNG images'
    if not found:
        raise UserError(f'{source} contains no image; {layout}')
    parts = {entry.name: entry.name.split('/') for _, entry in found}
    above = 0  # number of outer folders, which contain all images
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
            raise UserError(f'{source} contains {entry.name}; {layout}')
    classes = sorted({p[-2] for p, _, _ in examples})
    splits: dict[str, list[Item]] = {}
    for p, file, entry in examples:
        item = Item(file, entry, classes.index(p[-2]))
        splits.setdefault(p[0] if has_splits else 'train', []).append(item)
    if 'train' not in splits:
        raise UserError(f'{source} contains {", ".join(splits)} but no train folder; {layout}')
    unknown = set(range(len(classes))) - {item.label for item in splits['train']}
    if unknown:
        names = ', '.join(classes[label] for label in sorted(unknown))
        raise UserError(f'{source} has no training images of {names}; add some')
    if len(splits) > 1 and eval_fraction is not None:
        raise UserError(
            f'{source} has folders for {" and ".join(splits)}; leave out --eval_fraction'
        )
    if len(splits) == 1 and eval_fraction is None:
        raise UserError(
            f'{source} has no test folder; say which fraction of the images to test on, for '
            'example --eval_fraction=0.1'
        )
    if len(splits) == 1 and eval_fraction:
        splits = _divide(source, splits['train'], eval_fraction, seed)
    return dict(sorted(splits.items(), key=lambda split: _SPLITS.index(split[0]))), classes


def _divide(
    source: str, items: Sequence[Item], eval_fraction: float, seed: int
) -> dict[str, list[Item]]:
    """Return the splits train and test, in order; the fraction of each class is drawn at random."""
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
        raise UserError(
            f'--eval_fraction={eval_fraction} of {len(items)} images leaves one split empty; '
            'choose another fraction, or 0 for no test split'
        )
    return splits
