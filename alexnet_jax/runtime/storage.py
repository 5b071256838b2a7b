"""Resolve every path that a user gives, refuse what is not supported, and explain failed writes."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from alexnet_jax.runtime.config import Rule
from alexnet_jax.runtime.errors import UserError, first_line

_REMEDY = (
    'object stores are not supported; mount the bucket (gcsfuse, mount-s3) and give the path of '
    'the mount, or copy the files to a disk'
)


_MISREAD = re.compile(r'[\\*?[]')  # Orbax takes *, ? and [ for a pattern; tensorstore takes \ for /
_LONGEST = 3800  # bytes; the files of a checkpoint may add 200, and 4,096 is the limit of Linux
_WHY = {  # what to do about a write that failed
    errno.ENOSPC: 'free some space there',
    errno.EDQUOT: 'free some of your quota there',
    errno.EFBIG: 'raise the limit on the size of a file (ulimit -f)',
    errno.EROFS: 'mount the file system so that it can be written to',
    errno.EACCES: 'change its permissions',
    errno.EPERM: 'change its permissions',
    errno.EIO: 'have the disk looked at (dmesg)',
    errno.ENOENT: 'it was deleted, renamed or unmounted, so bring it back',
    errno.ESTALE: 'it was deleted or unmounted, so bring it back',
    errno.EMFILE: 'raise the limit on open files (ulimit -n)',
}
_OF_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # in the text of its errors


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and '://' not in value and _is_utf8(value)


def _is_utf8(path: str) -> bool:
    return not any('\ud800' <= character <= '\udfff' for character in path)


path_field = Rule(_is_path, f'a path in the file system, or empty; {_REMEDY}')
paths_field = Rule(
    lambda value: isinstance(value, tuple) and all(v and _is_path(v) for v in value),
    f"a tuple of paths in the file system, such as ('runs/a', 'runs/b'); {_REMEDY}",
)


def resolve(path: epath.PathLike, option: str) -> epath.Path:
    """Return a path with `~` expanded.

    Raises UserError, naming the option, for an object store, and for a path that some library below
    would take for another: one that is not UTF-8 or too long, or that etils takes for a bucket.
    """
    if '://' in os.fspath(path):
        raise UserError(f'{option}: {path} is not a path in the file system; {_REMEDY}')
    resolved = os.path.abspath(os.path.expanduser(path))
    if not _is_utf8(resolved):
        raise UserError(f'{option}: {resolved!a} is not UTF-8; choose another name')
    if len(os.fsencode(resolved)) > _LONGEST:
        raise UserError(f'{option}: a path may have {_LONGEST} bytes at most; choose a shorter one')
    if '://' in os.fspath(epath.Path(resolved)):
        raise UserError(
            f'{option}: {resolved} is read as {epath.Path(resolved)}; use another name than '
            f'{resolved[:3]} for that folder or mount'
        )
    return epath.Path(path).expanduser()


@contextlib.contextmanager
def literal(directory: epath.Path) -> Iterator[epath.Path]:
    """Yield a path of an existing directory that Orbax and tensorstore take as it is written.

    Where they would misread the directory's own path, it is reached through a file descriptor.
    Raises UserError for such a path on a system that has no /proc.
    """
    if not _MISREAD.search(os.fspath(directory)):
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = epath.Path(f'/proc/self/fd/{descriptor}')
        if not path.is_dir():
            raise UserError(
                f'{directory} has one of the characters *, ?, [ and \\ in its path, which are '
                'possible on Linux only; choose another name'
            )
        yield path
    finally:
        os.close(descriptor)


def replace(path: epath.Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name first, so that a kill leaves it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # so that it does not keep a disk full
        raise


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn a failed write in the body into the UserError of `unwritten`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        raise unwritten(what, error) from error


def unwritten(what: object, error: BaseException) -> UserError:
    """Return the error for what cannot be written, in one line with its cause and remedy.

    `what` is a path, or says what was to be written where: the system's error often names no file.
    """
    found = _OF_TENSORSTORE.search(str(error))
    number = int(found[1]) if found else getattr(error, 'errno', None)
    cause = os.strerror(number) if number else first_line(error) or type(error).__name__
    remedy = _WHY.get(number or 0, 'look for the cause there')
    return UserError(f'cannot write {what} ({cause}); {remedy}, then run the same command again')


def data_directory(flag: str, field: str = '') -> str:
    """Return --data_dir, else data.dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    named = {
        '--data_dir': flag,
        'config.data.dir': field,
        'TFDS_DATA_DIR': os.environ.get('TFDS_DATA_DIR', ''),
        'the default': '~/tensorflow_datasets',
    }
    option, path = next((option, path) for option, path in named.items() if path)
    return os.fspath(resolve(path, option))
