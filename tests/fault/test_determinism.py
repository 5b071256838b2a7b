"""What does not belong to a run changes no bit of it: threads, logs, a profile, a clock."""

import pytest

from tests.fault import single

pytestmark = [pytest.mark.fault, pytest.mark.slow]
ARGUMENTS = ('--config.training.eval_every_epochs=0', '--config.optim.schedule=constant')
# At each look the clock has jumped by up to 90 s, back or forth. (Orbax counts the seconds of a
# save by this clock, so that longer jumps can end it.)
PROGRAM = """
import itertools, time
jumps, clock = itertools.cycle([20, -50, 40, -10]), time.time
time.time = lambda: clock() + next(jumps)
from alexnet_jax import main
main.main()
"""


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """Return a function that trains 12 steps and returns the digest of the state, and the rows."""
    data_dir = tmp_path_factory.mktemp('data')

    def train(*arguments, program=''):
        workdir = tmp_path_factory.mktemp('runs') / 'run'
        process = single.start(workdir, data_dir, *ARGUMENTS, *arguments, program=program)
        code, _, err = single.finish(process)
        assert code == 0, err
        step, digest = single.state_sha256(workdir)
        assert step == 12
        return digest, single.rows(workdir)

    return train


@pytest.fixture(scope='module')
def plain(train):
    digest, rows = train()
    return digest, {row['step']: row['train/loss'] for row in rows if row['kind'] == 'train'}


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['--config.data.read_threads=2'],
        ['--config.data.read_threads=4', '--config.data.prefetch_batches=1'],
        ['--config.log.tensorboard=true', '--config.log.profile_steps=(3, 5)'],
        ['--config.training.log_every_steps=5', '--config.checkpoint.save_every_steps=5'],
    ],
    ids=' '.join,
)
def test_the_same_run_is_bitwise_the_same(train, plain, arguments):
    digest, rows = train(*arguments)
    assert digest == plain[0]
    losses = {row['step']: row['train/loss'] for row in rows if row['kind'] == 'train'}
    assert losses.items() <= plain[1].items()
    assert losses.keys() >= {1, 5, 10, 12}


def test_a_clock_that_jumps_changes_nothing_and_no_time_runs_backwards(train, plain):
    digest, rows = train('--config.training.watchdog_s=60', program=PROGRAM)
    assert digest == plain[0]
    times = [row['time_s'] for row in rows]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 200
    speeds = [row[name] for row in rows for name in row if name == 'perf/images_per_second']
    assert speeds
    assert all(0 < speed < 1e7 for speed in speeds)
