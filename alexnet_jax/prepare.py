"""Prepare a data set: `python -m alexnet_jax.prepare digits [--data_dir=DIR]`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import tensorflow_datasets as tfds

from alexnet_jax.config import UserError, data_directory
from alexnet_jax.data import digits


class _Parser(argparse.ArgumentParser):
    """Ends a wrong command line in one line, as all errors of the user's do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message}; {self.prog} --help shows what is possible\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    parser = _Parser(prog='python -m alexnet_jax.prepare', description='Prepare a data set.')
    commands = parser.add_subparsers(metavar='DATA_SET', required=True)
    command = commands.add_parser(
        'digits', help="scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no download"
    )
    command.set_defaults(prepare=digits.prepare_digits)
    command.add_argument(
        '--data_dir',
        default='',
        metavar='DIR',
        help='where data sets live; otherwise TFDS_DATA_DIR, else ~/tensorflow_datasets',
    )
    arguments = parser.parse_args(argv)
    try:
        directory = arguments.prepare(data_directory(arguments.data_dir, ''))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    info = tfds.builder_from_directory(directory).info
    counts = ', '.join(f'{name} {split.num_examples}' for name, split in info.splits.items())
    print(f'{info.full_name} is in {directory}: {counts} examples')
    return 0


if __name__ == '__main__':
    sys.exit(main())
