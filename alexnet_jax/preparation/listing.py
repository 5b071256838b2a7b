"""List what files there are in a folder, a tar or a zip, without reading them."""

import os
from typing import Any, NamedTuple

import tqdm

from alexnet_jax.preparation import archives, images, zips
from alexnet_jax.preparation.images import Unreadable
from alexnet_jax.runtime.errors import UserError

IMAGES = tuple(f'.{suffix}' for suffix in images.SUFFIXES)
_TEXT = '.txt'  # annotations, see `layout`

# Kinds of what is ignored.
HIDDEN, LINK, OTHER = 'hidden or system', 'link', 'no image'

# What Linux, macOS, Windows and network drives put into folders, besides names with a dot in front.
_OF_SYSTEMS = {
    *('lost+found', '__macosx', 'icon\r', 'network trash folder', 'temporary items'),
    *('$recycle.bin', 'recycler', 'system volume information'),
    *('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'folder.htt'),
    *('@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot', '~snapshot'),
    *('__pycache__',),
}


class Listing(NamedTuple):
    """The files of a source, and what it has besides; all names are paths below the source."""

    path: str
    is_archive: bool
    files: dict[str, Any]  # images and text files; the values are those of `archives.Contents`
    folders: set[str]  # with links that may be folders
    ignored: list[tuple[str, str]]  # (kind, name)

    def file(self, name: str) -> str:
        """Return the file that a `photographs.Item` reads, '' for the source itself."""
        return '' if self.is_archive else name

    def read_text(self, name: str) -> str:
        """Return a file as text; raise UserError if it cannot be read or is not UTF-8."""
        path = self.path if self.is_archive else os.path.join(self.path, name)
        try:
            return archives.read_entry(path, self.files[name]).decode()
        except (UnicodeError, Unreadable) as error:
            raise UserError(
                f'cannot read {name!r} of {self.path} as UTF-8 text ({error}); restore it'
            ) from error


def is_image(name: str) -> bool:
    """Return whether a file is an image by its suffix."""
    return name.lower().endswith(IMAGES)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder, named without those above it, is hidden or of a system."""
    return name.startswith('.') or name.lower() in _OF_SYSTEMS


def of_folder(root: str, *, follow_links: bool = False) -> Listing:
    """Return the listing of a folder.

    Links to files inside the folder are followed; links out of it and links to folders are followed
    only with `follow_links`, and never in a circle.

    Raises UserError for a folder that cannot be listed.
    """
    found = Listing(root, False, {}, set(), [])
    inside = os.path.join(os.path.realpath(root), '')
    try:
        # The folders to list, each with the identities of itself and of those above it.
        pending: list[tuple[str, tuple[Any, ...]]] = [('', _identity(root, follow_links))]
        with tqdm.tqdm(desc='listing', unit=' files', disable=None) as progress:
            while pending:
                folder, above = pending.pop()
                with os.scandir(os.path.join(root, folder)) as entries:
                    for entry in entries:
                        progress.update()
                        name = os.path.join(folder, entry.name)
                        if is_hidden(entry.name):
                            found.ignored.append((HIDDEN, name))
                        elif _is_folder(entry):
                            found.folders.add(name)
                            here = _identity(entry.path, follow_links)
                            if entry.is_symlink() and (not follow_links or here[0] in above):
                                found.ignored.append((LINK, name))
                            else:
                                pending.append((name, above + here))
                        else:
                            _add_file(found, name, entry, '' if follow_links else inside)
    except OSError as error:
        raise UserError(
            f'cannot list {error.filename} ({error.strerror}); make it readable, or move it away'
        ) from error
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Unlike the entry's method, isdir takes a link to itself for what is no folder.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _add_file(found: Listing, name: str, entry: os.DirEntry[str], inside: str) -> None:
    """Add a file, if it is one; a link must lead to a file in the folder `inside`."""
    if entry.is_symlink() and not (
        os.path.isfile(entry) and os.path.realpath(entry).startswith(inside)
    ):
        _add_link(found, name, is_file=os.path.isfile(entry))
    elif not entry.is_file():
        found.ignored.append(('no file', name))
    elif _is_wanted(name):
        found.files[name] = archives.Entry(name, 0, entry.stat().st_size)
    else:
        found.ignored.append((OTHER, name))


def _identity(path: str, needed: bool) -> tuple[Any, ...]:
    """Return a tuple of what identifies a folder in the file system, empty if it is not needed."""
    if not needed:
        return ()
    found = os.stat(path)
    return ((found.st_dev, found.st_ino),)


def _is_wanted(name: str) -> bool:
    return name.lower().endswith((*IMAGES, _TEXT))


def _add_link(found: Listing, name: str, *, is_file: bool = False) -> None:
    """Add a link that is not followed; without a suffix it may be that of a folder."""
    found.ignored.append((LINK, name))
    if not is_file and not os.path.splitext(name)[1]:
        found.folders.add(name)


def of_archive(path: str, *, is_zip: bool = False) -> Listing:
    """Return the listing of an uncompressed tar or a zip.

    Links to its files are followed, wherever these are in the archive; other links are not.

    Raises UserError as `archives.tar_members`, `zips.zip_members` and `archives.contents` do.
    """
    members = zips.zip_members(path) if is_zip else archives.tar_members(path)
    bar = tqdm.tqdm(members, desc='listing', unit=' files', disable=None)
    inside = archives.contents(path, bar)
    found = Listing(path, True, {}, set(), [])
    hidden = set()
    for name in {*inside.folders, *inside.files, *inside.links} - {''}:
        if part := _hidden_part(name):
            hidden.add(part)
        elif name in inside.folders:
            found.folders.add(name)
        elif name in inside.links:
            _add_link(found, name)
            if inside.links[name]:
                found.folders.add(name)
        elif _is_wanted(name):
            found.files[name] = inside.files[name]
        elif isinstance(inside.files[name], archives.Lost):
            _add_link(found, name)
        else:
            found.ignored.append((OTHER, name))
    found.ignored.extend((HIDDEN, name) for name in hidden)
    found.ignored.extend(('replaced by a later member', name) for name in inside.replaced)
    return found


def _hidden_part(name: str) -> str:
    """Return the path down to the first part that is hidden, or ''."""
    parts = name.split('/')
    for depth, part in enumerate(parts, 1):
        if is_hidden(part):
            return '/'.join(parts[:depth])
    return ''
