"""Read the workdirs of runs, finished or not: their configurations and their metrics."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax.checkpoint.earlier import in_present_names
from alexnet_jax.reports import paper
from alexnet_jax.reports.curves import epochs_to_error
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.config import MEANING, PLACE, is_number
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import initial_data, read_rows
from alexnet_jax.training.config import Config

_FILES = ('config.json', 'environment.json', 'metrics.jsonl')
_IN_EVERY_RUN = (
    *('seed', 'data.name', 'data.train_split', 'data.eval_split', 'model.num_classes'),
    *('optim.learning_rate', 'training.total_steps', 'training.total_epochs'),
)
_ROLES = {name: field.metadata['role'] for name, field in sections.fields(Config).items()}
METRICS = tuple(f'eval/top{k}_error{views}' for views in ('', '_10_views') for k in (1, 5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run, finished or not, or an ensemble of runs."""

    name: str  # of its folder
    fields: Mapping[str, Any]  # its configuration by dotted names; see `role`
    step: int  # of its last row
    epoch: float  # of its last row
    rows: Sequence[Mapping[str, Any]] = ()  # of metrics.jsonl
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # see `_last_metrics`
    init_data: str = ''  # the data set of the run that gave its initial weights; '' for none
    members: tuple['Run', ...] = ()  # of an ensemble


def role(field: str) -> str:
    """Return the role of a field; for a field of another version it is MEANING, to be safe."""
    return _ROLES.get(field, MEANING)


def without_places(run: Run) -> dict[str, Any]:
    """Return the fields of a run except those of the role PLACE, in which seeds may differ."""
    return {name: value for name, value in run.fields.items() if role(name) != PLACE}


def read_run(path: epath.Path) -> Run:
    """Read a workdir; raise UserError, in one line, for one that is incomplete or damaged."""
    for name in _FILES:
        if not (path / name).is_file():
            raise UserError(
                f'{path} is not the workdir of a run: it has no {name}; name a folder that '
                'alexnet_jax.main wrote as --workdir'
            )
    config, _ = read_json(path / 'config.json'), read_json(path / 'environment.json')
    rows = read_rows(path / 'metrics.jsonl')
    try:
        fields = _fields(config)
        members: tuple[Run, ...] = ()
        if fields.get('evaluation.ensemble'):
            members = tuple(_member(path.name, m) for m in read_json(path / 'members.json'))
        last = rows[-1] if rows else {'step': 0, 'epoch': 0.0}
        return Run(
            name=path.name,
            fields=fields,
            step=int(last['step']),
            epoch=float(last['epoch']),
            rows=rows,
            metrics=_last_metrics(rows),
            init_data=initial_data(rows),
            members=members,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise UserError(
            f'the files of the run {path} are damaged ({reason}); restore them from a copy'
        ) from error


def read_runs(directory: epath.Path) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the finished runs in a folder, and the `run` and `reason` of each that is left out.

    A folder with none of a run's files is not listed. Raises UserError if the folder does not
    exist.
    """
    if not directory.is_dir():
        raise UserError(f'{directory} is not a folder; name a folder of workdirs with --runs=DIR')
    runs, left_out = [], []
    for path in sorted(directory.iterdir()):
        if any((path / name).exists() for name in _FILES):
            try:
                run = read_run(path)
                _require_result(run)
                runs.append(run)
            except UserError as error:
                left_out.append({'run': path.name, 'reason': str(error)})
    return runs, left_out


def _fields(config: Any) -> dict[str, Any]:
    """Return a configuration by dotted names; raise KeyError if a field of every run is missing."""
    fields = sections.with_off_values(Config, sections.flatten(in_present_names(config)))
    _ = [fields[name] for name in _IN_EVERY_RUN]
    return fields


def _member(ensemble: str, member: Mapping[str, Any]) -> Run:
    return Run(
        name=f'{ensemble}/{member["place"]}',
        fields=_fields(member['config']),
        step=int(member['step']),
        epoch=float(member['epoch']),
        init_data=member['init_data'],
    )


def _last_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last evaluation's loss and errors, and paper.EPOCHS if the run reached it."""
    evaluations = [row for row in rows if row['kind'] == 'eval']
    last = evaluations[-1] if evaluations else {}
    metrics = {name: last[name] for name in (*METRICS, 'eval/loss') if name in last}
    epochs = epochs_to_error(rows, paper.TRAINING_ERROR)
    return metrics | ({paper.EPOCHS: epochs} if epochs else {})


def why_unfinished(run: Run) -> str:
    """Return why a run is not finished or has no sound result, or '' for a finished run."""
    try:
        _require_result(run)
    except UserError as error:
        return str(error)
    return ''


def _require_result(run: Run) -> None:
    """Raise UserError, with the reason, for a run that is not finished or has a damaged result."""
    evaluated = [row['step'] for row in run.rows if row['kind'] == 'eval']
    if not evaluated or evaluated[-1] != run.step:
        raise UserError(f'it has no evaluation at its last step, {run.step}')
    if not all(_is_possible(name, value) for name, value in run.metrics.items()):
        raise UserError(f'its last evaluation is damaged: {run.metrics}')
    for part in run.members or (run,):
        steps, epochs = part.fields['training.total_steps'], part.fields['training.total_epochs']
        if part.step < steps or (not steps and part.epoch < epochs):
            end = f'step {steps}' if steps else f'epoch {epochs:g}'
            raise UserError(f'it ended at step {part.step}, epoch {part.epoch:g}, before {end}')


def _is_possible(name: str, value: Any) -> bool:
    return is_number(value) and value >= 0 and (value <= 1 or name not in METRICS)


def read_json(path: epath.Path) -> Any:
    """Return what a JSON file holds; raise UserError, in one line, if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'{path} cannot be read ({reason}); restore it from a copy') from error
