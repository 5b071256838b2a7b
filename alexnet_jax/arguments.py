"""The command lines of commands that take no configuration."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Ends a wrong command line in one line, as all errors of the user's do."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and the remedy, and end with exit code 2."""
        self.exit(2, f'error: {message}; {self.prog} --help shows what is possible\n')
