"""Errors that the user can mend."""

import sys


class UserError(Exception):
    """An error that the user can mend: one line with the cause and the remedy; exit code 2."""


def print_error(message: object) -> None:
    """Print a message of one line to standard error.

    Text and newline are written at once: several processes may share the output.
    """
    sys.stderr.write(f'error: {message}\n')
    sys.stderr.flush()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, to quote it in a message of one line."""
    return str(error).partition('\n')[0]
