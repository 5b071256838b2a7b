"""SIGTERM while the step compiles, while a step is saved, and twice: saved, or ended at once."""

import signal
import time

import pytest

from tests.fault import single

pytestmark = [pytest.mark.fault, pytest.mark.slow]
ARGUMENTS = (
    '--config.training.total_steps=400',
    '--config.training.eval_every_epochs=0',
    '--config.optim.schedule=constant',
    '--config.checkpoint.save_every_steps=20',
)
# A run whose first step takes long in a function that, as XLA's compiler, no signal interrupts.
PROGRAM = """
from alexnet_jax.runtime import beginning
beginning.prepare_process()
import hashlib
from alexnet_jax import main
from alexnet_jax.training import guard
expect = guard.expect
def long(what, **how):
    expect(what, **how)
    if what == 'step 1':
        hashlib.pbkdf2_hmac('sha256', b'', b'', {iterations})
guard.expect = long
main.main()
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def _stopped(workdir) -> int:
    """Return the step at which the run says that it stopped, after a look at its checkpoint."""
    last = single.rows(workdir)[-1]
    assert (last['event'], last['signal']) == ('stopped', signal.SIGTERM)
    assert single.sealed_steps(workdir)[-1] == last['step']
    assert [step for step, _ in single.losses(workdir)] == list(range(1, last['step'] + 1))
    return last['step']


def test_while_the_first_step_compiles(tmp_path, data_dir):
    workdir = tmp_path / 'run'
    program = PROGRAM.format(iterations=20_000_000)  # several seconds
    process = single.start(workdir, data_dir, *ARGUMENTS, program=program)
    single.wait_for(process, lambda: single.rows(workdir))  # the event `started`
    process.send_signal(signal.SIGTERM)
    code, _, err = single.finish(process)
    assert code == 143, err
    assert _stopped(workdir) <= 1


def test_while_a_step_is_saved(tmp_path, data_dir):
    workdir = tmp_path / 'run'
    process = single.start(workdir, data_dir, *ARGUMENTS)
    single.wait_for(process, lambda: list(workdir.glob('checkpoints/*-tmp')))
    process.send_signal(signal.SIGTERM)
    code, _, err = single.finish(process)
    assert code == 143, err
    assert 20 <= _stopped(workdir) < 400
    assert not list(workdir.glob('checkpoints/*-tmp'))


def test_the_second_one_ends_the_run_at_once(tmp_path, data_dir):
    """The first does not get to its save: the process is kept from it."""
    workdir = tmp_path / 'run'
    program = PROGRAM.format(iterations=2_000_000_000)  # longer than `finish` waits
    process = single.start(workdir, data_dir, *ARGUMENTS, program=program)
    single.wait_for(process, lambda: single.rows(workdir))
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    code, _, err = single.finish(process)
    assert code == 143, err
    assert 'stopped' not in [row.get('event') for row in single.rows(workdir)]
    assert not single.sealed_steps(workdir)
