"""Finished runs held against the paper's claims: which run is of which claim, and what it says."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax import config as config_lib
from alexnet_jax import paper
from alexnet_jax.config import UserError

# What two runs of the same experiment may differ in; their seeds are counted.
FREE = (
    *('seed', 'parallel.', 'checkpoint.', 'log.', 'evaluation.', 'model.dtype', 'data.dir'),
    *('data.image_shape', 'data.read_threads', 'data.prefetch_batches'),
    *('training.accumulation_steps', 'training.log_every_steps', 'training.eval_every_epochs'),
    *('training.watchdog_s', 'training.total_epochs', 'training.total_steps'),
    *('training.compilation_cache_dir', 'model.precision', 'model.forms'),
    *('optim.schedule', 'optim.drop_', 'optim.plateau_', 'optim.events'),
)
# What changes neither what a run computes nor the data it is judged on: seed and places.
_PLACES = ('seed', 'parallel.', 'checkpoint.', 'log.', 'data.dir', 'data.read', 'data.prefetch')
_FILES = ('config.json', 'environment.json', 'metrics.jsonl')
METRICS = tuple(f'eval/top{k}_error{views}' for views in ('', '_10_views') for k in (1, 5))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, or a finished ensemble."""

    name: str
    fields: Mapping[str, Any]  # its configuration, flat
    epoch: float  # at the last evaluation
    metrics: Mapping[str, float]  # of the last evaluation
    init_data: str = ''  # the data set of the run that it began from
    members: tuple['Run', ...] = ()


def reproduction(directory: epath.Path) -> dict[str, list[dict[str, Any]]]:
    """Hold the runs in a folder against the paper's claims.

    Returns `rows`, one for each claim of `paper.CLAIMS`, measured only where a finished run has
    that claim's configuration; `others`, the finished runs that are of no claim, grouped over their
    seeds; `left_out`, the folders that hold no finished run, with the reason. Raises UserError
    when there is no such folder.
    """
    runs, left_out = read_runs(directory)
    found = {
        experiment.name: [run for run in runs if is_of(experiment, run)]
        for experiment in paper.EXPERIMENTS
    }
    notes = {experiment.name: experiment.note for experiment in paper.EXPERIMENTS}
    used = {run.name for chosen in found.values() for run in chosen}
    return {
        'rows': [_row(claim, found, notes) for claim in paper.CLAIMS],
        'others': _others([run for run in runs if run.name not in used]),
        'left_out': left_out,
    }


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


def differences(experiment: paper.Experiment, run: Run) -> list[str]:
    """Return the fields in which a run is not the experiment's, by the recipe that it is nearest.

    A field that the run does not know yet has the paper's value; one that the paper's network does
    not have could mean anything and is a difference. Among the fields are `training.total_epochs`,
    for the epochs that were run, and `training.init_from`, for the data set of its first run.
    """
    assert experiment.fields is not None
    have = {**paper.ALEXNET, **run.fields}
    have['data.name'] = have['data.name'].partition(':')[0]
    wanted = ({**paper.ALEXNET, **recipe, **experiment.fields} for recipe in paper.RECIPES)
    wrong = min((_unlike(have, want) for want in wanted), key=len)
    first, last = experiment.epochs
    if not first <= run.epoch <= last:
        wrong.append('training.total_epochs')
    if run.init_data.partition('/')[0] != experiment.pretrained_on:
        wrong.append('training.init_from')
    return sorted(set(wrong))


