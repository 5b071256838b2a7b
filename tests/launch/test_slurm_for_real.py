"""The sbatch files on a real Slurm on this machine; not part of a plain `pytest`.

apt-get install slurm-wlm munge      # Debian, Ubuntu; nothing needs to be configured or started
python -m pytest -n 0 -m slurm
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.launch import slurm as slurm_lib

ROOT = Path(__file__).resolve().parents[2]
MISSING = [p for p in slurm_lib.PROGRAMS if not shutil.which(p, path=slurm_lib.PATH)]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
STEPS = 60
SHORT = (
    '--config=configs/tiny.py',
    f'--config.training.total_steps={STEPS}',
    '--config.training.eval_every_epochs=0',
    '--config.optim.schedule=constant',
    '--config.checkpoint.save_every_steps=5',
    '--config.evaluation.final_views=1',
)


@pytest.fixture(scope='module')
def slurm():
    if MISSING:
        pytest.fail(f'apt-get install slurm-wlm munge: no {MISSING}', pytrace=False)
    # The path of a socket may have 107 characters, which pytest's directories can exceed.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with slurm_lib.running(Path(directory) / 'slurm') as cluster:
            yield cluster


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


@pytest.fixture
def submit(slurm, tmp_path, data_dir):
    """Submit one of the files for two tasks, each a process with one CPU device; return the job."""

    def run(file: str, *first: str, last: str, options: tuple[str, ...] = (), config=SHORT) -> str:
        return slurm(
            'sbatch',
            '--parsable',
            '--ntasks-per-node=2',
            f'--output={tmp_path}/%j.out',
            *options,
            f'launch/slurm/{file}',
            *first,
            *config,
            f'--data_dir={data_dir}',
            '--config.log.tensorboard=false',
            '--config.parallel.cpu_devices=1',  # of each process: a tower on each
            '--config.parallel.heartbeat_timeout_s=10',
            last,
            environment={'PYTHON': sys.executable, 'ENV_FILE': '/dev/null', 'MAX_REQUEUES': '3'},
            cwd=ROOT,
        )

    return run


def rows(workdir: Path) -> list[dict]:
    file = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_step(step: int, workdir: Path, slurm, job: str) -> None:
    end = time.monotonic() + 200
    while not any(row['kind'] == 'train' and row['step'] >= step for row in rows(workdir)):
        assert slurm.field(job, 'JobState') in slurm_lib.ACTIVE, slurm.log()
        assert time.monotonic() < end, 'the run does not get on'
        time.sleep(0.2)


def events(workdir: Path, name: str) -> list[dict]:
    return [row for row in rows(workdir) if row.get('event') == name]


def logged_steps(workdir: Path) -> list[int]:
    return [row['step'] for row in rows(workdir) if row['kind'] == 'train']


def test_the_digits_are_saved_on_sigterm_and_the_requeued_job_goes_on(slurm, submit, tmp_path):
    """Everything as `configs/digits.py` has it, a tower on each task."""
    config = ('--config=configs/digits.py',)
    job = submit('train.sbatch', last=f'--workdir={tmp_path}/run', config=config)
    wait_for_step(250, tmp_path / 'run', slurm, job)
    slurm('scancel', '--signal=TERM', job)  # as --signal does some time before the limit
    slurm.wait(job, 'COMPLETED', timeout_s=500)
    assert slurm.field(job, 'Restarts') == '1'
    [stopped], [resumed] = (events(tmp_path / 'run', e) for e in ('stopped', 'resumed'))
    steps = logged_steps(tmp_path / 'run')
    assert steps == sorted(set(steps))
    assert 250 <= stopped['step'] == resumed['step'] < steps[-1]
    last = [row for row in rows(tmp_path / 'run') if row['kind'] == 'eval'][-1]
    assert last['epoch'] == pytest.approx(40, abs=0.02)
    assert last['eval/top1_error'] < 0.03
    output = (tmp_path / f'{job}.out').read_text()
    assert output.count('exit code 143: requeue 1 of at most 3') == 1


def test_a_task_that_is_killed_takes_the_job_to_a_requeue(slurm, submit, tmp_path):
    job = submit('train.sbatch', last=f'--workdir={tmp_path}/run')
    wait_for_step(12, tmp_path / 'run', slurm, job)
    lines = slurm('scontrol', 'listpids', f'{job}.0').splitlines()[1:]
    tasks = {line.split()[3]: int(line.split()[0]) for line in lines if line.split()[3] != '-'}
    [python] = Path(f'/proc/{tasks["1"]}/task/{tasks["1"]}/children').read_text().split()
    os.kill(int(python), 9)
    slurm.wait(job, 'COMPLETED', timeout_s=180)
    assert slurm.field(job, 'Restarts') == '1'
    assert events(tmp_path / 'run', 'resumed')[0]['step'] >= 5  # the last that was sealed
    assert logged_steps(tmp_path / 'run') == list(range(1, STEPS + 1))
    output = (tmp_path / f'{job}.out').read_text()
    assert output.count('exit code 137: requeue 1 of at most 3') == 1


def test_what_is_the_users_to_mend_is_not_tried_again(slurm, submit, tmp_path):
    job = submit('train.sbatch', last='--config.training.batch_size=15')
    slurm.wait(job, 'FAILED', timeout_s=120)
    assert (slurm.field(job, 'ExitCode'), slurm.field(job, 'Restarts')) == ('2:0', '0')
    output = (tmp_path / f'{job}.out').read_text()
    assert 'error: config.training.batch_size = 15 must be a multiple of 2' in output
    assert 'requeue' not in output


def test_a_sweep(slurm, submit, tmp_path):
    runs = tmp_path / 'runs.txt'
    runs.write_text('short --config.training.total_steps=4\n')
    options = (str(runs), f'--workdir={tmp_path}')
    job = submit('sweep.sbatch', *options, last='--seeds=5,6', options=('--array=0-1',))
    losses = []
    for index, seed in enumerate((5, 6)):
        slurm.wait(f'{job}_{index}', 'COMPLETED', timeout_s=180)
        workdir = tmp_path / f'short_seed{seed}'
        assert json.loads((workdir / 'config.json').read_text())['seed'] == seed
        losses.append([r['train/loss'] for r in rows(workdir) if r['kind'] == 'train'])
    assert [len(run) for run in losses] == [4, 4]
    assert losses[0] != losses[1]
