"""Figures of finished runs.

python -m alexnet_jax.figures curves RUN... --output FILE
python -m alexnet_jax.figures relu_vs_tanh RUN... --output FILE [--json]
"""

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.arguments import Parser
from alexnet_jax.config import differences
from alexnet_jax.reports import paper
from alexnet_jax.runtime.errors import UserError, first_line
from alexnet_jax.runtime.run_log import epoch_means, epochs_to_error, training_error

_UNITS = ('relu', 'tanh')
# What runs that Fig. 1 compares may differ in: unit, rate, length, and where they ran.
_MAY_DIFFER = (
    *('model.activation', 'optim.learning_rate', 'training.total_', 'training.eval_every_epochs'),
    *('parallel.', 'checkpoint.', 'log.', 'data.dir', 'data.read_threads', 'data.prefetch_batches'),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    parser = Parser(prog='python -m alexnet_jax.figures', description='Draw figures of runs.')
    commands = parser.add_subparsers(metavar='FIGURE', required=True)
    curves = commands.add_parser('curves', help='loss and error of one or more runs over epochs')
    curves.set_defaults(draw=draw_curves)
    units = commands.add_parser(
        'relu_vs_tanh', help='Fig. 1: training error over epochs of runs with either unit'
    )
    units.set_defaults(draw=draw_relu_vs_tanh)
    for command in (curves, units):
        command.add_argument('runs', nargs='+', metavar='RUN', help='the workdir of a run')
        command.add_argument('--title', default='')
        command.add_argument('--output', required=True, metavar='FILE', help='.svg, .png or .pdf')
    curves.add_argument('--labels', nargs='+', help="a name for each run; otherwise its folder's")
    units.add_argument('--json', action='store_true', help='print what was found as the last line')
    arguments = vars(parser.parse_args(argv))
    draw, as_json = arguments.pop('draw'), arguments.pop('json', False)
    try:
        found = draw(**arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'wrote {arguments["output"]}')
    if as_json:
        print(json.dumps(found))
    elif found:
        lines = [f'{row["run"]}: {_in_words(row)}' for row in found['runs']]
        print(*lines, f"tanh's epochs over ReLU's: {found['ratio'] or 'not known'}", sep='\n')
    return 0


def draw_curves(
    runs: Sequence[str], output: str, labels: Sequence[str] | None = None, title: str = ''
) -> None:
    """Draw training loss and top-1 error over the epochs, one colour a run.

    Thin: the logged steps. Thick: the mean of the logged steps of each epoch (of the batches that
    lie in it, so it is not the error of one network on a whole set). Dots: the evaluations. Dashed:
    chance, log(classes) and 1 - 1 / classes.

    Raises UserError for a folder that holds no run and a file format that cannot be written.
    """
    labels = labels or [epath.Path(run).name for run in runs]
    if len(labels) != len(runs):
        raise UserError(f'{len(labels)} --labels for {len(runs)} runs; give one for each')
    loaded = [_read_run(epath.Path(run)) for run in runs]
    figure, (loss, error) = _pyplot().subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for label, (records, _), colour in zip(labels, loaded, _colours(), strict=False):
        train = [record for record in records if record['kind'] == 'train']
        evaluations = [record for record in records if record['kind'] == 'eval']
        for axes, name in ((loss, 'loss'), (error, 'top1_error')):
            epochs, values = _series(train, f'train/{name}')
            axes.plot(epochs, values, color=colour, linewidth=0.6, alpha=0.35)
            axes.plot(*epoch_means(epochs, values), color=colour, linewidth=1.8, label=label)
            axes.plot(*_series(evaluations, f'eval/{name}'), 'o', color=colour, markersize=4)
    for classes in sorted({config['model']['num_classes'] for _, config in loaded}):
        for axes, chance in ((loss, math.log(classes)), (error, 1 - 1 / classes)):
            axes.axhline(chance, color='0.5', linewidth=0.8, linestyle='--')
            axes.annotate(
                'chance', (1, chance), xycoords=('axes fraction', 'data'), ha='right', va='bottom',
                xytext=(-4, 2), textcoords='offset points', color='0.4', fontsize=8,
            )  # fmt: skip
    for axes, name in ((loss, 'cross-entropy'), (error, 'top-1 error')):
        axes.set(xlabel='epoch', ylabel=name, ylim=(0, None))
        axes.spines[['top', 'right']].set_visible(False)
    if len(runs) > 3:
        entries = loss.get_legend_handles_labels()
        figure.legend(*entries, frameon=False, loc='outside right upper')
    else:
        loss.legend(frameon=False, loc='lower left' if len(runs) == 1 else 'best')
    figure.suptitle(title)
    _save(figure, output)


def draw_relu_vs_tanh(runs: Sequence[str], output: str, title: str = '') -> dict[str, Any]:
    """Draw the training error of runs with ReLU and with tanh, as Fig. 1 (Paper 3.1).

    Each run may have a rate of its own; of each unit the run that is at 25 % training error in the
    fewest epochs counts and is drawn thick, by the means of its epochs.

    Returns `runs`, each with `run`, `activation`, `learning_rate`, `epoch`, where it passes 25 %
    (None: not in its `epochs`); and `ratio`, tanh's epochs over ReLU's (None where one has none).
    Raises UserError as `draw_curves`, and for runs that differ in more than unit, rate and length.
    """
    loaded = [(run, *_read_run(epath.Path(run))) for run in runs]
    found = [_unit(run, records, config, loaded[0]) for run, records, config in loaded]
    best = {}
    for row in sorted(found, key=lambda row: (row['epoch'] or math.inf, -row['epochs'])):
        best.setdefault(row['activation'], row)
    figure, axes = _pyplot().subplots(figsize=(6, 4.2), layout='constrained')
    style = {'relu': {'color': 'C0', 'linestyle': '-'}, 'tanh': {'color': 'C1', 'linestyle': '--'}}
    for (_, records, _), row in zip(loaded, found, strict=True):
        counts = row is best[row['activation']]
        axes.plot(
            *training_error(records),
            marker='.',
            **style[row['activation']],
            linewidth=1.8 if counts else 0.6,
            label=_in_words(row) if counts else None,
        )
    axes.axhline(paper.TRAINING_ERROR, color='0.5', linewidth=0.8, linestyle='--')
    axes.set(xlabel='epochs', ylabel='training error rate', xlim=(0, None), ylim=(0, 0.75))
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(title)
    _save(figure, output)
    relu, tanh = (best.get(unit, {}).get('epoch') for unit in _UNITS)
    return {'runs': found, 'ratio': round(tanh / relu, 4) if relu and tanh else None}


def _unit(
    run: str, records: Sequence[dict[str, Any]], config: dict[str, Any], first: tuple
) -> dict[str, Any]:
    """Return what `draw_relu_vs_tanh` says of a run; it must be as the first run is."""
    unit, rate = config['model']['activation'], config['optim']['learning_rate']
    if unit not in _UNITS:
        raise UserError(f'{run} has model.activation {unit!r}; name runs with relu and with tanh')
    for name, (here, there) in differences(config, first[2]).items():
        if not name.startswith(_MAY_DIFFER):
            raise UserError(
                f'{run} has {name} {here!r} and {first[0]} {there!r}; '
                'name runs that differ in the unit, the rate and the length only'
            )
    epoch = epochs_to_error(records, paper.TRAINING_ERROR)
    return {
        'run': epath.Path(run).name,
        'activation': unit,
        'learning_rate': rate,
        'epoch': epoch and round(epoch, 4),
        'epochs': records[-1]['epoch'] if records else 0.0,
    }


def _in_words(row: dict[str, Any]) -> str:
    epoch, epochs = row['epoch'], row['epochs']
    where = f'25 % after {epoch:.2f} epochs' if epoch else f'not at 25 % in {epochs:.2f} epochs'
    return f'{row["activation"]}, rate {row["learning_rate"]:g}: {where}'


def _read_run(run: epath.Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the records of a run's metrics and its configuration."""
    try:
        config = json.loads((run / 'config.json').read_text())
        lines = (run / 'metrics.jsonl').read_text().splitlines()
        _ = config['model']['num_classes'], config['model']['activation'], config['optim']
        return [json.loads(line) for line in lines], config
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(
            f'{run} is no workdir of a run ({error}); it must hold config.json and metrics.jsonl'
        ) from error


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (epoch, value) of the records that have the metric."""
    chosen = [(record['epoch'], record[name]) for record in records if name in record]
    epochs, values = np.array(chosen, float).reshape(-1, 2).T
    return epochs, values


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError('figures need matplotlib; pip install "matplotlib>=3.11,<4"') from error
    matplotlib.use('agg')
    # Text stays text and the bytes do not change from run to run.
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'alexnet_jax'})
    from matplotlib import pyplot

    return pyplot


def _colours() -> Iterator[str]:
    return itertools.cycle(_pyplot().rcParams['axes.prop_cycle'].by_key()['color'])


def _save(figure: Any, output: str) -> None:
    path = epath.Path(output)
    try:
        figure.savefig(path, dpi=150, metadata={'Date': None} if path.suffix == '.svg' else None)
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise UserError(f'cannot write {path} ({reason}); name a .svg, .png or .pdf') from error
    finally:
        _pyplot().close(figure)


if __name__ == '__main__':
    sys.exit(main())
