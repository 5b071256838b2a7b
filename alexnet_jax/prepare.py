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
from alexnet_jax.runtime.errors import escaped


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _prepare(**vars(_parser().parse_args(argv))))


def _prepare(prepare: Any, data_dir: str, as_json: bool = False, **settings: Any) -> None:
    """Prepare a data set, compute the statistics of photographs, and print a summary."""
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
            help='directory of data sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)',
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
        'ILSVRC-2012 or ILSVRC-2010 from archives or folders, resized to 256x256 pixels',
    )
    _add_photographs(
        command,
        'DIR',
        'the folder of the two ILSVRC2012_img_*.tar or of train/SYNSET/* and val/* or '
        "val/SYNSET/*, Kaggle's folder with ILSVRC/Data/CLS-LOC, or the directory of a tfds "
        'imagenet2012 that is stored as array_record; for 2010, the folder of '
        'ILSVRC2010_images_*.tar, the development kit and the answers of the test set',
    )
    command.add_argument(
        '--year',
        type=int,
        choices=imagenet.EDITIONS,
        default=2012,
        help="year of the challenge; the paper's Table 1 is on 2010 (default: 2012)",
    )
    command.add_argument('--allow_subset', action='store_true', help='accept fewer images')
    command = add(
        'folder', folder.prepare_folder, 'your own photographs, in folders named after the classes'
    )
    _add_photographs(
        command,
        'DIR|TAR|ZIP',
        'train/CLASS/* and test/CLASS/*, or CLASS/*, in a folder, a zip or a tar, which may be '
        'compressed with gzip, xz or bzip2',
    )
    command.add_argument(
        '--name', required=True, help='name of the data set, for --config.data.name'
    )
    command.add_argument(
        '--size',
        type=int,
        default=256,
        help='length of the shorter side and of the crop; 0 keeps images that all have one size '
        '(default: 256)',
    )
    command.add_argument(
        '--eval_fraction',
        type=float,
        metavar='F',
        help='fraction of each class for a test split if there is no test folder; 0: no test split',
    )
    command.add_argument(
        '--seed', type=int, default=0, help='seed of the choice of the test images (default: 0)'
    )
    command.add_argument(
        '--skip_empty',
        action='store_true',
        help='leave out classes without training images, and other folders without images',
    )
    command.add_argument(
        '--follow_links',
        action='store_true',
        help='follow links that lead out of the folder, and links to other folders',
    )
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
        help='number of processes (default: one for each CPU core)',
    )
    command.add_argument(
        '--encoding',
        choices=('raw', 'jpeg'),
        default='raw',
        help='store pixels, or JPEG of quality 95, which takes a fifth of the space but more time '
        'in training (default: raw)',
    )
    command.add_argument(
        '--skip_broken', action='store_true', help='leave out images that cannot be read'
    )
    command.add_argument(
        '--json', dest='as_json', action='store_true', help='print the report as the last line'
    )


def _cores() -> int:
    """Return the number of CPU cores that this process may use; on macOS, of all cores."""
    known = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _statistics(info: Any, data_dir: str, directory: epath.Path, workers: int) -> dict[str, Any]:
    """Compute the statistics and cache them for training; return the report with them."""
    from alexnet_jax.input.sources import DataConfig
    from alexnet_jax.training import dataset  # imports JAX, which the workers do not need

    config = DataConfig.as_stored(
        f'{info.name}:{info.version}',
        data_dir,
        eval_split=next((split for split in info.splits if split != 'train'), 'train'),
        read_threads=workers,
    )
    _, statistics = dataset.load(config)
    return photographs.add_statistics(directory, statistics)


def _show(report: dict[str, Any], directory: epath.Path) -> None:
    """Print the unusual images and the statistics."""
    for split, kinds in report['counts'].items():
        for kind, count in kinds.items():
            print(
                f'{split}: {count} {kind}, for example {escaped(report["names"][split][kind][0])}'
            )
    for kind, names in report['ignored'].items():
        print(f'not used: {len(names)} {kind}, for example {escaped(names[0])}')
    statistics = report['statistics']
    mean = ', '.join(f'{value:.2f}' for value in statistics['mean'])
    deviations = ', '.join(f'{value:.2f}' for value in statistics['standard_deviations'])
    print(
        f'mean of red, green and blue: {mean}; '
        f'standard deviations of the colour components: {deviations}'
    )
    print(f'the full report is in {directory / photographs.REPORT}')


if __name__ == '__main__':
    sys.exit(main())
