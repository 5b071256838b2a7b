"""`kill -9` at random instants and at chosen ones within a save: bitwise the clean run."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.fault import single

pytestmark = [pytest.mark.fault, pytest.mark.slow]
STEPS = 120
ARGUMENTS = (
    f'--config.training.total_steps={STEPS}',
    '--config.training.eval_every_epochs=0.4',  # steps 36, 72, 108 and the last
    '--config.checkpoint.save_every_steps=4',
    '--config.checkpoint.keep_best=0',
)
# Kills the process at an event of Python's audit that touches a path with the words given: the
# COUNTth of an event such as `os.rename`.
PROGRAM = """
import os, signal, sys
name, words, count = sys.argv.pop(1).split(':')
left = int(count)
def look(event, arguments):
    global left
    if event == name and words in ' '.join(str(a) for a in arguments[:2]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
from alexnet_jax import main
main.main()
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def clean(tmp_path_factory, data_dir):
    """The state and the rows of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp('clean') / 'run'
    code, _, err = single.finish(single.start(workdir, data_dir, *ARGUMENTS))
    assert code == 0, err
    return single.state_sha256(workdir), single.losses(workdir)


def _ends_as_the_clean_run(workdir: Path, data_dir: Path, clean: tuple) -> None:
    code, _, err = single.finish(single.start(workdir, data_dir, *ARGUMENTS))
    assert code == 0, err
    assert single.losses(workdir) == clean[1]  # each step once, in order, and the same
    evaluated = [row['step'] for row in single.rows(workdir) if row['kind'] == 'eval']
    assert evaluated == [36, 72, 108, STEPS]
    assert single.state_sha256(workdir) == clean[0]
    left = {path.name for path in (workdir / 'checkpoints').iterdir()}
    assert left == {str(step) for step in single.sealed_steps(workdir)}, 'nothing unfinished'
    assert len(left) == 2


@pytest.mark.timeout(900)
def test_twenty_kills_at_random_instants(tmp_path, data_dir, clean):
    """One in four in the first seconds of a start, the others some steps after the last save."""
    drawn = random.Random(0)
    workdir = tmp_path / 'run'
    instants = []
    for number in range(20):
        process = single.start(workdir, data_dir, *ARGUMENTS)
        if number % 4 == 3:
            time.sleep(drawn.uniform(0, 5))
        else:
            step = max(single.sealed_steps(workdir), default=0) + drawn.randint(1, 3)
            starts = len(list(workdir.glob('starts/*')))
            single.wait_for(process, lambda n=starts: len(list(workdir.glob('starts/*'))) > n)
            single.wait_for(process, lambda step=step: _last_of(workdir) >= step)
            time.sleep(drawn.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, 'it had ended before'
        instants.append(_last_of(workdir))
    print('killed after the steps', instants)
    _ends_as_the_clean_run(workdir, data_dir, clean)


def _last_of(workdir: Path) -> int:
    return max((row['step'] for row in single.rows(workdir)), default=0)


INSTANTS = {
    'the start writes its configuration': 'open:config.json:1',
    'a save begins': 'os.mkdir:orbax-checkpoint-tmp:1',
    'the parameters are written': 'os.rename:state.orbax-checkpoint-tmp:1',
    'all is written, and the step has not its name': 'os.rename:.orbax-checkpoint-tmp:3',
    'the step has its name and no manifest': 'open:manifest.json.tmp:1',
    'the manifest has not its name': 'os.rename:manifest.json:1',
    'the deletion of an old step begins': 'shutil.rmtree:checkpoints/:1',
    'an old step is half deleted, its manifest is left': 'os.remove:manifest.json:1',
    'an old step is half deleted, without its manifest': 'os.remove:_sharding:1',
}


@pytest.mark.timeout(900)
def test_kills_at_chosen_instants_of_a_save(tmp_path, data_dir, clean):
    """One after another in the life of one run; after each there is a sound step to go on from."""
    workdir = tmp_path / 'run'
    for name, instant in INSTANTS.items():
        before = max(single.sealed_steps(workdir), default=0)
        command = single.command(workdir, data_dir, *ARGUMENTS, program=PROGRAM)
        command.insert(3, instant)
        code, _, err = single.run(command)
        assert code == -signal.SIGKILL, (name, err)
        assert max(single.sealed_steps(workdir), default=0) >= before, name
    _ends_as_the_clean_run(workdir, data_dir, clean)