def _unlike(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    names = [name for name in have if not name.startswith((*FREE, *_idle(want)))]
    return [name for name in names if name not in want or not _fits(have[name], want[name])]


def _fits(value: Any, wanted: Any) -> bool:
    return value == wanted if not isinstance(wanted, frozenset) else not wanted or value in wanted


def _idle(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields that mean nothing beside the others: of a layer that is not there."""
    layers = [name for name, value in fields.items() if name.endswith('.features') and value == 0]
    idle = [
        f'{layer.removesuffix(".features")}.{field}'
        for layer in layers
        for field in ('kernel', 'stride', 'padding', 'init_', 'lrn', 'pool_', 'sees_')
    ]
    if fields['model.towers'] == 1:
        idle += [name for name in fields if name.endswith('.sees_both_towers')]
    return tuple(idle)


def is_of(experiment: paper.Experiment, run: Run) -> bool:
    """Say whether a run, or an ensemble, is of an experiment."""
    if experiment.fields is None or len(run.members) != sum(experiment.members.values()):
        return False
    if not experiment.members:
        return not differences(experiment, run)
    by_name = {other.name: other for other in paper.EXPERIMENTS}
    for name, count in experiment.members.items():
        seeds = [m.fields['seed'] for m in run.members if not differences(by_name[name], m)]
        if len(seeds) != count or len(set(seeds)) != count:
            return False
    judged_on = ('data.eval_split', 'data.eval_examples')
    want = {**paper.ALEXNET, **experiment.fields}
    return run.fields['data.name'].partition(':')[0] == want['data.name'] and all(
        _fits(run.fields[name], want[name]) for name in judged_on
    )


def _row(
    claim: paper.Claim, found: Mapping[str, list[Run]], notes: Mapping[str, str]
) -> dict[str, Any]:
    ours = summarise(found[claim.experiment], claim.metric)
    words = claim.metric.removeprefix('eval/').replace('_', ' ')
    if claim.less:
        base = summarise(found[claim.less], claim.metric)
        words += f', above that of {claim.less}'
        ours = ours and base and _subtract(ours, base)
    return {
        'claim': f'{claim.experiment}: {words}',
        'paper': claim.paper,
        'run_2012': claim.run_2012,
        'ours': ours['mean'] if ours else None,
        'min': ours['min'] if ours else None,
        'max': ours['max'] if ours else None,
        'seeds': ours['seeds'] if ours else 0,
        'status': 'measured' if ours else 'not run',
        'runs': ours['runs'] if ours else [],
        'source': claim.source,
        'note': notes[claim.experiment],
    }


def summarise(runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """Return mean, least and largest over the seeds, errors in percent; each seed counts once."""
    scale = 1 if metric == 'eval/loss' else 100
    seeds = collections.defaultdict(list)
    with_metric = [run for run in runs if metric in run.metrics]
    for run in with_metric:
        chosen = run.members or (run,)
        seeds[tuple(sorted(m.fields['seed'] for m in chosen))].append(scale * run.metrics[metric])
    if not seeds:
        return None
    values = [sum(same) / len(same) for same in seeds.values()]
    return {
        'mean': round(sum(values) / len(values), 6),
        'min': round(min(values), 6),
        'max': round(max(values), 6),
        'seeds': len(values),
        'runs': [run.name for run in with_metric],
    }


def _subtract(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'mean': round(a['mean'] - b['mean'], 6),
        'min': round(a['min'] - b['max'], 6),
        'max': round(a['max'] - b['min'], 6),
        'seeds': min(a['seeds'], b['seeds']),
        'runs': [*a['runs'], *b['runs']],
    }


def _others(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Group the runs that differ in nothing but their seed and where they ran."""
    groups = collections.defaultdict(list)
    for run in runs:
        key = [without_places(run), [m.fields for m in run.members]]
        groups[json.dumps(key, sort_keys=True)].append(run)
    return [
        {
            'data': _data(same[0]),
            'metric': metric,
            **{('ours' if k == 'mean' else k): v for k, v in summary.items()},
            'epochs': same[0].epoch,
        }
        for same in groups.values()
        for metric in METRICS
        if (summary := summarise(same, metric))
    ]


def without_places(run: Run) -> dict[str, Any]:
    """Return the fields of a run less its seed and where it ran."""
    return {name: v for name, v in run.fields.items() if not name.startswith(_PLACES)}


def _data(run: Run) -> str:
    """Name the data set and the split, and what makes it another one than its name says."""
    name, split = run.fields['data.name'], run.fields['data.eval_split']
    own = ', the training examples' if split == run.fields['data.train_split'] else ''
    ensemble = f', {len(run.members)} networks as one' if run.members else ''
    return f'{name} {split}{own}{ensemble}'
