"""The parts of all commands: a parser with one-line errors, and the exit codes."""

import argparse
import contextlib
import difflib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from alexnet_jax.runtime.errors import print_error, safe_output, user_error


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
    """Run a command and return its exit code.

    It is 0; 2 after an error that the user can mend, in one line; 130 or 143 after Ctrl-C or
    SIGTERM; 141 if the reader of standard output has left.
    """
    try:
        with _signals_interrupt(), safe_output():
            command()
    except KeyboardInterrupt as interrupt:
        number = signal.Signals(interrupt.args[0] if interrupt.args else signal.SIGINT)
        print_error(f'stopped by {number.name}; to go on, run the same command again')
        return 128 + number
    except Exception as error:
        mendable = user_error(error)
        if mendable is None:
            raise
        print_error(mendable)
        return 2
    return 0


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM interrupt the body, so that it cleans up; a second ends at once."""

    def interrupt(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        raise KeyboardInterrupt(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # which alone gets signals
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: old for number, old in handlers.items() if old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
