"""What befalls one of several processes ends all of them, soon, with a reason that can be read."""

import os
import re
import signal
import sys
import time

import pytest

from tests import local_run
from tests.local_run import Run

pytestmark = [pytest.mark.fault, pytest.mark.multiprocess]
SOON_S = 30
STEPS = 300
# One process after another has a tower; each step is long enough for signals to come between two.
ARGUMENTS = (
    '--config.parallel.cpu_devices=1',
    f'--config.training.total_steps={STEPS}',
    '--config.training.eval_every_epochs=0',
    '--config.optim.schedule=constant',
    '--config.evaluation.final_views=1',
    '--config.checkpoint.save_every_steps=5',
    '--config.training.watchdog_s=60',
    '--config.parallel.heartbeat_timeout_s=20',
)
# Stands for python. Process PROCESS does EARLY before anything else, and FAULT when it has seen the
# loss of step 12.
PYTHON = """#!{python}
import os, signal, sys, time
if sys.argv[1] == '-c':
    exec(sys.argv[2])
    sys.exit()
sys.path.insert(0, os.getcwd())
sys.argv = sys.argv[2:]  # without -m
me = '--process_id=' + os.environ['PROCESS'] in sys.argv
if me:
    sys.argv += os.environ.get('MORE', '').split()
from alexnet_jax import main
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import guard
look = guard.require_finite_loss
def faulty(step, loss, where):
    look(step, loss, where)
    if step == 12 and me:
        exec(os.environ.get('FAULT', ''))
guard.require_finite_loss = faulty
if me:
    exec(os.environ.get('EARLY', ''))
main.main()
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


@pytest.fixture
def start(tmp_path, data_dir):
    """Start two processes of which one is faulty."""
    python = tmp_path / 'python'
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    runs = []

    def start(
        *arguments: str, process: int = 0, fault: str = '', more: str = '', early: str = ''
    ) -> Run:
        env = {'PYTHON': str(python), 'PROCESS': str(process), 'FAULT': fault, 'MORE': more}
        env['EARLY'] = early
        runs.append(Run(2, tmp_path / 'run', data_dir, *ARGUMENTS, *arguments, **env))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def _ends_soon(run: Run) -> int:
    """Return the exit code; the fault itself happens once step 11 is written."""
    run.wait_for_step(11)
    began = time.monotonic()
    code = run.finish(SOON_S)
    assert time.monotonic() - began < SOON_S
    assert not run.pids()
    return code


@pytest.mark.slow
@pytest.mark.parametrize('process', [0, 1])
def test_a_process_is_killed(start, process):
    run = start(process=process, fault='os.kill(os.getpid(), signal.SIGKILL)')
    assert _ends_soon(run) == 137
    assert re.search('another (process was lost|task died)', run.output()), run.output()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('process', 'fault', 'code', 'words'),
    [
        (0, 'raise RuntimeError("the fault")', 1, r'^RuntimeError: the fault$'),
        (1, 'raise RuntimeError("the fault")', 1, r'^\[1\] RuntimeError: the fault$'),
        (1, 'raise UserError("mend it")', 2, r'^\[1\] error: mend it$'),
    ],
)
def test_a_process_raises(start, process, fault, code, words):
    run = start(process=process, fault=fault)
    assert _ends_soon(run) == code
    assert re.search(words, run.output(), re.M), run.output()


@pytest.mark.slow
def test_a_process_hangs(start):
    """The watchdogs of both end it: the other process waits for ever for the one that hangs."""
    run = start('--config.training.watchdog_s=4', process=1, fault='time.sleep(1000)')
    assert _ends_soon(run) == 75
    assert 'took longer than 4 s (config.training.watchdog_s); the stacks are in' in run.output()
    assert re.search('in faulty$', (run.workdir / 'hang-1.txt').read_text(), re.M)
    assert 'loop.py' in (run.workdir / 'hang-0.txt').read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('early', 'words'),
    [
        # A data set on a dead mount, and devices that do not start.
        (
            'from alexnet_jax.input import sources\n'
            'def stuck(config): time.sleep(1000)\n'
            'sources.open_dataset = stuck',
            'opening the data set took longer than 10 s',
        ),
        (
            'import jax\ndef stuck(): time.sleep(1000)\njax.devices = stuck',
            'the start of the devices took longer than 10 s',
        ),
    ],
)
def test_a_process_hangs_before_the_first_step(start, early, words):
    """The others wait in their first collective; there is no workdir yet for the stacks."""
    run = start('--config.training.watchdog_slow_s=10', process=1, early=early)
    assert run.finish(90) == 75
    lines = run.output().splitlines()
    (hung,) = (line for line in lines if line.startswith(f'[1] error: {words}'))
    assert hung.endswith('(config.training.watchdog_slow_s); the stacks follow')
    assert any(re.fullmatch(r'\[1\]   File .* in stuck', line) for line in lines)
    assert any(line.startswith('error: ') and 'took longer than 10 s' in line for line in lines)


@pytest.mark.slow
def test_a_process_that_loses_another_before_the_first_step_prints_the_whole_reason(start):
    run = start(
        process=1,
        early='from alexnet_jax.input import sources\n'
        'def die(config): os.kill(os.getpid(), signal.SIGKILL)\n'
        'sources.open_dataset = die',
    )
    assert run.finish(90) == 137
    assert re.search('another (process was lost|task died)', run.output()), run.output()


@pytest.mark.slow
def test_each_process_may_have_data_of_its_own_and_process_0_computes_the_statistics(
    start, tmp_path, data_dir
):
    own = tmp_path / 'own'
    run = start('--config.training.total_steps=2', process=1, more=f'--data_dir={own}')
    assert run.finish() == 0, run.output()
    assert set(local_run.losses(run.workdir)) == {1, 2}
    assert list(own.rglob('*.array_record*'))
    assert not list(own.rglob('statistics_*'))
    assert len(list(data_dir.rglob('statistics_*'))) == 1


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_of_several_processes(start):
    assert start('--config.training.total_steps=1').finish() == 0
    early = 'from alexnet_jax.training import evaluate\n'
    early += 'def slow(what, slow): print(what, flush=True); time.sleep(1)\n'
    early += 'evaluate.guard.expect = slow'
    run = start('--mode=evaluate', '--config.training.total_steps=1', early=early)
    while 'a batch of the evaluation' not in run.output():
        assert run.process.poll() is None, run.output()
        time.sleep(0.05)
    for pid in run.pids().values():
        os.kill(pid, signal.SIGINT)
    assert run.finish(SOON_S) == 130, run.output()
    assert 'Traceback' not in run.output()


@pytest.mark.slow
def test_all_are_stopped_for_a_while(start):
    """Neither the watchdogs (4 s) nor the heartbeats (20 s) take a pause of 10 s for an end."""
    run = start('--config.training.watchdog_s=4', '--config.training.total_steps=40')
    run.wait_for_step(11)
    pids = run.pids().values()
    for number, pause_s in ((signal.SIGSTOP, 10), (signal.SIGCONT, 0)):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(pause_s)
    assert run.finish() == 0, run.output()


@pytest.mark.slow
@pytest.mark.parametrize('whom', ['process 0', 'process 1', 'all'])
def test_sigterm_saves_once_and_ends_all(start, whom):
    run = start()
    run.wait_for_step(8)
    run.process.send_signal(signal.SIGTERM) if whom == 'all' else os.kill(
        run.pids()[int(whom[-1])], signal.SIGTERM
    )
    assert run.finish(SOON_S) == 143, run.output()
    stopped = local_run.rows(run.workdir)[-1]
    assert stopped['event'] == 'stopped'
    assert stopped['step'] < STEPS
    newest = max(int(p.name) for p in (run.workdir / 'checkpoints').iterdir())
    assert newest == stopped['step']
    assert (run.workdir / 'checkpoints' / str(newest) / 'manifest.json').exists()
    assert set(local_run.losses(run.workdir)) == set(range(1, newest + 1))


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ('--config.seed=1', r'config\.seed is 1 in process 1 and 0 in process 0'),
        ('--workdir=elsewhere', r"--workdir/LOCK is '.*' in process 1 and '\{\"pid\": \d+"),
    ],
)
def test_processes_disagree(start, more, words):
    run = start(process=1, more=more)
    assert run.finish(60) == 2
    lines = [line for line in run.output().splitlines() if 'error: ' in line]
    assert len(lines) == 2  # each process says it
    assert all(re.search(f'error: the processes disagree: {words}', line) for line in lines), lines
