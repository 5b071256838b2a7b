"""Locate files inside tar archives, so that any process can read any file without unpacking."""

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from alexnet_jax.runtime.errors import UserError


class Entry(NamedTuple):
    """A range of bytes in a file: a member of a tar, a member of a tar inside it, or all of it."""

    name: str  # of the member, or the path below the source
    offset: int  # in bytes
    size: int


def tar_entries(
    path: str | os.PathLike, start: int = 0, size: int | None = None
) -> Iterator[Entry]:
    """Yield the plain files of an uncompressed tar, in its order, reading the headers only.

    `start` and `size` give the bytes of a tar inside the file. The offsets count from the beginning
    of the file. Directories are skipped, and a leading `./` is dropped.

    Raises UserError if the tar cannot be read, is damaged or truncated, and for a member that has
    an absolute path or `..`, is a link or a device, or reaches beyond the end.
    """
    try:
        # Unbuffered, because a buffer would read kilobytes for each header of 512 bytes.
        with open(path, 'rb', buffering=0) as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            file.seek(start)
            with tarfile.TarFile(fileobj=file) as tar:
                while (member := tar.next()) is not None and member.offset < end:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    if not member.isdir():
                        yield _entry(path, member, end)
            # tarfile treats a header that it cannot read as the end.
            file.seek(tar.offset)
            if member is None and file.read(512).strip(b'\0'):
                raise tarfile.ReadError(f'no header at byte {tar.offset}')
            if member is None and tar.offset + 512 > end:
                raise tarfile.ReadError(f'it is truncated at byte {end}')
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'cannot read {os.fspath(path)} as a tar ({reason}); copy or download it again'
        ) from error


def _entry(path: str | os.PathLike, member: tarfile.TarInfo, end: int) -> Entry:
    name = member.name.removeprefix('./')
    if not member.isreg() or member.issparse():
        problem = 'is neither a plain file nor a directory'
    elif name.startswith('/') or '..' in name.split('/'):
        problem = 'has a path that leads out of the archive'
    elif member.offset_data + member.size > end:
        problem = 'reaches beyond the end of the archive'
    else:
        return Entry(name, member.offset_data, member.size)
    raise UserError(
        f'{os.fspath(path)}: its member {member.name!r} {problem}; copy or download it again'
    )


def read_entry(path: str | os.PathLike, entry: Entry) -> bytes:
    """Return the bytes of an entry of the file `path`; raise UserError if they cannot be read."""
    try:
        with open(path, 'rb', buffering=0) as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise UserError(
            f'cannot read {os.fspath(path)} ({error.strerror}); restore it, then run again'
        ) from error
    if len(data) != entry.size:
        raise UserError(
            f'{os.fspath(path)} ends within {entry.name}, so it was changed or truncated; copy or '
            'download it again'
        )
    return data
