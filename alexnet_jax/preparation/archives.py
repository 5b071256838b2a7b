"""Locate files inside tar archives, so that any process can read any file without unpacking."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from alexnet_jax.preparation.images import Unreadable
from alexnet_jax.runtime.errors import UserError

_LINKS_IN_A_ROW = 40  # as many as Linux follows


class Entry(NamedTuple):
    """A range of bytes in a file: a member of a tar, a member of a tar inside it, or all of it."""

    name: str  # of the member, or the path below the source
    offset: int  # in bytes
    size: int


class Lost(NamedTuple):
    """A link to a file that the archive does not have. It counts as an image that is broken."""

    name: str
    target: str
    size: int = 0

    def read(self, path: str | os.PathLike) -> bytes:
        """Raise Unreadable."""
        raise Unreadable('broken', f'a link to {self.target!r}, which is not in the archive')


class Link(NamedTuple):
    """Where a link in an archive leads."""

    target: str
    hard: bool  # the target counts from the top of the archive, otherwise from the link's folder


class Member(NamedTuple):
    """A file, a link or, where there is no content, a folder in an archive."""

    name: str
    content: Any  # an Entry, or what else has its fields `name` and `size` and a method `read`


class Contents(NamedTuple):
    """What there is in an archive when all links are followed that lead to a file in it."""

    files: dict[str, Any]  # name -> Entry, Lost or zips.Zipped
    folders: set[str]  # all of them, with '' for the archive itself
    links: dict[str, bool]  # links that are not followed -> whether to a folder, or out of it
    replaced: list[str]  # one name for each member that a later one of the same name replaced


def plain_name(name: str) -> str | None:
    """Return a path without `.` and doubled slashes, or None if it leads out of the archive."""
    parts = name.split('/')
    if name.startswith('/') or '..' in parts:
        return None
    return '/'.join(part for part in parts if part not in ('', '.'))


def tar_entries(
    path: str | os.PathLike, start: int = 0, size: int | None = None
) -> Iterator[Entry]:
    """Yield the plain files of an uncompressed tar, in its order, reading the headers only.

    `start` and `size` give the bytes of a tar inside the file. The offsets count from the beginning
    of the file. Directories are skipped.

    Raises UserError as `tar_members` does, and for a member that is a link.
    """
    for member in tar_members(path, start, size):
        if isinstance(member.content, Link):
            raise refused(path, member.name, 'is neither a plain file nor a directory')
        if member.content is not None:
            yield member.content


def tar_members(
    path: str | os.PathLike, start: int = 0, size: int | None = None
) -> Iterator[Member]:
    """Yield the files, directories and links of an uncompressed tar, in its order.

    Only the headers and what follows the end are read; the arguments are those of `tar_entries`.

    Raises UserError if the tar cannot be read, is damaged or truncated or continues behind its end,
    and for a member that has an absolute path or `..`, is a hard link to such a path, a device or
    sparse, or reaches beyond the end.
    """
    try:
        # Unbuffered, because a buffer would read kilobytes for each header of 512 bytes.
        with open(path, 'rb', buffering=0) as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            file.seek(start)
            with tarfile.TarFile(fileobj=file) as tar:
                while (member := tar.next()) is not None and member.offset < end:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    if member.size < 0:  # tarfile would read the same header again and again
                        raise tarfile.ReadError(f'a negative size at byte {member.offset}')
                    yield Member(*_member(path, member, end))
            # tarfile treats a header that it cannot read as the end.
            file.seek(tar.offset)
            if member is None and file.read(512).strip(b'\0'):
                raise tarfile.ReadError(f'no header at byte {tar.offset}')
            if member is not None or tar.offset + 512 > end:
                raise tarfile.ReadError(f'it is truncated at byte {end}')
            _check_rest(path, file, end)
    except (
        *(OSError, tarfile.TarError),
        *(ValueError, OverflowError, IndexError, RecursionError),  # tarfile, for odd headers
    ) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'cannot read {os.fspath(path)} as a tar ({reason}); copy or download it again'
        ) from error


def _member(path: str | os.PathLike, member: tarfile.TarInfo, end: int) -> tuple[str, Any]:
    name = plain_name(member.name)
    if name is None:
        problem = 'has a path that leads out of the archive'
    elif member.isdir():
        return name, None
    elif not name:
        problem = 'has no name'
    elif member.islnk() and plain_name(member.linkname) is None:
        problem = 'is a hard link that leads out of the archive'
    elif member.issym() or member.islnk():
        return name, Link(member.linkname, member.islnk())
    elif not member.isreg() or member.issparse():
        problem = 'is neither a plain file nor a directory'
    elif member.offset_data + member.size > end:
        problem = 'reaches beyond the end of the archive'
    else:
        return name, Entry(name, member.offset_data, member.size)
    raise refused(path, member.name, problem)


def _check_rest(path: str | os.PathLike, file: Any, end: int) -> None:
    """Raise UserError if anything but zeros lies between the position in the file and `end`."""
    while block := file.read(min(1 << 20, max(end - file.tell(), 0))):
        if block.strip(b'\0'):
            at = file.tell() - len(block.lstrip(b'\0'))
            raise UserError(
                f'{os.fspath(path)} continues at byte {at}, behind the end of its tar, as after '
                '"cat a.tar b.tar"; unpack it with "tar --ignore-zeros -xf" and name the folder'
            )


def refused(
    path: str | os.PathLike, member: str, problem: str, remedy: str = 'copy or download it again'
) -> UserError:
    """Return the error for a member that cannot be used."""
    return UserError(f'{os.fspath(path)}: its member {member!r} {problem}; {remedy}')


def contents(path: str | os.PathLike, members: Iterable[Member]) -> Contents:
    """Return what there would be if the archive were unpacked by `tar` or `unzip`.

    Of members with the same name the last one counts. A hard link is the file that had the target's
    name when the link came, and a symbolic link is the one that has it at the end.

    Raises UserError for a name that is both that of a file or link and of a folder.
    """
    files: dict[str, Any] = {}
    links: dict[str, Link] = {}
    folders = {''}
    replaced = []
    for name, content in members:
        if content is None:
            folders.add(name)
            add_parents(folders, name)
            continue
        if name in files or name in links:
            replaced.append(name)
        if isinstance(content, Link) and content.hard:
            content = _hard_link(name, content, files, links)
        files.pop(name, None)
        links.pop(name, None)
        if isinstance(content, Link):
            links[name] = content
        else:
            files[name] = content
        add_parents(folders, name)
    for name in sorted(folders & (files.keys() | links.keys())):
        raise UserError(
            f'{os.fspath(path)} has {name!r} both as a folder and as a file or a link; unpack it '
            'and name the folder'
        )
    not_followed = {}
    for name in links:
        target = _follow(name, links, folders)
        if target is None or target in folders:
            not_followed[name] = target is not None
        else:
            entry = files.get(target, Lost(name, links[name].target))
            files[name] = entry._replace(name=name)
    return Contents(files, folders, not_followed, replaced)


def add_parents(folders: set[str], name: str) -> None:
    """Add the folders above `name` to a set that has, with each folder, those above it."""
    while (name := name.rpartition('/')[0]) and name not in folders:
        folders.add(name)


def _hard_link(name: str, link: Link, files: dict[str, Any], links: dict[str, Link]) -> Any:
    """Return the file or the symbolic link that a hard link is another name of."""
    target = plain_name(link.target) or ''
    if target in links:
        return links[target]
    return files.get(target, Lost(name, link.target))._replace(name=name)


def _follow(name: str, links: dict[str, Link], folders: set[str]) -> str | None:
    """Return the path to which a symbolic link leads, or None if that is not in the archive."""
    todo, done, followed = name.split('/')[::-1], [], 0
    while todo:
        part = todo.pop()
        if part in ('', '.'):
            continue
        if part == '..':
            if not done:
                return None
            if '/'.join(done) not in folders:
                return f'{"/".join(done)}/..'  # no member has such a name
            done.pop()
            continue
        done.append(part)
        link = links.get('/'.join(done))
        if link:
            followed += 1
            if link.target.startswith('/'):
                return None
            if followed > _LINKS_IN_A_ROW:
                return f'{name}/..'
            done.pop()
            todo += link.target.split('/')[::-1]
    return '/'.join(done)


def read_entry(path: str | os.PathLike, entry: Any) -> bytes:
    """Return the bytes of an entry of the file `path`.

    Raises UserError if they cannot be read; images.Unreadable for a `Lost` one or for one of a zip
    that is damaged.
    """
    if not isinstance(entry, Entry):
        return entry.read(path)
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
