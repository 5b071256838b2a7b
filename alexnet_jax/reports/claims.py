"""Compare finished runs with the paper's claims: find the runs of each claim, and their result."""

import collections
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax.reports import paper
from alexnet_jax.reports.workdirs import METRICS, Run, read_runs, role, without_places
from alexnet_jax.runtime.config import MEANING, with_off_values
from alexnet_jax.training.config import Config

# A field that was added after the paper's values were written down has its `off` value.
_ALEXNET = with_off_values(Config, paper.ALEXNET)


def reproduction(directory: epath.Path) -> dict[str, list[dict[str, Any]]]:
    """Compare the runs in a folder with the paper's claims.

    Returns `rows`, one for each claim of `paper.CLAIMS`, measured only if a finished run has the
    configuration of that claim; `others`, the finished runs that belong to no claim, grouped over
    their seeds; and `left_out`, the folders without a finished run, with the reason. Raises
    UserError if the folder does not exist.
    """
    runs, left_out = read_runs(directory)
    found = {experiment.name: _variants(experiment, runs) for experiment in paper.EXPERIMENTS}
    notes = {experiment.name: experiment.note for experiment in paper.EXPERIMENTS}
    used = {run.name for variants in found.values() for same in variants.values() for run in same}
    return {
        'rows': [_row(claim, found, notes) for claim in paper.CLAIMS],
        'others': _others([run for run in runs if run.name not in used]),
        'left_out': left_out,
    }


def differences(experiment: paper.Experiment, run: Run) -> list[str]:
    """Return the fields by which a run differs in meaning from the experiment.

    The run is compared with the nearer of the two recipes of `paper.RECIPES`. A field that is
    missing in the run has the paper's value; a field that this version does not know counts as a
    difference. `training.total_epochs` stands for the epochs that were run, and
    `training.init_from` for the data set of the run that gave the initial weights.
    """
    assert experiment.fields is not None
    have = {**_ALEXNET, **run.fields}
    have['data.name'] = have['data.name'].partition(':')[0]
    wanted = ({**_ALEXNET, **recipe, **experiment.fields} for recipe in paper.RECIPES)
    wrong = min((_unlike(have, want) for want in wanted), key=len)
    first, last = experiment.epochs
    if not first <= run.epoch <= last:
        wrong.append('training.total_epochs')
    if run.init_data.partition('/')[0] != experiment.pretrained_on:
        wrong.append('training.init_from')
    return sorted(set(wrong))


