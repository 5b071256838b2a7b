"""Locate files inside zip archives, so that any process can read any file without unpacking."""

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from alexnet_jax.preparation import archives
from alexnet_jax.preparation.images import MAX_BYTES, Unreadable
from alexnet_jax.runtime.errors import UserError

_HEADER, _END = struct.Struct('<4s22x2H'), 22  # of a member; bytes of the archive's last record
_DOS, _UNIX = 0, (3, 19)  # the systems that wrote an archive, 19 is macOS
_ENCRYPTED, _UTF_8 = 1, 1 << 11  # flags of a member
_LONGEST_LINK = 4096  # bytes


class Zipped(NamedTuple):
    """A member of a zip."""

    name: str
    offset: int  # of its header, in bytes
    size: int  # of the file, in bytes
    packed: int  # bytes in the archive
    deflated: bool
    crc: int

    def read(self, path: str | os.PathLike) -> bytes:
        """Return the bytes of the file; raise Unreadable if they are too many or damaged."""
        if self.size > MAX_BYTES:
            raise Unreadable('too large', f'{self.size} bytes')
        head = archives.read_entry(path, archives.Entry(self.name, self.offset, _HEADER.size))
        signature, *lengths = _HEADER.unpack(head)
        # Deflating makes no file twice as long.
        if signature != b'PK\3\4' or self.packed > 2 * self.size + 1024:
            raise Unreadable('broken', 'its header in the zip is damaged')
        start = self.offset + _HEADER.size + sum(lengths)
        data = archives.read_entry(path, archives.Entry(self.name, start, self.packed))
        if self.deflated:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
            except zlib.error as error:
                raise Unreadable('broken', f'it is damaged in the zip: {error}') from error
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise Unreadable('broken', 'it is damaged in the zip: its checksum is wrong')
        return data


def zip_members(path: str | os.PathLike) -> Iterator[archives.Member]:
    """Yield the files, directories and symbolic links of a zip, in its order.

    Names are read as UTF-8 where the member or a Unix program says so, otherwise as code page 437.

    Raises UserError if the zip cannot be read or is more than one zip, and for a member that has an
    absolute path or `..`, is encrypted, is neither stored nor deflated, or is a device.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            first = min((info.header_offset for info in members), default=archive.start_dir)
            end = os.path.getsize(path) - _END - len(archive.comment)
        with open(path, 'rb') as file:
            file.seek(max(end, 0))
            complete = file.read(4) == b'PK\5\6'
    except (
        *(OSError, zipfile.BadZipFile, NotImplementedError),
        *(ValueError, OverflowError, IndexError, struct.error),  # zipfile, for odd records
    ) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'cannot read {os.fspath(path)} as a zip ({reason}); copy or download it again'
        ) from error
    if first or not complete:
        where = 'in front of its first member' if first else 'behind its end'
        raise UserError(
            f'{os.fspath(path)} has other bytes {where}, as after "cat a.zip b.zip"; unpack it and '
            'name the folder'
        )
    for info in members:
        yield archives.Member(*_member(path, info))


def _member(path: str | os.PathLike, info: zipfile.ZipInfo) -> tuple[str, Any]:
    full = _name(info)
    name = archives.plain_name(full)
    mode = info.external_attr >> 16 if info.create_system in _UNIX else 0
    kind = stat.S_IFMT(mode)
    remedy = 'unpack the zip and name the folder'
    if name is None:
        problem = 'has a path that leads out of the archive'
    elif full.endswith('/') or kind == stat.S_IFDIR:
        return name, None
    elif not name:
        problem = 'has no name'
    elif info.flag_bits & _ENCRYPTED:
        problem = 'is encrypted'
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = f'is compressed by method {info.compress_type}, which cannot be read'
    elif kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        problem = 'is neither a plain file nor a directory'
    else:
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        entry = Zipped(
            *(name, info.header_offset, info.file_size, info.compress_size, deflated, info.CRC)
        )
        return name, _link(path, entry) if kind == stat.S_IFLNK else entry
    raise archives.refused(path, full, problem, remedy)


def _name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & _UTF_8 and info.create_system in _UNIX:
        with contextlib.suppress(UnicodeError):  # zipfile has read it as code page 437
            return name.encode('cp437').decode()
    if info.create_system == _DOS and '/' not in name:  # by old programs on Windows
        return name.replace('\\', '/')
    return name


def _link(path: str | os.PathLike, entry: Zipped) -> archives.Link:
    try:
        if entry.size > _LONGEST_LINK:
            raise Unreadable('too large', f'{entry.size} bytes')
        target = entry.read(path).decode(errors='surrogateescape')
    except Unreadable as error:
        raise archives.refused(path, entry.name, f'is a link that is broken ({error})') from error
    return archives.Link(target, hard=False)
