"""Predict the classes of photographs with a trained network.

python -m alexnet_jax.predict RUN|FILE PATH... [--checkpoint=best] [--views=10] [--top=5]
    [--csv|--json]
python -m alexnet_jax.predict RUN|FILE PATH... --features=fc7 --output=FILE.safetensors|FILE.npz

RUN is the workdir of a run, such as runs/digits, and FILE a weights file. A PATH is a photograph, a
folder (with all folders in it), a quoted pattern such as 'photos/*.jpg', or - for a list on
standard input, one path a line. Photographs that cannot be read are listed at the end, with exit
code 2, and the others are done.
"""

import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import tqdm
from etils import epath

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.inference.network import Network, Prediction, load
from alexnet_jax.preparation import images
from alexnet_jax.preparation.images import Unreadable
from alexnet_jax.runtime import memory, storage
from alexnet_jax.runtime.errors import UserError, escaped
from alexnet_jax.runtime.spreadsheet import to_csv

_SHOWN = 20  # unreadable photographs that are named


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _predict(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.predict', description=__doc__ or '')
    add = parser.add_argument
    add('network', metavar='RUN|FILE', help='the workdir of a run, or a weights file')
    add('paths', nargs='+', metavar='PATH', help='a photograph, a folder, a pattern or -')
    add('--checkpoint', default='latest', help="of a run: 'latest' (default), 'best' or a step")
    add('--views', type=int, choices=(1, 10), default=1, help='10: the mean of ten views (4.1)')
    add('--top', type=int, default=5, metavar='N', help='how many classes to print (default: 5)')
    add('--batch_size', type=int, default=64, metavar='N', help='images at a time (default: 64)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--csv', action='store_true', help='print a table for spreadsheets')
    form.add_argument('--json', action='store_true', help='print one JSON object a photograph')
    form.add_argument(
        '--features', default='', metavar='NAME', help='save an activation, such as fc7'
    )
    add('--output', default='', metavar='FILE', help='.safetensors or .npz, for --features')
    return parser


def _predict(
    network: str,
    paths: Sequence[str],
    checkpoint: str,
    views: int,
    top: int,
    batch_size: int,
    csv: bool,
    json: bool,
    features: str,
    output: str,
) -> None:
    """Do what the options ask for; raise UserError at the end if a photograph was not readable."""
    if top < 1 or batch_size < 1:
        raise UserError('--top and --batch_size must be at least 1')
    if bool(features) != bool(output):
        raise UserError('--features=NAME and --output=FILE go together; give both or none')
    if features and views != 1:
        raise UserError('--features are those of the centre crop; leave --views out')
    target = _output_file(output) if output else None
    memory.keep()
    net = load(network, checkpoint, batch_size=batch_size)
    photographs = find_photographs(paths)
    if target:
        failed = _save_features(net, photographs, features, target)
    else:
        show = _print_csv if csv else _print_json if json else _print_table
        if csv:
            print(to_csv([('path', 'rank', 'label', 'name', 'probability', 'error')]), end='')
        failed = []
        outputs = net.stream(photographs, views=views)
        for path, found in zip(photographs, _progress(outputs, len(photographs)), strict=True):
            if isinstance(found, Unreadable):
                failed.append(str(found))
                show(path, [], str(found))
            else:
                show(path, net.ranked(found, top), '')
    _refuse(failed, len(photographs))


def find_photographs(paths: Sequence[str]) -> list[str]:
    """Return the photographs that the arguments name, in their order; folders are sorted.

    Files of a folder that are hidden or not named as images are left out, and their number is
    printed to standard error. Hidden folders are left out, too. Raises UserError for a pattern that
    matches nothing and if nothing is left.
    """
    found: list[str] = []
    left_out: list[str] = []
    for path in _listed(paths):
        if os.path.isdir(path):
            _walk(path, found, left_out)
        elif os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)  # whether it can be read is seen when it is read
        elif matched := sorted(glob.glob(path, recursive=True)):
            for match in matched:
                if os.path.isdir(match):
                    _walk(match, found, left_out)
                else:
                    found.append(match)
        else:
            raise UserError(f'{path}: no file matches this pattern; correct it')
    if left_out:
        print(
            f'left out {len(left_out)} files of folders that are hidden or not named as images, '
            f'for example {escaped(left_out[0])}',
            file=sys.stderr,
        )
    if not found:
        raise UserError(f'no photographs in {paths[0]}; name files, folders or patterns')
    return found


