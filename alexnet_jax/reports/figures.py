"""Draw figures of runs, finished or not: curves over the epochs, and the paper's Fig. 1."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.reports import paper
from alexnet_jax.reports.curves import epoch_means, training_error
from alexnet_jax.reports.workdirs import Run, read_run, without_places
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.visualisation import drawing

_ACTIVATIONS = ('relu', 'tanh')
# The fields, besides those of the role PLACE, in which the runs of Fig. 1 may differ.
_FREE_IN_FIG_1 = (
    *('model.activation', 'optim.learning_rate', 'training.total_epochs', 'training.total_steps'),
    'training.eval_every_epochs',
)

_MANY = 40  # evaluations of which more have smaller dots in `draw_run`


def draw_curves(
    runs: Sequence[epath.Path],
    output: epath.Path,
    labels: Sequence[str] | None = None,
    title: str = '',
) -> None:
    """Draw training loss and top-1 error over the epochs, one colour for each run.

    Thin lines are the logged steps. Thick lines are the means of the logged steps of each epoch,
    measured during training and not by one network on the whole data set. Dots are evaluations.
    Dashed lines are chance, log(classes) and 1 - 1 / classes.

    Raises UserError for a folder that is not a workdir, and for a file that cannot be written.
    """
    labels = labels or [run.name for run in runs]
    if len(labels) != len(runs):
        raise UserError(f'{len(labels)} --labels for {len(runs)} runs; give one for each run')
    loaded = [read_run(run) for run in runs]
    figure, (loss, error) = drawing.pyplot().subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for label, run, colour in zip(labels, loaded, drawing.colours(), strict=False):
        for axes, name in ((loss, 'loss'), (error, 'top1_error')):
            epochs, values = _series(run, f'train/{name}')
            axes.plot(epochs, values, color=colour, linewidth=0.6, alpha=0.35)
            axes.plot(*epoch_means(epochs, values), color=colour, linewidth=1.8, label=label)
            axes.plot(*_series(run, f'eval/{name}'), 'o', color=colour, markersize=4)
    for classes in sorted({run.fields['model.num_classes'] for run in loaded}):
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
    drawing.save(figure, output)


def draw_relu_vs_tanh(
    runs: Sequence[epath.Path], output: epath.Path, title: str = ''
) -> dict[str, Any]:
    """Draw the training error of runs with ReLU and with tanh, as Fig. 1 (Paper 3.1).

    Each run may have its own learning rate. For each activation the run that reaches 25 % training
    error in the fewest epochs counts and is drawn as a thick line. Points are means of epochs.

    Returns `runs`, each with `run`, `activation`, `learning_rate`, its `epochs` and `epoch`, where
    it reaches 25 % (None if it does not); and `ratio`, tanh's epochs divided by ReLU's (None if
    either does not reach it). Raises UserError as `draw_curves` does, and for runs that differ in
    more than activation, learning rate, length and fields of the role PLACE.
    """
    loaded = [read_run(run) for run in runs]
    for run in loaded:
        _require_comparable(run, loaded[0])
    found = [_row(run) for run in loaded]
    best = {}
    for row in sorted(found, key=lambda row: (row['epoch'] or math.inf, -row['epochs'])):
        best.setdefault(row['activation'], row)
    figure, axes = drawing.pyplot().subplots(figsize=(6, 4.2), layout='constrained')
    style = {'relu': {'color': 'C0', 'linestyle': '-'}, 'tanh': {'color': 'C1', 'linestyle': '--'}}
    for run, row in zip(loaded, found, strict=True):
        counts = row is best[row['activation']]
        axes.plot(
            *training_error(run.rows),
            marker='.',
            **style[row['activation']],
            linewidth=1.8 if counts else 0.6,
            label=in_words(row) if counts else None,
        )
    axes.axhline(paper.TRAINING_ERROR, color='0.5', linewidth=0.8, linestyle='--')
    axes.set(xlabel='epochs', ylabel='training error rate', xlim=(0, None), ylim=(0, 0.75))
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(title)
    drawing.save(figure, output)
    relu, tanh = (best.get(activation, {}).get('epoch') for activation in _ACTIVATIONS)
    return {'runs': found, 'ratio': round(tanh / relu, 4) if relu and tanh else None}


def in_words(row: Mapping[str, Any]) -> str:
    """Describe a run of the result of `draw_relu_vs_tanh` in words."""
    epoch, epochs = row['epoch'], row['epochs']
    where = f'25 % after {epoch:.2f} epochs' if epoch else f'not at 25 % in {epochs:.2f} epochs'
    return f'{row["activation"]}, rate {row["learning_rate"]:g}: {where}'


def draw_run(run: Run) -> list[drawing.Drawing]:
    """Draw a run's loss, errors and learning rate over the epochs, each for a page of HTML.

    A figure for which the run has no numbers yet is left out. The elements have no colours of their
    own and a transparent background; see `Drawing`.
    """
    chance, classes = 'The dashed line is chance.', run.fields['model.num_classes']
    parts = 'The thin line is the logged steps, the thick line their mean in each epoch'
    drawings: list[drawing.Drawing] = []
    for name, title, least in (
        ('loss', 'Training loss', math.log(classes)),
        ('top1_error', 'Training error', 1 - 1 / classes),
    ):
        epochs, values = _series(run, f'train/{name}')
        if epochs.size:
            figure, axes = _small('cross-entropy' if name == 'loss' else 'top-1 error')
            _plot(axes, epochs, values, drawing.LINES[0], linewidth=0.7, alpha=0.5)
            _plot(axes, *epoch_means(epochs, values), drawing.LINES[0], linewidth=2)
            evaluations = _series(run, f'eval/{name}')
            size = 4 if evaluations[0].size <= _MANY else 2
            axes.plot(*evaluations, 'o', color=drawing.LINES[1], markersize=size)
            axes.axhline(least, color=drawing.FAINT, linewidth=1, linestyle='--')
            axes.set_ylim(0, None)
            caption = f'{parts}; the dots are evaluations. {chance}'
            drawings.append(drawing.inline(figure, title, caption))
    errors = {
        'eval/top1_error': ('top-1', '-', 'o'),
        'eval/top5_error': ('top-5', '--', 's'),
        'eval/top1_error_10_views': ('top-1, ten views', '', '^'),
        'eval/top5_error_10_views': ('top-5, ten views', '', 'v'),
    }
    series = {name: _series(run, name) for name in errors}
    if any(epochs.size for epochs, _ in series.values()):
        figure, axes = _small('error')
        for colour, (name, (label, line, marker)) in zip(
            drawing.LINES, errors.items(), strict=True
        ):
            epochs, values = series[name]
            if epochs.size:
                axes.plot(
                    epochs, values, color=colour, linestyle=line, marker=marker, label=label,
                    markersize=5 if epochs.size <= _MANY else 2,
                )  # fmt: skip
        axes.set_ylim(0, None)
        axes.legend(frameon=False, labelcolor=drawing.INK)
        caption = 'The errors on the evaluation split.'
        drawings.append(drawing.inline(figure, 'Evaluation errors', caption))
    epochs, rates = _series(run, 'train/learning_rate')
    if epochs.size:
        figure, axes = _small('learning rate')
        _plot(axes, epochs, rates, drawing.LINES[2], linewidth=2)
        if rates.min() > 0 and rates.max() >= 5 * rates.min():
            axes.set_yscale('log')
        else:
            axes.set_ylim(0, 1.1 * rates.max() or 1)
        drawings.append(drawing.inline(figure, 'Learning rate', 'The rate of the logged steps.'))
    return drawings


def _small(label: str) -> tuple[Any, Any]:
    """Return a figure whose texts can be read where it is as wide as a phone, and its axes."""
    figure, axes = drawing.pyplot().subplots(figsize=(4.6, 3.0), layout='constrained')
    axes.set(xlabel='epoch', ylabel=label)
    axes.xaxis.label.set_color(drawing.INK)
    axes.yaxis.label.set_color(drawing.INK)
    axes.tick_params(which='both', colors=drawing.INK)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(drawing.INK)
    return figure, axes


def _plot(axes: Any, epochs: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> None:
    """Plot a line, with points where there are so few that they would make no line."""
    axes.plot(epochs, values, color=colour, marker='.' if epochs.size < 5 else '', **style)


def _require_comparable(run: Run, first: Run) -> None:
    """Raise UserError for a run with another activation, or that differs from the first run."""
    activation = run.fields.get('model.activation')
    if activation not in _ACTIVATIONS:
        raise UserError(
            f'{run.name} has model.activation = {activation!r}; name runs with relu and with tanh'
        )
    # Seeds must be equal, because the best run counts: more seeds would favour an activation.
    ours, theirs = ({**without_places(r), 'seed': r.fields['seed']} for r in (run, first))
    for name in sorted({*ours, *theirs} - {*_FREE_IN_FIG_1}):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f'{run.name} has {name} = {ours.get(name)!r} and {first.name} has '
                f'{theirs.get(name)!r}; name runs that differ only in activation, learning rate '
                'and length'
            )


def _row(run: Run) -> dict[str, Any]:
    """Return the row of a run in the result of `draw_relu_vs_tanh`."""
    epoch = run.metrics.get(paper.EPOCHS)
    return {
        'run': run.name,
        'activation': run.fields['model.activation'],
        'learning_rate': run.fields['optim.learning_rate'],
        'epoch': epoch and round(epoch, 4),
        'epochs': run.epoch,
    }


def _series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and values of the rows that have the metric."""
    chosen = [(row['epoch'], row[name]) for row in run.rows if name in row]
    epochs, values = np.array(chosen, float).reshape(-1, 2).T
    return epochs, values
