"""The loop where the command line does not reach: a stop within an evaluation, the plateau rule."""

import json
import signal

import pytest
from etils import epath

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.runtime import memory
from alexnet_jax.training import loop
from alexnet_jax.training.experiment import Experiment, build
from configs import tiny
from tests.typed_config import typed

pytestmark = pytest.mark.slow


def _config(tmp_path, **training):
    config = tiny.get_config()
    config.data.dir = str(tmp_path / 'data')
    config.log.tensorboard = False
    config.training.update(total_steps=4, eval_every_epochs=0.0, **training)
    config.optim.schedule = 'constant'
    return config


def _rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(tmp_path, monkeypatch, capsys):
    workdir = epath.Path(tmp_path / 'run')
    config = _config(tmp_path)
    evaluate = Experiment.evaluate

    def stopped(experiment, params, views, stop):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(experiment, params, views, stop)

    monkeypatch.setattr(Experiment, 'evaluate', stopped)
    assert loop.train(build(typed(config)), workdir) == 143
    assert _rows(workdir)[-1]['event'] == 'stopped'
    monkeypatch.undo()
    assert loop.train(build(typed(config)), workdir) == 0
    assert [row['step'] for row in _rows(workdir) if row['kind'] == 'eval'] == [4]
    capsys.readouterr()
    assert loop.train(build(typed(config)), workdir) == 0
    assert capsys.readouterr().out == f'nothing to train: {workdir} is at step 4 of 4\n'


def test_each_save_gives_free_memory_back(tmp_path, monkeypatch):
    calls = []
    save = Checkpoints.save

    def saving(self, step, *rest):
        calls.append(step)
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, 'save', saving)
    monkeypatch.setattr(memory, 'trim', lambda: calls.append('trim'))
    config = _config(tmp_path)
    config.checkpoint.save_every_steps = 2
    assert loop.train(build(typed(config)), epath.Path(tmp_path / 'run')) == 0
    assert calls == [2, 'trim', 4, 'trim']


def test_the_plateau_rule_is_fed_and_saved(tmp_path):
    """No error improves by 1.0: the rate drops after each second evaluation, three times."""
    workdir = epath.Path(tmp_path / 'run')
    config = _config(tmp_path)
    config.optim.update(
        schedule='plateau', plateau_patience=2, plateau_min_delta=1.0, learning_rate=0.01
    )
    config.training.update(total_steps=6, batch_size=16, eval_every_epochs=0.011)  # 1 step
    assert loop.train(build(typed(config)), workdir) == 0
    config.training.total_steps = 9  # the same rule goes on after a restart
    assert loop.train(build(typed(config)), workdir) == 0
    rates = [row['train/learning_rate'] for row in _rows(workdir) if row['kind'] == 'train']
    assert len([row for row in _rows(workdir) if row['kind'] == 'eval']) == 9
    # The first evaluation is a gain over nothing; the third is the second without one.
    assert rates == pytest.approx(3 * [1e-2] + 2 * [1e-3] + 2 * [1e-4] + 2 * [1e-5])
