"""The checkpoint of a past release, in tests/golden, which every later release must load."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from flax import serialization, traverse_util
from orbax.checkpoint import v1

from alexnet_jax import __version__
from alexnet_jax.checkpoint import pretrained
from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.checkpoint.manifest import FORMAT, parameters_sha256
from alexnet_jax.training import evaluate_checkpoint, loop
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoint-0.1.0'
STEP = 2
HOW = (
    'a checkpoint of a past release must load. If what it means has changed on purpose, say so in '
    'CHANGELOG.md, keep it, and add one of this release: '
    'python -m tests.checkpoint.test_golden_checkpoint'
)


def _config(data_dir):
    """Return a configuration of the smallest network that has every layer."""
    config = tiny.get_config()
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        config.model[name].features = 2
    config.model.fc6.features = config.model.fc7.features = 2
    config.parallel.update(data=1, model=1, cpu_devices=1)
    config.training.update(total_steps=STEP, eval_every_epochs=0.0)
    config.optim.update(schedule='constant')
    config.evaluation.final_views = 1
    config.log.tensorboard = False
    config.data.dir = str(data_dir)
    return config


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


@pytest.fixture
def workdir(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / 'run')
    return epath.Path(tmp_path / 'run')


def _recorded():
    """Return what the release that wrote the checkpoint recorded."""
    return json.loads((GOLDEN / 'expected.json').read_text())


def _values(tree):
    """Return the leaves of a tree by their names, as the file has them: lists of numbers."""
    flat = traverse_util.flatten_dict(dict(tree), sep='.')
    return {name: np.asarray(jax.device_get(leaf)).tolist() for name, leaf in flat.items()}


def test_every_value_is_restored():
    recorded = _recorded()['state']
    with Checkpoints(epath.Path(GOLDEN)) as checkpoints:
        found = checkpoints.find()
        assert found is not None, HOW
        restored, others = checkpoints.restore_network(found[0], _abstract(recorded))
    assert found[0] == STEP
    assert not others, HOW
    flat = {f'params.{name}': value for name, value in _values(restored).items()}
    assert flat == {name: recorded[name] for name in recorded if name.startswith('params.')}


def _abstract(recorded):
    flat = {
        name.removeprefix('params.'): jax.ShapeDtypeStruct(np.shape(value), np.float32)
        for name, value in recorded.items()
        if name.startswith('params.')
    }
    return traverse_util.unflatten_dict(flat, sep='.')


@pytest.mark.slow
def test_it_is_evaluated_and_has_the_recorded_parameters(workdir, data_dir, capsys):
    evaluate_checkpoint.evaluate_checkpoint(build(typed(_config(data_dir))), workdir)
    words = capsys.readouterr().out.split()
    recorded = _recorded()
    assert words[:4] == ['step', str(STEP), 'sha256', recorded['sha256']], HOW
    assert float(words[5]) == pytest.approx(recorded['top1_error'], abs=0.03), HOW


@pytest.mark.slow
def test_a_run_goes_on_from_it(workdir, data_dir):
    config = _config(data_dir)
    config.training.total_steps = STEP + 1
    config.optim.learning_rate = config.optim.momentum = config.optim.weight_decay = 0.0
    assert loop.train(build(typed(config)), workdir) == 0, HOW
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [(row['event'], row['step']) for row in rows if row['kind'] == 'event'] == [
        ('resumed', STEP)
    ]
    with pretrained.read_only(workdir) as (checkpoints, step, _):
        wanted = build(typed(config)).abstract_state().params
        params, others = checkpoints.restore_network(step, wanted)
    assert step == STEP + 1
    assert not others
    assert parameters_sha256(params) == _recorded()['sha256']  # at rate 0 nothing moves


@pytest.mark.slow
def test_a_run_begins_from_it(workdir, data_dir):
    experiment = build(typed(_config(data_dir)))
    classes = str(experiment.dataset.fingerprint()['class_names'])
    params, event = pretrained.init_network(
        experiment.abstract_state().params,
        experiment.init_state().params,
        str(workdir / 'checkpoints' / str(STEP)),
        classes,
    )
    assert event['drawn_anew'] == '', HOW
    assert parameters_sha256(params) == _recorded()['sha256']


def test_the_next_programming_interface_of_orbax_loads_it():
    """Orbax's v1 reads the arrays and the meta with none of our code: every value is there."""
    with pytest.warns(UserWarning, match='Sharding info not provided'):  # it is that of the file
        loaded = v1.load_checkpointables(GOLDEN / 'checkpoints' / str(STEP))
    assert _values(loaded['state']) == _recorded()['state'], HOW
    assert loaded['meta']['config']['training']['total_steps'] == STEP


def test_this_release_has_a_golden_checkpoint():
    manifest = json.loads((GOLDEN / 'checkpoints' / str(STEP) / 'manifest.json').read_text())
    assert (manifest['format'], manifest['version']) == (FORMAT, __version__), HOW


def main() -> None:
    """Train two steps and keep the checkpoint, without what is of this machine."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        config = _config(pathlib.Path(scratch) / 'data')
        run = epath.Path(scratch) / 'run'
        assert loop.train(build(typed(config)), run) == 0
        with pretrained.read_only(run) as (checkpoints, step, _):
            wanted = build(typed(config)).abstract_state()
            restored = checkpoints.restore(wanted, lambda meta: None)
        assert restored is not None
        target = GOLDEN.with_name(f'checkpoint-{__version__}')
        saved = pathlib.Path(run / 'checkpoints' / str(step))
        shutil.copytree(saved, target / 'checkpoints' / saved.name)
        error = json.loads((saved / 'metrics' / 'metrics').read_text())['eval/top1_error']
        recorded = {
            'sha256': parameters_sha256(restored.state.params),
            'top1_error': error,
            'state': _values(serialization.to_state_dict(restored.state)),
        }
        (target / 'expected.json').write_text(json.dumps(recorded) + '\n')


if __name__ == '__main__':
    main()
