"""Compare finished runs that differ in a few fields with a baseline of the same seeds."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from alexnet_jax.reports import claims
from alexnet_jax.reports.workdirs import Run, read_runs, without_places
from alexnet_jax.runtime.errors import UserError


def compare(directory: epath.Path, baseline: str, metric: str) -> dict[str, Any]:
    """Group the runs of a folder by configuration and compare each group with the baseline's.

    Returns `rows`, with the baseline first and the others sorted by `mean`. Each row has `changes`
    (the fields that differ from the baseline, with their values); `mean`, `min` and `max` over the
    `seeds` (errors in percent); `difference`, the mean of the differences from the baseline over
    the common seeds (None if there are none); and `distinguishable`, whether both have at least
    three seeds and their ranges from `min` to `max` do not overlap. Returns also the given `metric`
    (one of `workdirs.METRICS`), the baseline's `data` and `epochs`, and `left_out` as in
    `workdirs.read_runs`.

    Raises UserError for a folder, a baseline or a metric that does not exist.
    """
    runs, left_out = read_runs(directory)
    chosen = next((run for run in runs if run.name == baseline), None)
    if chosen is None:
        known = ', '.join(run.name for run in runs) or 'none'
        raise UserError(
            f'{directory} has no finished run {baseline!r}; choose --baseline from these: {known}'
        )
    common = without_places(chosen)
    groups = collections.defaultdict(list)
    for run in runs:
        groups[tuple(_changes(common, without_places(run)).items())].append(run)
    base = groups.pop(())
    rows = [_row(dict(changes), same, base, metric) for changes, same in groups.items()]
    rows.sort(key=lambda row: row['mean'])
    return {
        'rows': [_row({}, base, base, metric), *rows],
        'metric': metric,
        'data': claims.data_of(chosen),
        'epochs': chosen.epoch,
        'left_out': left_out,
    }


def _changes(common: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    names = sorted({*common, *fields})
    return {name: fields.get(name) for name in names if fields.get(name) != common.get(name)}


def _row(
    changes: Mapping[str, Any], runs: Sequence[Run], base: Sequence[Run], metric: str
) -> dict[str, Any]:
    ours, theirs = (claims.summarise(same, metric) for same in (runs, base))
    if ours is None or theirs is None:
        missing = (runs if ours is None else base)[0].name
        raise UserError(f'{missing} has no {metric}; name another --metric')
    here, there = _by_seed(runs, metric), _by_seed(base, metric)
    paired = [here[seed] - there[seed] for seed in here if seed in there]
    apart = ours['min'] > theirs['max'] or ours['max'] < theirs['min']
    return {
        'changes': changes,
        **ours,
        'difference': round(sum(paired) / len(paired), 6) if paired else None,
        'distinguishable': apart and min(ours['seeds'], theirs['seeds']) >= 3,
    }


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """Return the mean over the runs of each seed, in percent."""
    found = collections.defaultdict(list)
    for run in runs:
        found[run.fields['seed']].append(100 * run.metrics[metric])
    return {seed: sum(values) / len(values) for seed, values in found.items()}
