"""Evaluate an ensemble: the mean of its networks' softmax outputs, or their best mixture."""

import dataclasses
import functools
import json
import logging
import operator
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.checkpoint.manifest import parameters_sha256
from alexnet_jax.checkpoint.pretrained import read, restore_network, workdir_of
from alexnet_jax.input import sources
from alexnet_jax.input.sources import Split
from alexnet_jax.parallel import processes
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import initial_data, read_rows
from alexnet_jax.training import class_report, provenance
from alexnet_jax.training.config import Config
from alexnet_jax.training.evaluate import require_finite_outputs, words
from alexnet_jax.training.experiment import Experiment, build

_logger = logging.getLogger(__name__)
Outputs = dict[str, np.ndarray]  # softmax outputs [N, classes] under '' and '_10_views'
_MAX_ROUNDS = 10_000
_GAP = 1e-6  # nats; the search ends when the log-loss is this close to the least one


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of an ensemble."""

    place: str  # the workdir, or one of its checkpoints
    step: int
    epoch: float
    sha256: str
    config: Mapping[str, Any]  # with which it was trained
    init_data: str  # the data set of the run that gave its initial weights; '' for none
    experiment: Experiment  # with which it is evaluated
    outputs: Outputs  # for the examples of the evaluation
    labels: np.ndarray  # int32 [N]
    search_outputs: Outputs  # for the examples on which the weights are searched
    search_labels: np.ndarray


def evaluate_ensemble(config: Config) -> None:
    """Evaluate the networks of `evaluation.ensemble` together, and print a line for each and all.

    Each network keeps the architecture, augmentation and training split of its own configuration;
    the data set, the evaluation and the mesh are those of `config`. The last line is
    `ensemble of N by mean|search top1_error X top5_error Y`, followed by the errors with ten views.
    All outputs are held in memory: 0.2 GB per network for 50,000 examples of 1000 classes, and
    twice that with ten views. They are also written to `evaluation.ensemble_dir`, if it is set, as
    .npy files. The report of each class goes to `evaluation.report_dir`, if that is set.

    Raises UserError for a member that does not exist or was trained on another data set, and if the
    weights would be searched on examples of the evaluation.
    """
    began = time.monotonic()
    settings = config.evaluation
    directory = None
    if settings.ensemble_dir:
        directory = storage.resolve(settings.ensemble_dir, 'config.evaluation.ensemble_dir')
    if directory and (directory / 'checkpoints').exists():
        raise UserError(
            f'config.evaluation.ensemble_dir = {directory} is the workdir of a run; name another'
        )
    split, search = _open_splits(config)
    report_directory = class_report.open_directory(settings.report_dir)
    members = [_evaluate_member(config, place, split, search) for place in settings.ensemble]
    _require_different(members)
    weights = np.full(len(members), 1 / len(members))
    if search:
        best = [list(member.search_outputs.values())[-1] for member in members]
        weights = search_weights(best, members[0].search_labels)
    mixed, labels = mix(weights, [m.outputs for m in members]), members[0].labels
    metrics = _metrics(mixed, labels)
    if jax.process_index() == 0:
        if directory:
            row = {'step': 0, 'epoch': 0.0, 'kind': 'eval'}
            row |= {'time_s': round(time.monotonic() - began, 3), **metrics}
            _save(directory, members, weights, row)
        for member, weight in zip(members, weights, strict=True):
            alone = words(_metrics(member.outputs, member.labels))
            print(
                f'{member.place} weight {weight:.4f} step {member.step} sha256 {member.sha256} '
                f'{alone}'
            )
        print(f'ensemble of {len(members)} by {settings.ensemble_weights} {words(metrics)}')
    if report_directory:
        networks = [
            {'place': m.place, 'step': m.step, 'sha256': m.sha256, 'weight': float(weight)}
            for m, weight in zip(members, weights, strict=True)
        ]
        about = {'ensemble': networks}
        predicted = np.argmax(list(mixed.values())[-1], axis=1)  # of equal outputs the first
        class_report.save(
            report_directory, members[0].experiment, split, about, metrics, labels, predicted
        )
    # If the other processes ended first, process 0 would abort.
    processes.wait_for_all('the ensemble is saved')


def search_weights(outputs: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return the weights of the mixture with the least log-loss: [K], at least 0, their sum 1.

    `outputs` are K arrays [N, classes] and `labels` int [N]. Each round of expectation-maximisation
    sets w_k <- mean_n (w_k p_k / sum_j w_j p_j), where p_k is the probability that network k gives
    the label. The loss is convex, and its distance from the least loss is at most
    max_k mean_n (p_k / sum_j w_j p_j) - 1, which is at most log(K) / t after t rounds. If it is
    still above `_GAP` after 10,000 rounds, a warning says so.
    """
    rows = np.arange(len(labels))
    given = np.stack([_positive(output[rows, labels]) for output in outputs])
    weights = np.full(len(outputs), 1 / len(outputs))
    left = np.inf
    for _ in range(_MAX_ROUNDS):
        gains = np.mean(given / (weights @ given), axis=1)
        left = gains.max() - 1
        if left < _GAP:
            return weights
        weights = weights * gains
    _logger.warning(
        'the search for weights stopped after %d rounds; its log-loss is within %.1e nats of the '
        'least',
        _MAX_ROUNDS,
        left,
    )
    return weights


