"""2,000 tiny steps with 200 saves: memory, file handles and threads do not grow."""

from pathlib import Path

import pytest

from tests.fault import single

pytestmark = [pytest.mark.fault, pytest.mark.slow]
STEPS = 2000


def _held(pid: int) -> dict[str, int]:
    """Return the resident memory in MiB, the open files and the threads of a process."""
    words = dict(
        line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines()
    )
    return {
        'MiB': int(words['VmRSS'].split()[0]) // 1024,
        'files': len(list(Path(f'/proc/{pid}/fd').iterdir())),
        'threads': int(words['Threads']),
    }


@pytest.mark.timeout(900)
def test_two_thousand_steps_and_two_hundred_saves_hold_no_more(tmp_path):
    """Looked at each 200 steps, since a save and its deletion hold files while they last."""
    workdir = tmp_path / 'run'
    process = single.start(
        workdir,
        tmp_path / 'data',
        f'--config.training.total_steps={STEPS}',
        '--config.training.eval_every_epochs=0',
        '--config.optim.schedule=constant',
        '--config.optim.learning_rate=0.0001',
        '--config.checkpoint.save_every_steps=10',
        '--config.training.log_every_steps=100',  # the pipe of its output is read at the end
    )
    held = {}
    for step in range(200, STEPS, 200):
        single.wait_for(process, lambda n=step: single.sealed_steps(workdir)[-1:] >= [n])
        held[step] = _held(process.pid)
    code, _, err = single.finish(process)
    assert code == 0, err
    assert [step for step, _ in single.losses(workdir)] == [1, *range(100, STEPS + 1, 100)]
    assert single.sealed_steps(workdir) == [STEPS - 10, STEPS]
    print(held)
    first, last = held[400], held[1800]
    assert last['MiB'] <= first['MiB'] + 40, held
    assert last['files'] <= first['files'] + 10, held
    assert last['threads'] <= first['threads'] + 10, held
