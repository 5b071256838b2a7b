"""Draw the curves of finished runs: `python -m alexnet_jax.figures curves RUN... --output FILE`."""

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.arguments import Parser
from alexnet_jax.config import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can mend."""
    parser = Parser(prog='python -m alexnet_jax.figures', description='Draw figures of runs.')
    commands = parser.add_subparsers(metavar='FIGURE', required=True)
    curves = commands.add_parser('curves', help='loss and error of one or more runs over epochs')
    curves.set_defaults(draw=draw_curves)
    curves.add_argument('runs', nargs='+', metavar='RUN', help='the workdir of a run')
    curves.add_argument('--labels', nargs='+', help="a name for each run; otherwise its folder's")
    curves.add_argument('--title', default='')
    curves.add_argument('--output', required=True, metavar='FILE', help='.svg, .png or .pdf')
    arguments = vars(parser.parse_args(argv))
    draw = arguments.pop('draw')
    try:
        draw(**arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'wrote {arguments["output"]}')
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
    for classes in sorted({classes for _, classes in loaded}):
        for axes, chance in ((loss, math.log(classes)), (error, 1 - 1 / classes)):
            axes.axhline(chance, color='0.5', linewidth=0.8, linestyle='--')
            axes.annotate(
                'chance', (1, chance), xycoords=('axes fraction', 'data'), ha='right', va='bottom',
                xytext=(-4, 2), textcoords='offset points', color='0.4', fontsize=8,
            )  # fmt: skip
    for axes, name in ((loss, 'cross-entropy'), (error, 'top-1 error')):
        axes.set(xlabel='epoch', ylabel=name, ylim=(0, None))
        axes.spines[['top', 'right']].set_visible(False)
    loss.legend(frameon=False, loc='lower left' if len(runs) == 1 else 'best')
    figure.suptitle(title)
    _save(figure, output)


def epoch_means(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return, for each epoch, the mean of where its steps ended and the mean of their values.

    `epochs` [n] is where each step ended, so epoch e (from 0) holds those in (e, e + 1].
    """
    which = np.ceil(epochs).astype(int) - 1
    of_epoch = [which == epoch for epoch in np.unique(which)]
    return tuple(np.array([x[steps].mean() for steps in of_epoch]) for x in (epochs, values))


def _read_run(run: epath.Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a run's metrics and its number of classes."""
    try:
        config = json.loads((run / 'config.json').read_text())
        lines = (run / 'metrics.jsonl').read_text().splitlines()
        return [json.loads(line) for line in lines], config['model']['num_classes']
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
        reason = str(error).partition('\n')[0]
        raise UserError(f'cannot write {path} ({reason}); name a .svg, .png or .pdf') from error
    finally:
        _pyplot().close(figure)


if __name__ == '__main__':
    sys.exit(main())
