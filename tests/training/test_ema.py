"""The moving average of the weights: its formula, and who uses it."""

import json

import jax
import numpy as np
import optax
import pytest
from etils import epath

from alexnet_jax.checkpoint import pretrained
from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import loop
from alexnet_jax.training.evaluate_checkpoint import evaluate_checkpoint
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.parallel.tiny_run import Run, assert_close
from tests.typed_config import typed

NORMS = (
    ('model.conv1.after', ('bn', 'activation', 'pool')),
    ('model.conv2.after', ('activation', 'bn', 'pool')),
)


def test_the_average_is_that_of_optax_and_has_no_share_of_the_first_weights(x64):
    """All of `raw_network`, running averages of batch normalisation included."""
    run = Run(2, 1, 1, changes=(('training.ema_decay', 0.7), *NORMS))
    rule = optax.ema(0.7, debias=True)
    state, step = run.state, run.train_step()
    kept = rule.init(state.raw_network)
    networks = []
    for _ in range(4):
        state, _ = step(state, run.batch, run.statistics)
        networks.append(jax.device_get(state.raw_network))
        with jax.numpy_dtype_promotion('standard'):
            want, kept = rule.update(networks[-1], kept)
    assert_close(jax.device_get(state.ema), jax.device_get(want), 1e-6)
    weights = np.array([0.3 * 0.7 ** (4 - t) / (1 - 0.7**4) for t in (1, 2, 3, 4)])
    assert weights.sum() == pytest.approx(1)
    by_hand = jax.tree.map(lambda *leaves: np.tensordot(weights, leaves, 1), *networks)
    assert_close(jax.device_get(state.ema), by_hand, 1e-6)  # the weights are float32


def _config(tmp_path):
    config = tiny.get_config()
    config.update_from_flattened_dict(dict(NORMS))
    config.data.dir = str(tmp_path / 'data')
    config.log.tensorboard = False
    config.optim.schedule = 'constant'
    config.training.update(total_steps=6, eval_every_epochs=0.0, ema_decay=0.6)
    config.evaluation.final_views = 1
    return config


@pytest.mark.slow
def test_evaluations_and_those_who_load_a_run_use_it(tmp_path, capsys):
    """The checkpoint holds both; `init_from` takes the average and begins a new one with it."""
    workdir = epath.Path(tmp_path / 'run')
    experiment = build(typed(_config(tmp_path)))
    assert loop.train(experiment, workdir) == 0
    (row,) = [
        row
        for row in map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
        if row['kind'] == 'eval'
    ]
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state(), lambda meta: None)
    assert restored is not None
    state = restored.state
    averaged = experiment.evaluate(state.ema, 1)
    raw = experiment.evaluate(state.raw_network, 1)
    assert averaged is not None
    assert raw is not None
    assert averaged['eval/loss'] == row['eval/loss']
    assert raw['eval/loss'] == row['eval_raw/loss']
    assert raw['eval/loss'] != averaged['eval/loss']
    assert {'eval_raw/top1_error', 'eval_raw/top5_error'} <= row.keys()
    capsys.readouterr()
    evaluate_checkpoint(experiment, workdir)
    assert f'top1_error {averaged["eval/top1_error"]:.4f}' in capsys.readouterr().out
    # A run without an average reads it, too.
    config = _config(tmp_path)
    config.training.ema_decay = 0.0
    plain = build(typed(config))
    assert plain.dataset is not None
    classes = str(plain.dataset.fingerprint()['class_names'])
    drawn, wanted = plain.init_state(), plain.abstract_state().network
    network, event = pretrained.init_network(wanted, drawn.network, str(workdir), classes)
    assert event['drawn_anew'] == ''
    assert plain.evaluate(drawn.with_network(network).network, 1) == averaged


@pytest.mark.slow
def test_a_run_cannot_begin_or_end_to_average_midway(tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    assert loop.train(build(typed(_config(tmp_path))), workdir) == 0
    config = _config(tmp_path)
    config.training.update(ema_decay=0.0, total_steps=8)
    with pytest.raises(UserError, match='ema_decay'):
        loop.train(build(typed(config)), workdir)