def _unlike(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """Return the fields of role MEANING whose values in `have` are not those in `want`."""
    names = [name for name in have if role(name) == MEANING]
    return [
        name
        for name in names
        if name not in want or not (_is_unused(name, have) or _fits(have[name], want[name]))
    ]


def _fits(value: Any, wanted: Any) -> bool:
    return value == wanted if not isinstance(wanted, frozenset) else not wanted or value in wanted


def _is_unused(name: str, fields: Mapping[str, Any]) -> bool:
    """Say whether a field has no effect, because its layer, pooling or norm is not used."""
    section, _, field = name.rpartition('.')
    if field != 'features' and fields.get(f'{section}.features') == 0:
        return True
    if field == 'sees_both_towers':
        return fields['model.towers'] == 1
    if field.startswith('pool_'):
        return 'pool' not in fields[f'{section}.after']
    if section in ('model.lrn', 'model.map_norm'):
        norm = section.removeprefix('model.')
        layers = [f'model.conv{n}' for n in range(1, 7) if fields[f'model.conv{n}.features']]
        return not any(norm in fields[f'{layer}.after'] for layer in layers)
    return False


def is_of(experiment: paper.Experiment, run: Run) -> bool:
    """Say whether a run, or an ensemble, belongs to an experiment."""
    if experiment.fields is None or len(run.members) != sum(experiment.members.values()):
        return False
    if not experiment.members:
        return set(differences(experiment, run)) <= set(experiment.may_differ)
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


def _variants(experiment: paper.Experiment, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return an experiment's runs, grouped by the fields that `may_differ`, `field value, ...`."""
    variants = collections.defaultdict(list)
    for run in runs:
        if is_of(experiment, run):
            other = [] if experiment.members else differences(experiment, run)
            variants[', '.join(f'{name} {run.fields[name]}' for name in other)].append(run)
    return variants


def _row(
    claim: paper.Claim, found: Mapping[str, Mapping[str, list[Run]]], notes: Mapping[str, str]
) -> dict[str, Any]:
    """Return a claim's row, from the variant with the fewest differences among those measured."""
    words = claim.metric.removeprefix('eval/').replace('_', ' ')
    summaries = {
        variant: summary
        for variant, runs in found[claim.experiment].items()
        if (summary := summarise(runs, claim.metric))
    }
    if base := claim.less or claim.times:
        words += f', {"above" if claim.less else "times"} that of {base}'
        combine = operator.sub if claim.less else operator.truediv
        summaries = {
            variant: _combine(combine, ours, theirs)
            for variant, ours in summaries.items()
            if (theirs := summarise(found[base].get(variant, []), claim.metric))
        }
    variant = min(summaries, key=len, default='')
    ours = summaries.get(variant)
    note = variant or notes[claim.experiment]
    if not ours and claim.metric == paper.EPOCHS:
        note = _not_reached(found[claim.experiment])
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
        'note': note,
    }


def _not_reached(variants: Mapping[str, list[Run]]) -> str:
    """Say how far the longest run got without reaching the training error of Fig. 1."""
    runs = [run for same in variants.values() for run in same if paper.EPOCHS not in run.metrics]
    longest = max(runs, key=lambda run: run.epoch, default=None)
    return f'not reached in the {longest.epoch:.1f} epochs of {longest.name}' if longest else ''


def summarise(runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """Return mean, minimum and maximum over the seeds, errors in percent; each seed counts once.

    Several runs of one seed count as their mean. For `paper.EPOCHS` they may differ in the learning
    rate, and only the run that needs the fewest epochs counts (Paper 3.1).
    """
    scale = 100 if metric in METRICS else 1
    seeds = collections.defaultdict(list)
    with_metric = [run for run in runs if metric in run.metrics]
    for run in with_metric:
        chosen = run.members or (run,)
        seeds[tuple(sorted(m.fields['seed'] for m in chosen))].append(scale * run.metrics[metric])
    if not seeds:
        return None
    values = [
        min(same) if metric == paper.EPOCHS else sum(same) / len(same) for same in seeds.values()
    ]
    return {
        'mean': round(sum(values) / len(values), 6),
        'min': round(min(values), 6),
        'max': round(max(values), 6),
        'seeds': len(values),
        'runs': [run.name for run in with_metric],
    }


def _combine(
    function: Callable[[float, float], float], a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        'mean': round(function(a['mean'], b['mean']), 6),
        'min': round(function(a['min'], b['max']), 6),
        'max': round(function(a['max'], b['min']), 6),
        'seeds': min(a['seeds'], b['seeds']),
        'runs': [*a['runs'], *b['runs']],
    }


def _others(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Group the runs that differ only in fields of the role PLACE, such as the seed."""
    groups = collections.defaultdict(list)
    for run in runs:
        key = [without_places(run), [m.fields for m in run.members]]
        groups[json.dumps(key, sort_keys=True)].append(run)
    return [
        {
            'data': data_of(same[0]),
            'metric': metric,
            **{('ours' if k == 'mean' else k): v for k, v in summary.items()},
            'epochs': same[0].epoch,
        }
        for same in groups.values()
        for metric in METRICS
        if (summary := summarise(same, metric))
    ]


def data_of(run: Run) -> str:
    """Return the data set and the split, with a note for the training split or an ensemble."""
    name, split = run.fields['data.name'], run.fields['data.eval_split']
    own = ', the training examples' if split == run.fields['data.train_split'] else ''
    ensemble = f', {len(run.members)} networks as one' if run.members else ''
    return f'{name} {split}{own}{ensemble}'
