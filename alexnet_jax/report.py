"""Reports on finished runs.

python -m alexnet_jax.report reproduction [--runs DIR] [--output FILE.md] [--json]
python -m alexnet_jax.report compare --runs DIR --baseline RUN [--output FILE.md] [--json]
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax.arguments import Parser
from alexnet_jax.reports import against_baseline, claims
from alexnet_jax.reports.workdirs import METRICS
from alexnet_jax.runtime.errors import UserError

_RUNS = 'a folder of workdirs'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    parser = Parser(prog='python -m alexnet_jax.report', description='Report on finished runs.')
    commands = parser.add_subparsers(metavar='REPORT', required=True)
    reproduction = commands.add_parser('reproduction', help="the paper's figures and those of runs")
    reproduction.add_argument('--runs', default='results', metavar='DIR', help=_RUNS)
    compare = commands.add_parser(
        'compare', help='runs that differ in some fields, beside a baseline of the same seeds'
    )
    compare.add_argument('--runs', required=True, metavar='DIR', help=_RUNS)
    compare.add_argument('--baseline', required=True, metavar='RUN', help='one of those workdirs')
    compare.add_argument('--metric', default='eval/top1_error', choices=METRICS)
    for command in (reproduction, compare):
        command.add_argument(
            '--output', default='', metavar='FILE.md', help='write the tables there'
        )
        command.add_argument(
            '--json', action='store_true', help='print the report as the last line'
        )
    arguments = parser.parse_args(argv)
    runs = epath.Path(arguments.runs)
    try:
        if 'baseline' in arguments:
            report = against_baseline.compare(runs, arguments.baseline, arguments.metric)
            text = comparison_markdown(report, arguments.metric)
        else:
            report = claims.reproduction(runs)
            text = markdown(report)
        if arguments.output:
            _write(epath.Path(arguments.output), text)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if arguments.output:
        print(f'wrote {arguments.output}')
    if arguments.json or not arguments.output:
        print(json.dumps(report) if arguments.json else text, end='\n' if arguments.json else '')
    return 0


def markdown(report: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the report as Markdown: claims, other runs, what was left out."""
    lines = [
        "# The paper's figures and ours",
        '',
        'Errors in percent; epochs, ratios and losses as named. Ours: the mean over the seeds '
        "(least to largest); behind `measured` stands where its configuration is not the claim's. "
        "2012: the log of the author's own run.",
        '',
        '| claim | paper | 2012 | ours | seeds | status | source |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in report['rows']:
        note = f': {row["note"]}' if row['note'] else ''
        cells = [row['claim'], _number(row['paper']), _number(row['run_2012']), _ours(row)]
        lines.append(_table_row(*cells, row['seeds'], row['status'] + note, row['source']))
    if report['others']:
        lines += [
            '',
            '## Other runs',
            '',
            'Not to be set against the figures above: other data, or another configuration. An '
            'ensemble has 0 epochs of its own.',
            '',
            '| data | figure | ours | seeds | epochs | runs |',
            '|---|---|---|---|---|---|',
        ]
        lines += [
            _table_row(
                row['data'],
                _words(row['metric']),
                _ours(row),
                row['seeds'],
                f'{row["epochs"]:g}',
                ', '.join(row['runs']),
            )
            for row in report['others']
        ]
    return '\n'.join([*lines, *_left_out(report)]) + '\n'


def comparison_markdown(report: Mapping[str, Any], metric: str) -> str:
    """Return the comparison as Markdown, the baseline first."""
    lines = [
        f'# Runs beside a baseline: {report["data"]}, {report["epochs"]:g} epochs',
        '',
        f'| changed | {_words(metric)}, % (least to largest) | seeds | '
        'to the baseline, same seeds | told apart |',
        '|---|---|---|---|---|',
    ]
    for row in report['rows']:
        changes = ', '.join(f'`{name} = {value!r}`' for name, value in row['changes'].items())
        ours = _ours({**row, 'ours': row['mean']})
        if changes:
            difference = '-' if row['difference'] is None else f'{row["difference"]:+.2f}'
            told_apart = 'yes' if row['told_apart'] else 'no'
        else:
            changes, difference, told_apart = 'nothing: the baseline', '', ''
        lines.append(_table_row(changes, ours, row['seeds'], difference, told_apart))
    lines += [
        '',
        'Told apart: three seeds or more of both, and the two ranges have nothing in common.',
    ]
    return '\n'.join([*lines, *_left_out(report)]) + '\n'


def _left_out(report: Mapping[str, Any]) -> list[str]:
    rows = [f'- {row["run"]}: {row["reason"]}' for row in report['left_out']]
    return ['', '## Left out', '', *rows] if rows else []


def _words(metric: str) -> str:
    return metric.removeprefix('eval/').replace('_', ' ')


def _table_row(*cells: Any) -> str:
    return '| ' + ' | '.join(str(cell).replace('|', r'\|') for cell in cells) + ' |'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'.rstrip('0').rstrip('.')


def _ours(row: Mapping[str, Any]) -> str:
    if row['ours'] is None:
        return '-'
    spread = f' ({row["min"]:.2f} to {row["max"]:.2f})' if row['seeds'] > 1 else ''
    return f'{row["ours"]:.2f}{spread}'


def _write(path: epath.Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f'cannot write {path} ({error.strerror}); name another --output') from error


if __name__ == '__main__':
    sys.exit(main())
