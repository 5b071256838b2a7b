"""Report on runs: the paper's claims, a comparison with a baseline, a page about one run.

python -m alexnet_jax.report reproduction [--runs DIR] [--output FILE.md] [--json]
python -m alexnet_jax.report compare --runs DIR --baseline RUN [--output FILE.md] [--json]
python -m alexnet_jax.report run RUN [--output FILE.html] [--class_report DIR]
    [--examples N] [--data_dir DIR] [--json]
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.reports import against_baseline, claims, examples, markdown, page
from alexnet_jax.reports.workdirs import METRICS
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError, escaped


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _run(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.report', description='Report on runs.')
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
    run = commands.add_parser('run', help='write a page of HTML about one run, finished or not')
    run.set_defaults(command=_page)
    run.add_argument('run', metavar='RUN', help='the workdir of the run')
    run.add_argument(
        '--output', default='', metavar='FILE.html', help='default: report.html in the workdir'
    )
    run.add_argument(
        '--class_report',
        default='',
        metavar='DIR',
        help='a folder that --mode=evaluate wrote as evaluation.report_dir (default: class_report '
        'in the workdir, if it is there)',
    )
    run.add_argument(
        '--examples',
        dest='num_examples',
        type=int,
        default=12,
        metavar='N',
        help='so many examples with predictions (default: 12); they need the checkpoint and data',
    )
    run.add_argument(
        '--data_dir', default='', metavar='DIR', help='data sets (default: as in the training)'
    )
    run.add_argument(
        '--json', dest='as_json', action='store_true', help='print its figures as the last line'
    )
    for command in (reproduction, compare):
        command.set_defaults(command=_report)
        command.add_argument(
            '--output', default='', metavar='FILE.md', help='write the tables to this file'
        )
        command.add_argument(
            '--json', dest='as_json', action='store_true', help='print the report as the last line'
        )
    return parser


def _run(command: Callable[..., None], **options: Any) -> None:
    command(**options)


def _page(
    run: str, output: str, class_report: str, num_examples: int, data_dir: str, as_json: bool
) -> None:
    workdir = storage.resolve(run, 'RUN')
    path = storage.resolve(output, '--output') if output else workdir / 'report.html'
    classes = storage.resolve(class_report, '--class_report') if class_report else None
    choose = functools.partial(_examples, workdir, data_dir, num_examples)
    written = page.write(workdir, path, classes, choose)
    print(f'wrote {path}')
    if as_json:
        print(page.as_line(written, path))


def _examples(workdir: epath.Path, data_dir: str, count: int) -> list[page.Example]:
    """Return examples; without the checkpoint or the data there are none, and a line says why."""
    if count < 1:
        return []
    try:
        return examples.choose(workdir, data_dir, count)
    except UserError as error:
        print(f'the page has no examples: {escaped(str(error))}', file=sys.stderr)
        return []


def _report(
    make: Callable[..., dict[str, Any]],
    write: Callable[[dict[str, Any]], str],
    runs: str,
    output: str,
    as_json: bool,
    **options: str,
) -> None:
    report = make(storage.resolve(runs, '--runs'), **options)
    text = write(report)
    if output:
        path = storage.resolve(output, '--output')
        with storage.writing(path):
            path.write_text(text)
        print(f'wrote {path}')
    if as_json:
        print(json.dumps(report))
    elif not output:
        print(text, end='')


if __name__ == '__main__':
    sys.exit(main())