def _listed(paths: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with the lines of standard input in place of -."""
    for path in paths:
        if path != '-':
            yield path
            continue
        for line in sys.stdin:
            if name := line.rstrip('\r\n'):
                yield name


def _walk(folder: str, found: list[str], left_out: list[str]) -> None:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(files):
            is_image = name.rpartition('.')[2].lower() in images.SUFFIXES
            hidden = name.startswith('.')  # such as the ._cat.jpg of macOS, which is no image
            (left_out if hidden or not is_image else found).append(os.path.join(root, name))


def _progress(outputs: Iterator[Any], total: int) -> Iterator[Any]:
    return iter(tqdm.tqdm(outputs, total=total, desc='predict', unit=' images', disable=None))


def _print_table(path: str, predictions: Sequence[Prediction], problem: str) -> None:
    lines = [f'{100 * p.probability:6.1f} %  {escaped(p.name)}' for p in predictions]
    tqdm.tqdm.write('\n'.join([escaped(path), *(lines or ['         cannot be read'])]))


def _print_csv(path: str, predictions: Sequence[Prediction], problem: str) -> None:
    rows: list[tuple] = [
        (escaped(path), rank, p.label, p.name, f'{p.probability:.6g}', '')
        for rank, p in enumerate(predictions, 1)
    ]
    tqdm.tqdm.write(to_csv(rows or [(escaped(path), '', '', '', '', escaped(problem))]), end='')


def _print_json(path: str, predictions: Sequence[Prediction], problem: str) -> None:
    row: dict[str, Any] = {'path': path}
    if problem:
        row['error'] = problem
    else:
        row['predictions'] = [p._asdict() for p in predictions]
    tqdm.tqdm.write(json.dumps(row))


def _output_file(output: str) -> epath.Path:
    """Return the path of --output; raise UserError, before any work, if it cannot be written."""
    path = storage.resolve(output, '--output')
    if path.suffix not in _WRITERS:
        raise UserError(f'--output={output} must end in {" or ".join(_WRITERS)}')
    with storage.writing(path):
        storage.replace(path.with_name(f'{path.name}.probe'), b'')
        path.with_name(f'{path.name}.probe').unlink()
    return path


def _save_features(
    net: Network, photographs: Sequence[str], name: str, target: epath.Path
) -> list[str]:
    """Save the activations of the photographs that can be read; return the problems of the others.

    The file holds the array under the activation's name, [N, ...], and the N paths: in a
    .safetensors file as a JSON list in the metadata, in an .npz file as the array `paths`.
    """
    rows, paths, failed = [], [], []
    outputs = _progress(net.stream(photographs, activation=name), len(photographs))
    for path, found in zip(photographs, outputs, strict=True):
        if isinstance(found, Unreadable):
            failed.append(str(found))
        else:
            rows.append(found)
            paths.append(escaped(path))
    if rows:
        array = np.stack(rows)
        with storage.writing(target):
            storage.replace(target, _WRITERS[target.suffix](name, array, paths))
        print(f'wrote {target}: {name} {list(array.shape)} {array.dtype}')
    return failed


def _safetensors(name: str, array: np.ndarray, paths: Sequence[str]) -> bytes:
    return safetensors.numpy.save({name: array}, {'paths': json.dumps(paths)})


def _npz(name: str, array: np.ndarray, paths: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: array, 'paths': np.asarray(paths)})
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[str, np.ndarray, Sequence[str]], bytes]] = {
    '.safetensors': _safetensors,
    '.npz': _npz,
}


def _refuse(failed: Sequence[str], total: int) -> None:
    """Raise UserError, naming the photographs that could not be read, if there are any."""
    if failed:
        more = f' and {len(failed) - _SHOWN} more' if len(failed) > _SHOWN else ''
        raise UserError(
            f'{len(failed)} of {total} photographs cannot be read: '
            f'{"; ".join(failed[:_SHOWN])}{more}'
        )


if __name__ == '__main__':
    sys.exit(main())
