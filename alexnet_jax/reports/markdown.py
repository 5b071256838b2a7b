"""Format the reports as Markdown pages."""

from collections.abc import Mapping
from typing import Any


def reproduction_page(report: Mapping[str, Any]) -> str:
    """Return the report of `claims.reproduction`: claims, other runs and runs that are left out."""
    lines = [
        "# The paper's numbers and ours",
        '',
        'Errors are in percent; epochs, ratios and losses are as named. `2012` is from the log of '
        "the author's own run. `ours` is the mean over the seeds (least to largest). Where the "
        'configuration of our runs differs from that of the claim, the fields follow `measured`.',
    ]
    measured = [row for row in report['rows'] if row['ours'] is not None]
    if measured:
        lines += ['', '## Measured', '']
        lines += _header('claim', 'paper', '2012', 'ours', 'seeds', 'status', 'source')
    for row in measured:
        ours = _ours(row, row['ours']), row['seeds'], _status(row)
        lines.append(_table_row(*_claim(row), *ours, row['source']))
    lines += ['', '## Not measured', '']
    lines += _header('claim', 'paper', '2012', 'status', 'source')
    for row in report['rows']:
        if row['ours'] is None:
            lines.append(_table_row(*_claim(row), _status(row), row['source']))
    if report['others']:
        lines += [
            '',
            '## Other runs',
            '',
            'These cannot be compared with the numbers above: they have other data or another '
            'configuration. An ensemble has 0 epochs of its own.',
            '',
            *_header('data', 'metric', 'ours', 'seeds', 'epochs', 'runs'),
        ]
    for row in report['others']:
        cells = [row['data'], _words(row['metric']), _ours(row, row['ours']), row['seeds']]
        lines.append(_table_row(*cells, f'{row["epochs"]:g}', ', '.join(row['runs'])))
    return _page(lines, report)


def comparison_page(report: Mapping[str, Any]) -> str:
    """Return the report of `against_baseline.compare` as Markdown, with the baseline first."""
    metric, last = f'{_words(report["metric"])}, % (least to largest)', 'distinguishable'
    lines = [
        f'# Runs compared with a baseline: {report["data"]}, {report["epochs"]:g} epochs',
        '',
        *_header('changed', metric, 'seeds', 'difference from the baseline, same seeds', last),
    ]
    for row in report['rows']:
        changes = ', '.join(f'`{name} = {value!r}`' for name, value in row['changes'].items())
        if changes:
            difference = '-' if row['difference'] is None else f'{row["difference"]:+.2f}'
            distinguishable = 'yes' if row['distinguishable'] else 'no'
        else:
            changes, difference, distinguishable = 'nothing: the baseline', '', ''
        cells = [changes, _ours(row, row['mean']), row['seeds'], difference, distinguishable]
        lines.append(_table_row(*cells))
    lines += [
        '',
        'Distinguishable: both have at least three seeds, and their ranges do not overlap.',
    ]
    return _page(lines, report)


def _page(lines: list[str], report: Mapping[str, Any]) -> str:
    left_out = [f'- {row["run"]}: {row["reason"]}' for row in report['left_out']]
    return '\n'.join([*lines, *(['', '## Left out', '', *left_out] if left_out else [])]) + '\n'


def _header(*names: str) -> tuple[str, str]:
    return _table_row(*names), '|---' * len(names) + '|'


def _table_row(*cells: Any) -> str:
    return '| ' + ' | '.join(str(cell).replace('|', r'\|') for cell in cells) + ' |'


def _words(metric: str) -> str:
    return metric.removeprefix('eval/').replace('_', ' ')


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'.rstrip('0').rstrip('.')


def _claim(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row['claim'], _number(row['paper']), _number(row['run_2012'])


def _status(row: Mapping[str, Any]) -> str:
    return f'{row["status"]}: {row["note"]}' if row['note'] else row['status']


def _ours(row: Mapping[str, Any], mean: float | None) -> str:
    if mean is None:
        return '-'
    spread = f' ({row["min"]:.2f} to {row["max"]:.2f})' if row['seeds'] > 1 else ''
    return f'{mean:.2f}{spread}'
