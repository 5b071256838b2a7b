"""Finished runs as they lie in their workdirs: configuration, last evaluation, what is no run."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from alexnet_jax import config as config_lib
from alexnet_jax.reports import paper
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import epochs_to_error

_FILES = ('config.json', 'environment.json', 'metrics.jsonl')
METRICS = tuple(f'eval/top{k}_error{views}' for views in ('', '_10_views') for k in (1, 5))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, or a finished ensemble."""

    name: str
    fields: Mapping[str, Any]  # its configuration, flat
    epoch: float  # at the last evaluation
    metrics: Mapping[str, float]  # of the last evaluation; and paper.EPOCHS, where it got there
    init_data: str = ''  # the data set of the run that it began from
    members: tuple['Run', ...] = ()


def read_runs(directory: epath.Path) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the finished runs in a folder, and `run` and `reason` of what is left out.

    A folder that has none of a run's files is none, and not listed. Raises UserError when there is
    no such folder.
    """
    if not directory.is_dir():
        raise UserError(f'{directory} is no folder; name that of the workdirs with --runs=DIR')
    runs, left_out = [], []
    for path in sorted(directory.iterdir()):
        if any((path / name).exists() for name in _FILES):
            try:
                runs.append(read_run(path))
            except ValueError as error:
                left_out.append({'run': path.name, 'reason': str(error)})
    return runs, left_out


def read_run(path: epath.Path) -> Run:
    """Read a workdir; raise ValueError, with the reason, if it holds no finished run."""
    config = _json(path / 'config.json')
    _json(path / 'environment.json')
    rows = [_parse(line, 'metrics.jsonl') for line in _lines(path / 'metrics.jsonl')]
    try:
        fields = _fields(config)
        evaluations = [row for row in rows if row['kind'] == 'eval']
        last_step = max((row['step'] for row in rows), default=0)
        if not evaluations or evaluations[-1]['step'] < last_step:
            raise ValueError(f'it has no evaluation at its last step, {last_step}')
        last = evaluations[-1]
        metrics = {name: last[name] for name in (*METRICS, 'eval/loss') if name in last}
        if not all(_is_metric(name, value) for name, value in metrics.items()):
            raise ValueError(f'its last evaluation is damaged: {last}')
        members: tuple[Run, ...] = ()
        if fields.get('evaluation.ensemble'):
            members = tuple(_member(path.name, m) for m in _json(path / 'members.json'))
        else:
            _require_finished(fields, last['step'], last['epoch'])
            epochs = epochs_to_error(rows, paper.TRAINING_ERROR)
            metrics |= {paper.EPOCHS: epochs} if epochs else {}
        starts = [row for row in rows if row.get('event') == 'started']
        # The last one: what was killed before its first save has left one, too.
        init_data = starts[-1].get('init_data', '') if starts else ''
        return Run(path.name, fields, last['epoch'], metrics, init_data, members)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'its files are damaged ({type(error).__name__}: {error})') from error


def _fields(config: Any) -> dict[str, Any]:
    """Return a configuration flat; raise KeyError if it lacks what every run has."""
    fields = config_lib.flatten(config)
    _ = [fields[name] for name in ('seed', 'data.name', 'data.train_split', 'data.eval_split')]
    return fields


def _member(ensemble: str, member: Mapping[str, Any]) -> Run:
    fields = _fields(member['config'])
    _require_finished(fields, member['step'], member['epoch'])
    place, epoch, init_data = member['place'], member['epoch'], member['init_data']
    return Run(f'{ensemble}/{place}', fields, epoch, {}, init_data)


def _require_finished(fields: Mapping[str, Any], step: int, epoch: float) -> None:
    steps, epochs = fields['training.total_steps'], fields['training.total_epochs']
    if step < steps or (not steps and epoch < epochs):
        end = f'step {steps}' if steps else f'epoch {epochs:g}'
        raise ValueError(f'it ended at step {step}, epoch {epoch:g}, and was to go on to {end}')


def _is_metric(name: str, value: Any) -> bool:
    return math.isfinite(value) and value >= 0 and (value <= 1 or name == 'eval/loss')


def _lines(path: epath.Path) -> list[str]:
    lines = _read(path).split('\n')
    if lines.pop():
        raise ValueError(f'the last line of its {path.name} is cut short')
    return lines


def _json(path: epath.Path) -> Any:
    return _parse(_read(path), path.name)


def _read(path: epath.Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'its {path.name} cannot be read ({type(error).__name__})') from error


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'its {name} is damaged ({error})') from error
