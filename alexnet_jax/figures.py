"""Draw figures of runs, finished or not.

python -m alexnet_jax.figures curves RUN... --output FILE
python -m alexnet_jax.figures relu_vs_tanh RUN... --output FILE [--json]
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.reports import figures
from alexnet_jax.runtime import storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _draw(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.figures', description='Draw figures of runs.')
    commands = parser.add_subparsers(metavar='FIGURE', required=True)
    curves = commands.add_parser('curves', help='loss and error of one or more runs over epochs')
    curves.set_defaults(draw=figures.draw_curves)
    fig_1 = commands.add_parser(
        'relu_vs_tanh', help='Fig. 1: training error over epochs of runs with ReLU and with tanh'
    )
    fig_1.set_defaults(draw=figures.draw_relu_vs_tanh)
    for command in (curves, fig_1):
        command.add_argument('runs', nargs='+', metavar='RUN', help='the workdir of a run')
        command.add_argument('--title', default='')
        command.add_argument('--output', required=True, metavar='FILE', help='.svg, .png or .pdf')
    curves.add_argument(
        '--labels', nargs='+', metavar='NAME', help='a name for each run; otherwise its folder'
    )
    fig_1.add_argument(
        '--json', dest='as_json', action='store_true', help='print what was found as the last line'
    )
    return parser


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


if __name__ == '__main__':
    sys.exit(main())
