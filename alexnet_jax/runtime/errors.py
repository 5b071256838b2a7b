"""Errors that the user can mend, and a standard output that ends no command."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ends


class UserError(Exception):
    """An error that the user can mend: one line with the cause and the remedy; exit code 2."""


def user_error(error: BaseException) -> UserError | None:
    """Return the UserError that an error amounts to, or None for a bug.

    An error that the operating system reports (full disk, no permission, missing file) is the
    user's to mend. Libraries also raise OSError for errors of their own; those have no `errno`.
    """
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError) or not error.errno:
        return None
    named = isinstance(error.filename, str | bytes)
    where = f'{os.fsdecode(error.filename)}: ' if named else ''
    return UserError(f'{where}{error.strerror}; mend that, then run the same command again')


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise UserError for an error of the operating system in the body."""
    try:
        yield
    except OSError as error:
        if mendable := user_error(error):
            raise mendable from error
        raise


def print_error(message: object) -> None:
    """Print a message of one line to standard error.

    Text and newline are written at once: several processes may share the output.
    """
    line = escaped(str(message))
    with contextlib.suppress(OSError):  # of a full disk, or a reader that has left
        sys.stderr.write(f'error: {line}\n')
        sys.stderr.flush()


def escaped(text: str) -> str:
    """Return a text as it is printed in one line: what cannot be printed is escaped."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, to quote it in a message of one line."""
    return str(error).partition('\n')[0]


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Let the body print whatever happens to standard output; its work goes on.

    Characters that the output cannot encode are escaped, and a closed output is like /dev/null.
    Output that could not be written is an error after the body: exit code 141 if the reader of a
    pipe has left, as for a program that SIGPIPE ends, and otherwise a UserError.
    """
    _open_closed_streams()
    stream = sys.stdout
    output = _Output(stream)
    try:
        with contextlib.redirect_stdout(output):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        output.flush()
        if output.error:  # otherwise Python would try again on its way out
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if isinstance(output.error, BrokenPipeError):
        sys.exit(_BROKEN_PIPE)
    if output.error:
        raise UserError(
            f'cannot write to standard output ({output.error.strerror}), so what was printed is '
            'incomplete; send it elsewhere, then run the same command again'
        )


class _Output:
    """A text stream that keeps its first error instead of raising it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.error = stream, None

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or 'utf-8'
        self._try(self._stream.write, text.encode(encoding, 'backslashreplace').decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Any, *text: str) -> None:
        if self.error is None:
            try:
                write(*text)
            except OSError as error:
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed_streams() -> None:
    """Replace standard streams that are closed, which Python has as None.

    Their numbers are taken, too: the next file would get one, and what C++ libraries print with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
