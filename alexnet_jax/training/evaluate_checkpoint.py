"""Evaluate one checkpoint, on any mesh."""

import logging
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.checkpoint.manifest import parameters_sha256
from alexnet_jax.checkpoint.pretrained import read, restore_network
from alexnet_jax.runtime.config import differences
from alexnet_jax.training import class_report, provenance
from alexnet_jax.training.config import Config
from alexnet_jax.training.evaluate import errors_of, require_finite_outputs, words
from alexnet_jax.training.experiment import Experiment

_logger = logging.getLogger(__name__)


def evaluate_checkpoint(experiment: Experiment, workdir: epath.Path) -> None:
    """Evaluate the checkpoint that `evaluation.checkpoint` names and print one line.

    The line is `step N sha256 HEX top1_error X top5_error Y`, followed by the errors with ten views
    if they were asked for. The report of each class goes to `evaluation.report_dir`, if that is
    set. Raises UserError if there is no sound checkpoint, if it is of another network, and if the
    report cannot be written.
    """
    config = experiment.config
    provenance.require_same_in_all_processes(experiment, 'evaluate')

    def restore(checkpoints: Checkpoints, step: int, meta: dict[str, Any]) -> tuple[int, Any]:
        changed = differences(Config, meta['config'], config.to_dict())
        for name, (before, after) in changed.items():
            known = before is not None and after is not None
            if known and name.startswith(('model.', 'augment.')):
                _logger.warning('config.%s is %r here and was %r in training', name, after, before)
        wanted = experiment.abstract_state().network
        return step, restore_network(wanted, checkpoints, step, workdir)

    step, network = read(workdir, config.evaluation.checkpoint, restore)
    assert experiment.dataset is not None
    views, split = config.evaluation.final_views, experiment.dataset.eval
    directory = class_report.open_directory(config.evaluation.report_dir)
    if directory:  # one pass for both: what is printed and the report count the same predictions
        rankings, labels = experiment.collect(experiment.ranking_step(views), network, split)
        metrics = errors_of(rankings, labels)
        finite = all(np.all(best >= 0) for best in rankings.values())
    else:
        metrics = experiment.evaluate(network, views)
        assert metrics is not None
        finite = math.isfinite(metrics['eval/loss'])
    require_finite_outputs(f'checkpoint {step} in {workdir}', finite)
    digest = parameters_sha256(network)
    if jax.process_index() == 0:
        print(f'step {step} sha256 {digest} {words(metrics)}')
    if directory:
        about = {'step': step, 'sha256': digest}
        predicted = list(rankings.values())[-1][:, 0]  # of ten views, if there are ten
        class_report.save(directory, experiment, split, about, metrics, labels, predicted)
