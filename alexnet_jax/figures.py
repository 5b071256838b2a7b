"""Draw figures of runs, finished or not, and of what a trained network has learned.

python -m alexnet_jax.figures curves RUN... --output FILE
python -m alexnet_jax.figures relu_vs_tanh RUN... --output FILE [--json]
python -m alexnet_jax.figures kernels RUN|FILE [--layer=conv2] --output FILE [--json]
python -m alexnet_jax.figures predictions|neighbours|activations|saliency RUN|FILE [IMAGE...]
    --output FILE [--json]

Where no images are named, they are examples of the evaluation split, evenly spaced.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.inference.network import Network, load
from alexnet_jax.preparation.images import Unreadable
from alexnet_jax.reports import figures
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.visualisation import (
    activations,
    drawing,
    kernels,
    neighbours,
    predictions,
    saliency,
    subjects,
)
from alexnet_jax.visualisation.subjects import AMONG, Subjects

_TRAINING = 10_000  # training images among which neighbours are sought


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _run(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.figures', description=__doc__ or '')
    commands = parser.add_subparsers(metavar='FIGURE', required=True)
    curves = commands.add_parser('curves', help='loss and error of one or more runs over epochs')
    curves.set_defaults(draw=figures.draw_curves)
    fig_1 = commands.add_parser(
        'relu_vs_tanh', help='Fig. 1: training error over epochs of runs with ReLU and with tanh'
    )
    fig_1.set_defaults(draw=figures.draw_relu_vs_tanh)
    for command in (curves, fig_1):
        command.set_defaults(command=_draw)
        command.add_argument('runs', nargs='+', metavar='RUN', help='the workdir of a run')
        command.add_argument('--title', default='')
    curves.add_argument(
        '--labels', nargs='+', metavar='NAME', help='a name for each run; otherwise its folder'
    )
    shown = _look_at(commands, 'kernels', _kernels, 'Fig. 3: the kernels of a convolution by tower')
    shown.add_argument('--layer', default='conv1', help='default: conv1')
    fig_4_left = _look_at(
        commands, 'predictions', _predictions, 'Fig. 4, left: images and their probable labels'
    )
    fig_4_right = _look_at(
        commands, 'neighbours', _neighbours, 'Fig. 4, right: the nearest training images in fc7'
    )
    way = _look_at(
        commands, 'activations', _activations, 'the way of an image through the network, and zeros'
    )
    decides = _look_at(
        commands, 'saliency', _saliency, 'what decides: the gradient, occlusion and Grad-CAM'
    )
    for command in (fig_4_left, fig_4_right, way, decides):
        _add_images(command)
    fig_4_right.add_argument(
        '--among', type=int, default=_TRAINING, metavar='N',
        help=f'so many training images, evenly spaced (default: {_TRAINING:,})',
    )  # fmt: skip
    for name, command in commands.choices.items():
        command.add_argument('--output', required=True, metavar='FILE', help='.svg, .png or .pdf')
        if name != 'curves':
            command.add_argument(
                '--json', dest='as_json', action='store_true',
                help='print what was found as the last line',
            )  # fmt: skip
    return parser


def _look_at(commands: Any, name: str, look: Callable[..., Any], help: str) -> Parser:
    """Add a figure of one trained network, which `look` finds and draws; see `_look`."""
    parser = commands.add_parser(name, help=help)
    parser.set_defaults(command=_look, look=look)
    parser.add_argument('network', metavar='RUN|FILE', help='a workdir, or a weights file')
    return parser


def _add_images(parser: Parser) -> None:
    parser.add_argument(
        'images', nargs='*', metavar='IMAGE', help='default: examples of the evaluation split'
    )
    parser.add_argument(
        '--data_dir', default='', metavar='DIR', help='data sets (default: as in the training)'
    )


def _run(command: Callable[..., None], **options: Any) -> None:
    command(**options)


def _draw(
    draw: Callable[..., dict[str, Any] | None],
    runs: Sequence[str],
    output: str,
    as_json: bool = False,
    **options: Any,
) -> None:
    paths = [storage.resolve(run, 'RUN') for run in runs]
    found = draw(paths, storage.resolve(output, '--output'), **options)
    print(f'wrote {output}')
    if as_json:
        print(json.dumps(found))
    elif found:
        lines = [f'{row["run"]}: {figures.in_words(row)}' for row in found['runs']]
        print(*lines, f"tanh's epochs over ReLU's: {found['ratio'] or 'not known'}", sep='\n')


def _look(
    look: Callable[..., tuple[Any, Any]], network: str, output: str, as_json: bool, **options: Any
) -> None:
    """Write a figure of a trained network, and print its caption and, if asked, its numbers."""
    drawing.pyplot()  # before any work
    place, path = storage.resolve(network, 'RUN|FILE'), storage.resolve(output, '--output')
    try:
        found, figure = look(load(place), place, **options)
    except Unreadable as error:
        raise UserError(f'{error}; name images that can be read') from error
    drawing.save(figure, path)
    print(f'wrote {output}', found.caption, sep='\n')
    if as_json:
        print(json.dumps(found.numbers))


def _kernels(net: Network, place: epath.Path, layer: str) -> tuple[Any, Any]:
    found = kernels.find(net, layer)
    return found, kernels.draw(found)


def _predictions(net: Network, place: epath.Path, **images: Any) -> tuple[Any, Any]:
    found = predictions.find(net, _subjects(net, place, AMONG, **images))
    return found, predictions.draw(found)


def _neighbours(net: Network, place: epath.Path, among: int, **images: Any) -> tuple[Any, Any]:
    chosen = _subjects(net, place, 5, **images)
    training = subjects.of_split(net, place, among, split='train', data_dir=images['data_dir'])
    found = neighbours.find(net, chosen, training)
    return found, neighbours.draw(found)


def _activations(net: Network, place: epath.Path, **images: Any) -> tuple[Any, Any]:
    found = activations.find(net, _subjects(net, place, AMONG, **images))
    return found, activations.draw(found)


def _saliency(net: Network, place: epath.Path, **images: Any) -> tuple[Any, Any]:
    found = saliency.find(net, _subjects(net, place, 4, **images))
    return found, saliency.draw(found)


def _subjects(
    net: Network, place: epath.Path, count: int, images: Sequence[str], data_dir: str
) -> Subjects:
    """Return the images that were named, or `count` examples of the evaluation split."""
    if images:
        return subjects.given(images, [epath.Path(image).name for image in images], None)
    try:
        return subjects.of_split(net, place, count, data_dir=data_dir)
    except UserError as error:
        raise UserError(f'{error}; or name images after the RUN|FILE') from error


if __name__ == '__main__':
    sys.exit(main())
