"""What all commands share: how a command line is read, and how a mistake ends."""

import argparse
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from alexnet_jax.runtime.errors import UserError, print_error


class Parser(argparse.ArgumentParser):
    """Reads a command line; a mistake is one line that says what is possible, and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        keep_lines = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=keep_lines, allow_abbrev=False, **settings)

    def parse_args(self, args=None, namespace=None):  # pyright: ignore
        """Parse; for an unknown option suggest the nearest one, which argparse does not."""
        arguments, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return arguments

    def refuse(self, unknown: Sequence[str]) -> None:
        """End with the first argument that the parser does not know, if there is one."""
        if not unknown:
            return
        option = unknown[0].partition('=')[0]
        close = difflib.get_close_matches(option, list(self._options()), n=1)
        hint = f'; did you mean {close[0]}?' if close else ''
        kind = 'no option' if option.startswith('-') else 'an argument too many'
        self.error(f'{option} is {kind}{hint}')

    def _options(self) -> Iterator[str]:
        """Yield the options of this parser and of those below it."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._options()

    def error(self, message: str) -> NoReturn:
        """Print the mistake and the remedy, and end with exit code 2."""
        self.exit(2, f'error: command line: {message}; {self.prog} --help shows what is possible\n')


def run(command: Callable[[], object]) -> int:
    """Do a command; return its exit code: 0, or 2 after one line for what the user can mend."""
    try:
        command()
    except UserError as error:
        print_error(error)
        return 2
    return 0