def mix(weights: np.ndarray, outputs: Sequence[Outputs]) -> Outputs:
    """Return the weighted sums of the networks' outputs, in float64."""
    mixed = {name: np.zeros(output.shape) for name, output in outputs[0].items()}
    for weight, output in zip(weights, outputs, strict=True):
        for name in mixed:
            mixed[name] += weight * output[name].astype(np.float64)
    return mixed


def _metrics(outputs: Outputs, labels: np.ndarray) -> dict[str, float]:
    """Return the loss and errors, named as in an evaluation; the first of equal outputs wins."""
    rows, metrics = np.arange(len(labels)), {}
    metrics['eval/loss'] = float(-np.mean(np.log(_positive(outputs[''][rows, labels]))))
    for name, output in outputs.items():
        own = output[rows, labels][:, None]
        earlier = np.arange(output.shape[1]) < labels[:, None]
        before = np.sum((output > own) | ((output == own) & earlier), axis=1)
        metrics[f'eval/top1_error{name}'] = float(np.mean(before >= 1))
        metrics[f'eval/top5_error{name}'] = float(np.mean(before >= 5))
    return metrics


def _positive(probabilities: np.ndarray) -> np.ndarray:
    """Return the probabilities in float64, raised above 0 so that their logarithms are finite."""
    return np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)


def _as_trained(config: Config, meta: Mapping[str, Any]) -> Config:
    """Return `config` with the network, augmentation and training split of a saved run."""
    ours, saved = config.to_dict(), meta['config']
    known = sections.fields(Config)
    for name, value in sections.flatten({k: saved[k] for k in ('model', 'augment')}).items():
        if name in known:  # otherwise it is a field of another version
            *path, last = name.split('.')
            functools.reduce(operator.getitem, path, ours)[last] = value
    ours['data']['train_split'] = saved['data']['train_split']
    ours['data']['train_examples'] = 0  # unchecked: the run itself checked the number
    return Config.from_dict(ours)


def _open_splits(config: Config) -> tuple[Split, Split | None]:
    """Open the evaluation split, and the split to search weights on if they are searched."""
    split = sources.open_dataset(config.data).eval
    if config.evaluation.ensemble_weights == 'mean':
        return split, None
    if not config.evaluation.ensemble_search_split:
        raise UserError(
            'config.evaluation.ensemble_weights = search needs examples to search on; for example '
            "--config.evaluation.ensemble_search_split='train[:5%]'"
        )
    search_split = config.evaluation.ensemble_search_split
    data = dataclasses.replace(config.data, eval_split=search_split, eval_examples=0)
    search = sources.open_dataset(data).eval
    if search.overlaps(split):
        raise UserError(
            f'config.evaluation.ensemble_search_split = {search.name!r} shares examples with '
            f'data.eval_split = {split.name!r}; choose splits that do not overlap'
        )
    return split, search


