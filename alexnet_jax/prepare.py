"""Prepare a data set: `python -m alexnet_jax.prepare {digits,imagenet,folder} [...]`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.preparation import digits, folder, imagenet, photographs
from alexnet_jax.runtime import storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    arguments = vars(_parser().parse_args(argv))
    return command_line.run(lambda: _prepare(**arguments))


def _prepare(prepare: Any, data_dir: str, as_json: bool = False, **settings: Any) -> None:
    """Prepare a data set, with its statistics where it is of photographs, and say what it holds."""
    data_dir = storage.data_directory(data_dir)
    directory = prepare(data_dir, **settings)
    info = tfds.builder_from_directory(directory).info
    if (directory / photographs.REPORT).exists():
        report = _statistics(info, data_dir, directory, settings['workers'])
        _show(report, directory)
        if as_json:
            print(json.dumps(report))
            return
    counts = ', '.join(f'{name} {split.num_examples}' for name, split in info.splits.items())
    print(f'{info.full_name} is in {directory}: {counts} examples')


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog='python -m alexnet_jax.prepare', description='Prepare a data set.')
    commands = parser.add_subparsers(metavar='DATA_SET', required=True)

    def add(name: str, prepare: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(prepare=prepare)
        command.add_argument(
            '--data_dir',
            default='',
            metavar='DIR',
            help='where data sets live; otherwise TFDS_DATA_DIR, else ~/tensorflow_datasets',
        )
        return command

    add(
        'digits',
        digits.prepare_digits,
        "scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no download",
    )
    command = add(
        'imagenet',
        imagenet.prepare_imagenet,
        'ILSVRC-2012 or 2010 from the original archives, as imagenet2012 of 256x256 pixels',
    )
    _add_photographs(
        command,
        'DIR',
        'the folder of the two ILSVRC2012_img_*.tar, or the directory of a tfds imagenet2012 that '
        'is stored as array_record; for 2010, of ILSVRC2010_images_*.tar, devkit and answers',
    )
    command.add_argument(
        '--year',
        type=int,
        choices=imagenet.EDITIONS,
        default=2012,
        help="of the challenge; 2010 is that of the paper's Table 1",
    )
    command.add_argument('--allow_subset', action='store_true', help='accept fewer images')
    command = add('folder', folder.prepare_folder, 'own photographs, in folders named for classes')
    _add_photographs(
        command,
        'DIR|TAR',
        'train/CLASS/* and test/CLASS/*, or CLASS/*: a folder or a tar, .tar.xz, .tar.gz, .tar.bz2',
    )
    command.add_argument('--name', required=True, help='of the data set, for data.name')
    command.add_argument(
        '--size', type=int, default=256, help='shorter side and crop; 0 keeps images of one size'
    )
    command.add_argument(
        '--eval_fraction',
        type=float,
        metavar='F',
        help='the part of each class for the split test where there is no such folder; 0: no split',
    )
    command.add_argument('--seed', type=int, default=0, help='of that choice')
    return parser


def _add_photographs(command: argparse.ArgumentParser, source: str, help: str) -> None:
    """Add the flags that `imagenet` and `folder` share."""
    command.add_argument('--source', required=True, metavar=source, help=help)
    command.add_argument(
        '--workers',
        type=int,
        choices=range(1, 1025),
        default=_cores(),
        metavar='N',
        help='processes; otherwise one for each CPU core',
    )
    command.add_argument(
        '--encoding',
        choices=('raw', 'jpeg'),
        default='raw',
        help='store pixels, or JPEG of quality 95: a fifth of the space, more work in training',
    )
    command.add_argument(
        '--skip_broken', action='store_true', help='leave out images that cannot be read'
    )
    command.add_argument(
        '--json', dest='as_json', action='store_true', help='print the report as the last line'
    )


def _cores() -> int:
    """Return how many CPU cores this process may use; macOS does not say, so there all of them."""
    known = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _statistics(info: Any, data_dir: str, directory: epath.Path, workers: int) -> dict[str, Any]:
    """Compute the statistics as training would, so that it finds them; return the report."""
    from alexnet_jax.input.sources import DataConfig
    from alexnet_jax.training import dataset  # imports JAX, which the workers do not need

    config = DataConfig(
        name=f'{info.name}:{info.version}',
        dir=data_dir,
        train_split='train',
        eval_split=next((split for split in info.splits if split != 'train'), 'train'),
        image_shape=(),
        train_examples=0,
        eval_examples=0,
        read_threads=workers,
        prefetch_batches=1,
    )
    _, statistics = dataset.load(config)
    return photographs.add_statistics(directory, statistics)


def _show(report: dict[str, Any], directory: epath.Path) -> None:
    """Print what was odd, and the statistics."""
    for split, kinds in report['counts'].items():
        for kind, count in kinds.items():
            print(f'{split}: {count} {kind}, for example {report["names"][split][kind][0]}')
    for kind, names in report['ignored'].items():
        print(f'not used: {len(names)} {kind}, for example {names[0]}')
    statistics = report['statistics']
    mean = ', '.join(f'{value:.2f}' for value in statistics['mean'])
    deviations = ', '.join(f'{value:.2f}' for value in statistics['standard_deviations'])
    print(f'mean of red, green, blue {mean}; standard deviations of the colours {deviations}')
    print(f'{directory / photographs.REPORT} has it all')


if __name__ == '__main__':
    sys.exit(main())
