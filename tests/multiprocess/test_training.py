"""Several processes train as one does: the same numbers, the same checkpoints."""

import fcntl
import json
import os
import select
import time

import numpy as np
import pytest
from etils import epath

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.training import experiment as experiment_lib
from alexnet_jax.training import loop
from alexnet_jax.training.ensemble import evaluate_ensemble
from alexnet_jax.training.evaluate_checkpoint import evaluate_checkpoint
from alexnet_jax.training.experiment import build
from configs import tiny
from tests import local_run
from tests.local_run import Run
from tests.typed_config import typed

pytestmark = pytest.mark.multiprocess
STEPS, HALF = 6, 4
FLOAT64 = (
    '--config.model.dtype=float64',
    '--config.evaluation.final_views=1',
    '--config.training.eval_every_epochs=0',
    '--config.optim.schedule=constant',
    '--config.checkpoint.save_every_steps=0',
)


def _alone(workdir, data_dir, steps: int, save_every_steps: int = 0) -> None:
    """Train in this process, on one device."""
    config = tiny.get_config()
    config.data.dir = str(data_dir)
    config.log.tensorboard = False
    config.model.dtype = 'float64'
    config.evaluation.final_views = 1
    config.parallel.update(data=1, model=1)
    config.training.update(total_steps=steps, eval_every_epochs=0.0)
    config.optim.schedule = 'constant'
    config.checkpoint.save_every_steps = save_every_steps
    assert loop.train(build(typed(config)), epath.Path(workdir)) == 0


