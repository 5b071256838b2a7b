"""What was reproduced: `python -m alexnet_jax.report reproduction [--runs DIR] [--json]`."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax.arguments import Parser
from alexnet_jax.config import UserError
from alexnet_jax.reproduction import reproduction


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    parser = Parser(prog='python -m alexnet_jax.report', description='Report on finished runs.')
    commands = parser.add_subparsers(metavar='REPORT', required=True)
    command = commands.add_parser('reproduction', help="the paper's figures and those of runs")
    command.add_argument('--runs', default='results', metavar='DIR', help='a folder of workdirs')
    command.add_argument('--output', default='', metavar='FILE.md', help='write the tables there')
    command.add_argument('--json', action='store_true', help='print the report as the last line')
    arguments = parser.parse_args(argv)
    try:
        report = reproduction(epath.Path(arguments.runs))
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
        'Errors in percent. Ours: the mean over the seeds (least to largest). 2012: the log of the '
        "author's own run.",
        '',
        '| claim | paper | 2012 | ours | seeds | status | source |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in report['rows']:
        note = f': {row["note"]}' if row['note'] and row['status'] == 'not run' else ''
        cells = [row['claim'], _number(row['paper']), _number(row['run_2012']), _ours(row)]
        lines.append(_table_row(*cells, row['seeds'], row['status'] + note, row['source']))
    if report['others']:
        lines += [
            '',
            '## Other runs',
            '',
            'Not to be set against the figures above: other data, or another configuration.',
            '',
            '| data | figure | ours | seeds | epochs | runs |',
            '|---|---|---|---|---|---|',
        ]
        lines += [
            _table_row(
                row['data'],
                row['metric'].removeprefix('eval/').replace('_', ' '),
                _ours(row),
                row['seeds'],
                f'{row["epochs"]:g}',
                ', '.join(row['runs']),
            )
            for row in report['others']
        ]
    if report['left_out']:
        lines += ['', '## Left out', '']
        lines += [f'- {row["run"]}: {row["reason"]}' for row in report['left_out']]
    return '\n'.join(lines) + '\n'


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
