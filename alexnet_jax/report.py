"""Report on finished runs.

python -m alexnet_jax.report reproduction [--runs DIR] [--output FILE.md] [--json]
python -m alexnet_jax.report compare --runs DIR --baseline RUN [--output FILE.md] [--json]
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.reports import against_baseline, claims, markdown
from alexnet_jax.reports.workdirs import METRICS
from alexnet_jax.runtime import storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _report(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.report', description='Report on finished runs.')
    commands = parser.add_subparsers(metavar='REPORT', required=True)
    folder = 'the folder that contains the workdirs'
    reproduction = commands.add_parser('reproduction', help="compare runs with the paper's claims")
    reproduction.set_defaults(make=claims.reproduction, write=markdown.reproduction_page)
    reproduction.add_argument('--runs', default='results', metavar='DIR', help=folder)
    compare = commands.add_parser(
        'compare', help='compare runs that differ in some fields with a baseline of the same seeds'
    )
    compare.set_defaults(make=against_baseline.compare, write=markdown.comparison_page)
    compare.add_argument('--runs', required=True, metavar='DIR', help=folder)
    compare.add_argument('--baseline', required=True, metavar='RUN', help='one of the workdirs')
    compare.add_argument('--metric', default='eval/top1_error', choices=METRICS)
    for command in (reproduction, compare):
        command.add_argument(
            '--output', default='', metavar='FILE.md', help='write the tables to this file'
        )
        command.add_argument(
            '--json', dest='as_json', action='store_true', help='print the report as the last line'
        )
    return parser


def _report(
    make: Callable[..., dict[str, Any]],
    write: Callable[[dict[str, Any]], str],
    runs: str,
    output: str,
    as_json: bool,
    **options: str,
) -> None:
    report = make(storage.resolve(runs, '--runs'), **options)
    page = write(report)
    if output:
        path = storage.resolve(output, '--output')
        with storage.writing(path):
            path.write_text(page)
        print(f'wrote {path}')
    if as_json:
        print(json.dumps(report))
    elif not output:
        print(page, end='')


if __name__ == '__main__':
    sys.exit(main())
