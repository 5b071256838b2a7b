"""The sbatch files under a stand-in for Slurm: what each task is told, and what follows its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jax._src import clusters

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / 'launch' / 'slurm'
JOB = {
    'SLURM_JOB_ID': '4200',
    'SLURM_NTASKS': '4',
    'SLURM_JOB_NUM_NODES': '2',
    'ENV_FILE': '/dev/null',
}

# Runs the command of srun once for each task, and returns the highest exit code, as srun does.
SRUN = r"""#!/bin/bash
echo "$*" >"$RECORD/srun"
while [[ $1 == --* ]]; do shift; done
highest=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % (SLURM_NTASKS / SLURM_JOB_NUM_NODES))) \
    SLURM_STEP_NODELIST='node[07-08]' "$@"
  code=$?
  ((code > highest)) && highest=$code
done
exit "$highest"
"""
# In place of python: records arguments and environment, ends with its entry of CODES.
PYTHON = r"""#!/bin/bash
if [[ $1 == launch/sweep_list.py ]]; then exec "$REAL" "$@"; fi
printf '%s\n' "${@:1:$#-1}" >"$RECORD/arguments$SLURM_PROCID"  # without --first_step_file
env -0 >"$RECORD/environment$SLURM_PROCID"
codes=($CODES)
code=${codes[SLURM_PROCID]:-0}
last=${!#}
# `75s` is 75 after a step.
[[ $code == *s ]] && touch "${last#--first_step_file=}"
exit "${code%s}"
"""
SCONTROL = '#!/bin/bash\necho "$*" >>"$RECORD/scontrol"\n'


@pytest.fixture
def job(tmp_path):
    """Run an sbatch file as Slurm does: a copy of it, in the directory of the submission."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL), ('python', PYTHON)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(file: str, *arguments: str, cwd: Path = ROOT, **environment: str):
        copy = tmp_path / 'slurm_script'
        copy.write_text((SLURM / file).read_text())
        return subprocess.run(
            ['bash', copy, *arguments],
            cwd=cwd,
            env=os.environ
            | {'PATH': f'{programs}:{os.environ["PATH"]}', 'RECORD': str(tmp_path)}
            | {'REAL': sys.executable}
            | JOB
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def environment_of(task: int, tmp_path: Path) -> dict[str, str]:
    entries = (tmp_path / f'environment{task}').read_text().split('\0')
    return dict(entry.split('=', 1) for entry in entries if entry)


def detected(task: int, tmp_path: Path, monkeypatch) -> tuple:
    """Return what JAX makes of a task's environment."""
    with monkeypatch.context() as patch:
        for name, value in environment_of(task, tmp_path).items():
            if name.startswith(('SLURM_', 'JAX_LOCAL')):
                patch.setenv(name, value)
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, 'slurm', 10
        )


def test_jax_finds_every_task_of_two_nodes(job, tmp_path, monkeypatch):
    run = job('train.sbatch', '--config=a b.py', '--workdir=$HOME')
    assert run.returncode == 0, run.stderr
    port = 4200 % 4096 + 65535 - 4095
    expected = [(f'node07:{port}', 4, task, [task % 2]) for task in range(4)]
    assert [detected(task, tmp_path, monkeypatch) for task in range(4)] == expected
    for task in range(4):
        assert (tmp_path / f'arguments{task}').read_text() == (
            '-m\nalexnet_jax.main\n--distributed=slurm\n--config=a b.py\n--workdir=$HOME\n'
        )
    assert '--cpus-per-task=1 ' in (tmp_path / 'srun').read_text()


def test_one_process_a_node_drives_all_gpus_of_the_node(job, tmp_path):
    gpus = {'SLURM_NTASKS': '2', 'SLURM_GPUS_ON_NODE': '4', 'SLURM_CPUS_PER_TASK': '9'}
    assert job('train.sbatch', **gpus).returncode == 0
    assert environment_of(1, tmp_path)['JAX_LOCAL_DEVICE_IDS'] == '0,1,2,3'
    assert '--cpus-per-task=9 ' in (tmp_path / 'srun').read_text()


def test_one_process_a_gpu_takes_the_gpu_of_its_number(job, tmp_path):
    assert job('train.sbatch', SLURM_GPUS_ON_NODE='2').returncode == 0
    assert 'JAX_LOCAL_DEVICE_IDS' not in environment_of(3, tmp_path)  # then JAX takes SLURM_LOCALID


@pytest.mark.parametrize(
    ('codes', 'code', 'requeued'),
    [
        ('0 0 0 0', 0, False),
        ('1 134s 134s 134s', 1, False),
        ('134s 134s 2 134s', 2, False),
        ('143 143 143 143', 143, True),
        ('134s 75s 134s 134s', 134, True),
        ('75s 75s 75s 75s', 75, True),
        ('134s 134s 134s 137s', 137, True),  # one killed
        # Before the first step: a hang, a lost network, one killed; a mistake and SIGTERM count.
        ('75 75 75 75', 3, False),
        ('134 134 134 134', 3, False),
        ('134 137 134 134', 3, False),
        ('134 134 2 134', 2, False),
        ('134 143 134 134', 143, True),
        ('134s 134 134 134', 134, True),
        ('0 0 0 127', 127, False),  # no such program
        ('0 0 139 0', 139, False),
    ],
)
def test_requeue_or_stop(job, tmp_path, codes, code, requeued):
    run = job('train.sbatch', CODES=codes)
    assert run.returncode == code, run.stderr
    assert (tmp_path / 'scontrol').exists() == requeued
    if requeued:
        assert (tmp_path / 'scontrol').read_text() == 'requeue 4200\n'
        assert run.stderr.splitlines()[-1] == f'exit code {code}: requeue 1 of at most 10'


def test_requeues_have_a_bound(job, tmp_path):
    codes = {'CODES': '134s 134s 134s 134s', 'MAX_REQUEUES': '3'}
    assert job('train.sbatch', SLURM_RESTART_COUNT='2', **codes).returncode == 134
    assert (tmp_path / 'scontrol').read_text() == 'requeue 4200\n'
    run = job('train.sbatch', SLURM_RESTART_COUNT='3', **codes)
    assert run.returncode == 134
    assert run.stderr.splitlines()[-1] == 'exit code 134 after 3 requeues of at most 3: not again'
    assert (tmp_path / 'scontrol').read_text() == 'requeue 4200\n'


@pytest.mark.parametrize('file', ['train.sbatch', 'sweep.sbatch'])
def test_outside_the_checkout(job, tmp_path, file):
    run = job(file, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (2, 'error: submit it in the checkout\n')


@pytest.fixture
def sweep(job, tmp_path):
    """Run one task of a sweep of three lines and two seeds."""
    path = tmp_path / 'list of runs'
    path.write_text('a\nb "--config.x.area=(0.08, 1.0)"\nc --config.x.y=a,b\n')
    arguments = [str(path), '--config=x.py', '--workdir=D E', '--seeds=0,7']

    def run(task: str, *options: str, **environment: str):
        return job('sweep.sbatch', *arguments, *options, SLURM_ARRAY_TASK_ID=task, **environment)

    return run


def test_a_sweep_runs_every_line_with_every_seed_once(sweep, tmp_path):
    overrides = {'a': [], 'b': ['--config.x.area=(0.08, 1.0)'], 'c': ['--config.x.y=a,b']}
    runs = [(name, seed) for name in overrides for seed in (0, 7)]
    for task, (name, seed) in enumerate(runs):
        run = sweep(str(task), '--config.z=1')
        assert run.returncode == 0, run.stderr
        assert run.stderr == f'task {task} of 0 to 5: {name}_seed{seed}\n'
        for process in range(4):
            arguments = (tmp_path / f'arguments{process}').read_text().splitlines()
            assert arguments == [
                *('-m', 'alexnet_jax.main', '--distributed=slurm', '--config=x.py'),
                *('--config.z=1', *overrides[name], f'--config.seed={seed}'),
                f'--workdir=D E/{name}_seed{seed}',
            ]


@pytest.mark.parametrize(
    ('task', 'options', 'error'),
    [
        ('6', [], 'task 6 of the job array is not there; the list and the seeds make 6 runs: '),
        ('', [], 'there is no job array; the list and the seeds make 6 runs: --array=0-5\n'),
        ('0', ['--sedes=1'], "the command line: '--sedes=1' is not --workdir=DIR, "),
    ],
)
def test_a_wrong_sweep_ends_in_one_line(sweep, tmp_path, task, options, error):
    run = sweep(task, *options)
    assert (run.returncode, run.stdout) == (2, '')
    assert run.stderr.startswith(f'error: {error}')
    assert run.stderr.count('\n') == 1
    assert not (tmp_path / 'srun').exists()


def test_a_sweep_requeues_like_a_single_run(sweep, tmp_path):
    run = sweep('0', CODES='143 143 143 143')
    assert run.returncode == 143
    assert (tmp_path / 'scontrol').read_text() == 'requeue 4200\n'


def test_both_files_ask_slurm_for_the_same():
    def directives(file: str) -> set[str]:
        """Return what sbatch reads: it stops at the first line that is no comment."""
        head = re.split(r'^[^#\n]', (SLURM / file).read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        return set(re.findall(r'^#SBATCH (\S+)$', head, flags=re.MULTILINE))

    train, sweep = directives('train.sbatch'), directives('sweep.sbatch')
    assert {'--signal=TERM@300', '--requeue', '--open-mode=append'} <= train & sweep
    assert train - sweep == {'--dependency=singleton', '--output=%x-%j.out'}
    assert sweep - train == {'--output=%x-%A_%a.out'}