def _evaluate_member(config: Config, place: str, split: Split, search: Split | None) -> Member:
    def restore(checkpoints: Checkpoints, step: int, meta: dict[str, Any]) -> Any:
        if meta['data']['train_name'] != split.full_name:
            raise UserError(
                f'{place} was trained on {meta["data"]["train_name"]}, not {split.full_name}; '
                'all networks of an ensemble must be trained on the data set of the evaluation'
            )
        experiment = build(_as_trained(config, meta))
        wanted = experiment.abstract_state().network
        return step, meta, experiment, restore_network(wanted, checkpoints, step, place)

    path = storage.resolve(place, 'config.evaluation.ensemble')
    step, meta, experiment, network = read(path, config.evaluation.checkpoint, restore)
    provenance.require_same_in_all_processes(experiment, 'evaluate')
    outputs, labels = _predict(experiment, network, split)
    search_outputs, search_labels = (
        _predict(experiment, network, search) if search else ({}, labels)
    )
    everything = (*outputs.values(), *search_outputs.values())
    require_finite_outputs(place, all(np.isfinite(array).all() for array in everything))
    examples = meta['data']['train_examples']
    return Member(
        place=place,
        step=step,
        epoch=step * meta['config']['training']['batch_size'] / examples,
        sha256=parameters_sha256(network),
        config=meta['config'],
        init_data=initial_data(read_rows(workdir_of(path) / 'metrics.jsonl')),
        experiment=experiment,
        outputs=outputs,
        labels=labels,
        search_outputs=search_outputs,
        search_labels=search_labels,
    )


def _require_different(members: Sequence[Member]) -> None:
    places: dict[str, str] = {}
    for member in members:
        if member.sha256 in places:
            raise UserError(
                f'{places[member.sha256]} and {member.place} are the same network; name it once in '
                'config.evaluation.ensemble'
            )
        places[member.sha256] = member.place


def _predict(experiment: Experiment, network: Any, split: Split) -> tuple[Outputs, np.ndarray]:
    """Return the softmax outputs and the labels of every example of a split, in its order."""
    step = experiment.probability_step(experiment.config.evaluation.final_views)
    return experiment.collect(step, network, split)


def _save(
    directory: epath.Path,
    members: Sequence[Member],
    weights: np.ndarray,
    row: Mapping[str, Any],
) -> None:
    """Write the labels and each member's outputs as .npy files, and members.json.

    The outputs are member_I.npy and member_I_10_views.npy, and those for the search begin with
    `search_`. The files of every run are written as well, with `row` as the only one of
    metrics.jsonl.
    """
    with storage.writing(f'the ensemble to {directory}'):
        directory.mkdir(parents=True, exist_ok=True)
        _write_outputs(directory, members, weights, row)


def _write_outputs(
    directory: epath.Path,
    members: Sequence[Member],
    weights: np.ndarray,
    row: Mapping[str, Any],
) -> None:
    provenance.save(members[0].experiment, directory)
    arrays = {'labels': members[0].labels}
    if members[0].search_outputs:
        arrays['search_labels'] = members[0].search_labels
    for index, member in enumerate(members):
        arrays |= {f'member_{index}{views}': x for views, x in member.outputs.items()}
        arrays |= {f'search_member_{index}{views}': x for views, x in member.search_outputs.items()}
    for name, array in arrays.items():
        with (directory / f'{name}.npy').open('wb') as file:
            np.save(file, array, allow_pickle=False)
    about = [
        {
            'place': member.place,
            'step': member.step,
            'epoch': round(member.epoch, 4),
            'sha256': member.sha256,
            'weight': float(weight),
            'init_data': member.init_data,
            'config': member.config,
        }
        for member, weight in zip(members, weights, strict=True)
    ]
    (directory / 'members.json').write_text(json.dumps(about, indent=1))
    (directory / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
