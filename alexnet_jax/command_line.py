"""The parts of all commands: a parser with one-line errors, and the exit code of a UserError."""

import argparse
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from alexnet_jax.runtime.errors import UserError, print_error


class Parser(argparse.ArgumentParser):
    """Parses a command line; a mistake prints one line with a hint and ends with exit code 2."""

    def __init__(self, **settings: Any) -> None:
        keep_lines = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=keep_lines, allow_abbrev=False, **settings)

    def parse_args(self, args=None, namespace=None):  # pyright: ignore
        """Parse the arguments, and suggest the nearest option for an unknown one."""
        arguments, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return arguments

    def refuse(self, unknown: Sequence[str]) -> None:
        """End with an error that names the first unknown argument, if there is one."""
        if not unknown:
            return
        option = unknown[0].partition('=')[0]
        close = difflib.get_close_matches(option, list(self._options()), n=1)
        hint = f'; did you mean {close[0]}?' if close else ''
        kind = 'unknown option' if option.startswith('-') else 'unexpected argument'
        self.error(f'{kind} {option}{hint}')

    def _options(self) -> Iterator[str]:
        """Yield the options of this parser and of its subparsers."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._options()

    def error(self, message: str) -> NoReturn:
        """Print the mistake and the remedy, and end with exit code 2."""
        self.exit(2, f'error: command line: {message}; {self.prog} --help lists the options\n')


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit code: 0, or 2 after printing a UserError in one line."""
    try:
        command()
    except UserError as error:
        print_error(error)
        return 2
    return 0
