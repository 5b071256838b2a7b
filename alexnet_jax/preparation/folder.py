"""Prepare photographs of one's own from folders named after the classes, on disk or packed."""

import bisect
import bz2
import difflib
import functools
import gzip
import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from etils import epath

from alexnet_jax.preparation import archives, images, layout, listing, shard_files
from alexnet_jax.preparation.photographs import LEFT_OUT, REPORT, write_photographs
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError, escaped

VERSION = '1.0.0'

_PACKED = {b'\x1f\x8b': 'gzip', b'\xfd7zXZ\0': 'xz', b'BZh': 'bzip2'}
_ZIP = (b'PK\3\4', b'PK\5\6')  # the second one is empty
_BLOCK = 1 << 20  # bytes
_FIRST, _LAST = 5, 2  # of many classes, those that are printed


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
    skip_empty: bool = False,
    follow_links: bool = False,
) -> epath.Path:
    """Write the data set NAME 1.0.0 from a folder, a tar or a zip and return its directory.

    The source has `train/CLASS/*` and `test/CLASS/*` (or `validation`, `valid`, `val`), or only
    `CLASS/*`, which `eval_fraction` divides into splits. Outer folders that contain nothing else
    are ignored. tiny-imagenet-200 is read as it is. Classes and examples are sorted by name. Images
    are recognised by their suffixes. Hidden files and folders and those of operating systems are
    left out; the report names them and all other files. Nothing is extracted, except that a
    compressed tar, which has no random access, is decompressed to a temporary tar beside the
    output.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: a folder, a tar, also compressed with gzip, xz or bzip2, or a zip.
      name: name of the data set: lower-case letters, digits and underscores, a letter first.
      size: length of the shorter side and of the crop; 0 keeps the images, which must then all have
        the same size.
      eval_fraction: fraction of each class for the split `test`, if there are no folders of splits;
        0 makes no test split.
      seed: seed of that choice.
      skip_empty: whether to leave out classes without training images, and other folders without
        images where a class could be; otherwise they are an error.
      follow_links: whether to follow links that lead out of a folder, and those to other folders.

    Raises UserError for a source or a name that cannot be used, for a class whose training images
    are all broken, and as `write_photographs` does.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(f'--name={name!r} must consist of a-z, 0-9 and _, with a letter first')
    if size < 0:
        raise UserError(f'--size={size} must be at least 0')
    if not 0 <= (eval_fraction or 0) < 1:
        raise UserError(f'--eval_fraction={eval_fraction} must be at least 0 and below 1')
    path = os.fspath(storage.resolve(source, '--source'))
    target = epath.Path(data_dir).expanduser() / name
    files = _list(path, target, follow_links)
    found = layout.arrange(
        os.fspath(source), files, eval_fraction=eval_fraction, seed=seed, skip_empty=skip_empty
    )
    _print_classes(found.counts)
    directory = write_photographs(
        data_dir,
        files.path,
        name=name,
        version=VERSION,
        description='Photographs in folders named for their classes.',
        size=size,
        class_names=list(found.counts),
        splits=found.splits,
        settings={
            'source': os.fspath(source),
            'size': size,
            'encoding': encoding,
            'eval_fraction': eval_fraction,
            'seed': seed,
            'skip_empty': skip_empty,
            'follow_links': follow_links,
        },
        ignored=found.ignored,
        formats=tuple(dict.fromkeys(images.SUFFIXES.values())),
        turn=True,
        encoding=encoding,
        workers=workers,
        skip_broken=skip_broken,
        findings={'images_by_class': found.counts},
        check=functools.partial(_check_classes, found, target / VERSION / REPORT),
    )
    if files.path != path:  # after an error it is kept for the next run
        os.remove(files.path)
    return directory


def find(path: str) -> tuple[list[tuple[str, archives.Entry]], list[tuple[str, str]]]:
    """Return the images of a folder, an uncompressed tar or a zip, and (kind, name) of the rest.

    An image is the file below the source, and where it is in it.
    """
    found = _list(path, None, follow_links=False)
    names = filter(listing.is_image, found.files)
    return [(found.file(name), found.files[name]) for name in names], found.ignored


def _list(path: str, directory: epath.Path | None, follow_links: bool) -> listing.Listing:
    """Return the listing of a source; a compressed tar is decompressed to the directory."""
    if os.path.isdir(path):
        return listing.of_folder(path, follow_links=follow_links)
    kind = _kind(path)
    if kind in ('tar', 'zip'):
        return listing.of_archive(path, is_zip=kind == 'zip')
    if kind not in _PACKED.values() or directory is None:
        raise UserError(
            f'{path} is neither a folder, nor a tar, plain or compressed with gzip, xz or bzip2, '
            'nor a zip; unpack it first, or, if it should be one of these, download it again'
        )
    unpacked = _unpack(path, kind, directory)
    try:
        if _kind(unpacked) != 'tar':
            raise UserError(f'what is compressed in {path} is no tar; decompress it yourself')
        return listing.of_archive(unpacked)
    except UserError as error:
        os.remove(unpacked)
        raise UserError(str(error).replace(unpacked, path)) from error


def _kind(path: str) -> str:
    """Return how a file is packed, by its first bytes and not by its name; '' for another one."""
    if not os.path.exists(path):
        raise UserError(f'{path} does not exist{_suggestion(path)}')
    if not os.path.isfile(path):
        return ''
    try:
        with open(path, 'rb') as file:
            head = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise UserError(f'cannot read {path} ({error.strerror}); make it readable') from error
    if not head:
        raise UserError(f'{path} is an empty file; download it again')
    for start, kind in _PACKED.items():
        if head.startswith(start):
            return kind
    if head.startswith(_ZIP):
        return 'zip'
    try:
        tarfile.TarInfo.frombuf(head, 'utf-8', 'surrogateescape')
    except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
        return 'tar'  # an empty one
    except tarfile.HeaderError:
        return ''
    return 'tar'


def _suggestion(path: str) -> str:
    """Return the path most like one that does not exist, as the end of an error."""
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    try:
        near = difflib.get_close_matches(name, set(os.listdir(parent)) - {name}, 1)
    except OSError:
        near = []
    return (
        f'; did you mean {os.path.join(parent, near[0])}?' if near else f'; {parent} has no {name}'
    )


def _unpack(path: str, kind: str, directory: epath.Path) -> str:
    """Decompress a tar to DIRECTORY/source_HASH.tar, unless that exists, and return its path.

    HASH is that of the archive's path, size and modification time.
    """
    try:
        stat = os.stat(path)
        identity = f'{os.path.realpath(path)} {stat.st_size} {stat.st_mtime_ns}'
        hashed = hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]
        target = directory / f'source_{hashed}.tar'
        if target.exists():
            return os.fspath(target)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f'{target.name}.{os.getpid()}.tmp')
        print(f'decompressing {path} to {target}, which is removed at the end')
        try:
            with open(path, 'rb') as file, open(temporary, 'wb') as copy:
                for block in _decompressed(file, kind):
                    copy.write(block)
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


def _decompressed(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """Yield the bytes of all compressed streams in a file; zeros may lie between and behind them.

    Raises an error for other bytes, which lzma.open and bz2.open ignore.
    """
    if kind == 'gzip':
        with gzip.open(file) as whole:
            yield from iter(functools.partial(whole.read, _BLOCK), b'')
        return
    data = file.read(_BLOCK)
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if kind == 'xz' else bz2.BZ2Decompressor()
        while not stream.eof:
            if stream.needs_input and not data and not (data := file.read(_BLOCK)):
                raise EOFError('it is truncated')
            yield stream.decompress(data, _BLOCK)
            data = b''
        data = stream.unused_data.lstrip(b'\0')
        while not data and (block := file.read(_BLOCK)):
            data = block.lstrip(b'\0')


def _print_classes(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Print the classes with the numbers of images found, and those without test images."""
    found = [
        f'{name} ({", ".join(f"{split} {count}" for split, count in of_split.items())})'
        for name, of_split in counts.items()
    ]
    print(f'{len(counts)} {"classes" if len(counts) > 1 else "class"}: {_few(found)}')
    missing: dict[str, list[str]] = {}
    for name, of_split in counts.items():
        for split, count in of_split.items():
            if not count:
                missing.setdefault(split, []).append(name)
    for split, names in missing.items():
        print(f'{len(names)} of them without {split} images: {_few(names)}')


def _few(names: Sequence[str]) -> str:
    """Return the names, if there are many only the first and last few."""
    left_out = ['...'] if len(names) > _FIRST + _LAST else names[_FIRST:-_LAST]
    return escaped(', '.join([*names[:_FIRST], *left_out, *names[_FIRST:][-_LAST:]]))


def _check_classes(
    found: layout.Layout, report: epath.Path, reviews: Mapping[str, shard_files.Review]
) -> None:
    """Raise UserError if no training image of a class was written."""
    broken = sorted(text for kind, text in reviews['train'].notes if kind in LEFT_OUT)

    def is_whole(name: str) -> bool:
        at = bisect.bisect_left(broken, f'{name}: ')
        return not ''.join(broken[at : at + 1]).startswith(f'{name}: ')

    whole = {item.label for item in found.splits['train'] if is_whole(item.name)}
    none = [name for label, name in enumerate(found.counts) if label not in whole]
    if none:
        raise UserError(
            f'no training image of {_few(none)} can be used ({report} lists them); repair them in '
            'the source, or remove the folder of such a class'
        )