def _parameters(workdir, data_dir) -> dict[str, np.ndarray]:
    """Restore the newest checkpoint on one device of this process."""
    config = tiny.get_config()
    config.data.dir = str(data_dir)
    config.model.dtype = 'float64'
    config.parallel.update(data=1, model=1)
    abstract = experiment_lib.build(typed(config)).abstract_state()
    with Checkpoints(epath.Path(workdir)) as checkpoints:
        restored = checkpoints.restore(abstract, lambda meta: None)
    assert restored is not None
    assert restored.step == STEPS
    return {
        f'{layer}.{name}': np.asarray(leaf)
        for layer, leaves in restored.state.params.items()
        for name, leaf in leaves.items()
    }


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Empty at first: the processes of the first run prepare the digits at the same time."""
    return tmp_path_factory.mktemp('data')


@pytest.fixture
def reference(tmp_path_factory, data_dir, x64):
    """Losses and parameters of one process on one device."""
    workdir = tmp_path_factory.mktemp('alone')
    _alone(workdir, data_dir, STEPS)
    return local_run.losses(workdir), _parameters(workdir, data_dir)


def _assert_same(workdir, data_dir, reference) -> None:
    losses, parameters = reference
    assert local_run.losses(workdir) == pytest.approx(losses, rel=1e-9, abs=0)
    for name, value in _parameters(workdir, data_dir).items():
        error = np.max(np.abs(value - parameters[name])) / np.max(np.abs(parameters[name]))
        assert error < 1e-9, name


@pytest.mark.parametrize('backend', ['shard_map', pytest.param('pmap', marks=pytest.mark.slow)])
def test_two_processes_then_one(tmp_path, data_dir, reference, backend):
    """Two processes with two devices each train and save, one process with one device goes on."""
    workdir = tmp_path / 'run'
    with Run(
        2,
        workdir,
        data_dir,
        *FLOAT64,
        '--config.parallel.data=2',
        f'--config.parallel.backend={backend}',
        f'--config.training.total_steps={HALF}',
    ) as run:
        assert run.finish() == 0, run.output()
    output = run.output()
    assert f'step {HALF}  evaluation' in output
    assert output.count('evaluation') == 1  # process 0 alone writes
    resumed = [row for row in local_run.rows(workdir) if row['kind'] == 'eval']
    assert [row['step'] for row in resumed] == [HALF]
    assert json.loads((workdir / 'environment.json').read_text())['devices'] == ['cpu'] * 4
    _alone(workdir, data_dir, STEPS)
    event = next(row for row in local_run.rows(workdir) if row.get('event') == 'resumed')
    assert event['step'] == HALF
    assert event['parallel.data'] == '2 -> 1'
    _assert_same(workdir, data_dir, reference)


@pytest.mark.slow
def test_one_process_then_four(tmp_path, data_dir, reference):
    """One process trains and saves, four with one device each, a tower in each, go on."""
    workdir = tmp_path / 'run'
    _alone(workdir, data_dir, HALF)
    with Run(
        4,
        workdir,
        data_dir,
        *FLOAT64,
        '--config.parallel.data=2',
        '--config.parallel.cpu_devices=1',
        f'--config.training.total_steps={STEPS}',
    ) as run:
        assert run.finish() == 0, run.output()
    _assert_same(workdir, data_dir, reference)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(2, 2), (4, 1)])
def test_the_digits_learn_as_in_one_process(tmp_path, data_dir, count, devices):
    """The losses of 100 steps at a tenth of the rate, on the same mesh of four devices."""
    losses = []
    for processes, each in ((1, 4), (count, devices)):
        with Run(
            processes,
            tmp_path / f'run{processes}',
            data_dir,
            f'--config.parallel.cpu_devices={each}',
            '--config.parallel.data=2',
            '--config.optim.learning_rate=0.0003',
            '--config.training.total_steps=100',
            '--config.training.log_every_steps=10',
            config='digits',
            XLA_FLAGS='',
        ) as run:
            assert run.finish() == 0, run.output()
        losses.append(local_run.losses(run.workdir))
    assert sorted(losses[0]) == [1, *range(10, 101, 10)]
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-4)


def _held_up(run: Run, fifo: int) -> str:
    """Read what process 0 writes, seconds after it has begun to, and return it."""
    while not select.select([fifo], [], [], 0.1)[0]:
        assert run.process.poll() is None, run.output()
    time.sleep(5)  # longer than the others wait at the end
    os.set_blocking(fifo, True)
    with open(fifo) as file:
        return file.read()


def _contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path, data_dir, x64, capsys):
    """One checkpoint, then an ensemble, whose outputs are written on a slow disk; their reports."""
    workdir = tmp_path / 'run'
    _alone(workdir, data_dir, 2, save_every_steps=1)
    places = tuple(str(workdir / 'checkpoints' / step) for step in '12')
    config = tiny.get_config()
    config.data.dir = str(data_dir)
    config.model.dtype = 'float64'
    config.parallel.update(data=1, model=1)
    config.evaluation.update(final_views=1, ensemble=places, ensemble_dir=str(tmp_path / 'one'))
    config.evaluation.report_dir = str(tmp_path / 'report of one')
    capsys.readouterr()
    evaluate_checkpoint(build(typed(config)), epath.Path(workdir))
    evaluation = capsys.readouterr().out.splitlines()[-1]
    report = _contents(tmp_path / 'report of one')
    assert report.keys() == {'per_class.csv', 'confusion.csv', 'report.json'}
    evaluate_ensemble(typed(config))
    lines = capsys.readouterr().out.splitlines()

    arguments = ('--mode=evaluate', '--config.parallel.data=2', *FLOAT64)
    arguments += (f'--config.evaluation.report_dir={tmp_path / "report of two"}',)
    with Run(2, workdir, data_dir, *arguments) as run:
        assert run.finish() == 0, run.output()
    assert run.output().splitlines().count(evaluation) == 1
    assert _contents(tmp_path / 'report of two') == report

    two = tmp_path / 'two'
    two.mkdir()
    os.mkfifo(two / 'members.json')
    fifo = os.open(two / 'members.json', os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, 4096)  # less than the file
    arguments += (f'--config.evaluation.ensemble={places}',)
    arguments += (f'--config.evaluation.ensemble_dir={two}',)
    with Run(2, workdir, data_dir, *arguments, '--config.parallel.shutdown_timeout_s=2') as run:
        members = json.loads(_held_up(run, fifo))
        assert [member['place'] for member in members] == list(places)
        assert run.finish() == 0, run.output()
    assert [line for line in run.output().splitlines() if line in lines] == lines
    assert _contents(tmp_path / 'report of two') == _contents(tmp_path / 'report of one')
    for name in ('labels', 'member_0', 'member_1'):
        got, want = (np.load(tmp_path / d / f'{name}.npy') for d in ('two', 'one'))
        np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.slow
def test_a_report_that_cannot_be_written_ends_every_process(tmp_path, data_dir, x64):
    workdir = tmp_path / 'run'
    _alone(workdir, data_dir, 1)
    arguments = ('--mode=evaluate', '--config.parallel.data=2', *FLOAT64)
    (tmp_path / 'file').touch()
    place = f'--config.evaluation.report_dir={tmp_path / "file"}'
    with Run(2, workdir, data_dir, *arguments, place) as run:
        assert run.finish() == 2, run.output()
    assert 'Traceback' not in run.output()
    assert run.output().count('(File exists); change its permissions, or name another') == 2
