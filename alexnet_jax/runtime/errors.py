"""Errors that the user can mend."""


class UserError(Exception):
    """What the user can mend: one line that names the thing and the remedy. Ends in exit code 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text: all of it that fits into an error of one line."""
    return str(error).partition('\n')[0]
