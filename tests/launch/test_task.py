"""What stands between a launcher and one process: task.sh, and pod.sh where it is a pod's first."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / 'launch'
STEP = 'last=${!#}; touch "${last#--first_step_file=}"; '


@pytest.fixture
def start(tmp_path):
    """Start a script with a program of bash in place of python."""

    def start(script: str, program: str, **environment: str) -> subprocess.Popen:
        python = tmp_path / 'python'
        python.write_text(f'#!/bin/bash\necho "$@" >{tmp_path}/arguments\n{program}\n')
        python.chmod(0o755)
        return subprocess.Popen(
            [LAUNCH / script, str(python), '--config=a b.py'],
            env=os.environ | {'TMPDIR': str(tmp_path)} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize(
    ('program', 'code'),
    [
        *((f'exit {code}', code) for code in (0, 1, 2, 130, 139, 143)),
        *((f'exit {code}', 3) for code in (75, 134)),
        ('kill -9 $$', 3),
        ('kill -TERM $$', 143),
        *((f'{STEP}exit {code}', code) for code in (0, 1, 2, 75, 134, 143)),
        (f'{STEP}kill -9 $$', 137),
    ],
)
def test_a_start_that_did_no_step_has_a_code_of_its_own(start, tmp_path, program, code):
    run = start('task.sh', program)
    _, err = run.communicate(timeout=20)
    assert run.returncode == code
    assert ('before the first training step of this start' in err) == (code == 3)
    arguments = (tmp_path / 'arguments').read_text()
    assert arguments.startswith('-m alexnet_jax.main --config=a b.py --first_step_file=')
    assert {p.name for p in tmp_path.iterdir()} == {'python', 'arguments'}  # nothing is left


def _signal_when_ready(run: subprocess.Popen, tmp_path: Path, after_s: float = 0) -> None:
    while not (tmp_path / 'ready').exists():
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(after_s)
    run.send_signal(signal.SIGTERM)


def test_after_sigterm_a_lost_process_is_no_reason_to_stop(start, tmp_path):
    """Slurm sends SIGTERM to the task and to its shell; here the process loses another first."""
    run = start('task.sh', f'touch {tmp_path}/ready; sleep 0.5; exit 134')
    _signal_when_ready(run, tmp_path)
    run.communicate(timeout=20)
    assert run.returncode == 134


def test_a_pod_passes_sigterm_on(start, tmp_path):
    body = f'trap "sleep 0.3; exit 143" TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done'
    run = start('k8s/pod.sh', body)
    _signal_when_ready(run, tmp_path)
    run.communicate(timeout=20)
    assert run.returncode == 143


def test_a_pod_leaves_time_for_the_end_of_the_process_that_was_lost(start, tmp_path):
    """When the other pod was taken away, Kubernetes ends this one soon, and all start again."""
    run = start('k8s/pod.sh', 'exit 134', OTHERS_S='0.5')
    run.communicate(timeout=20)
    assert run.returncode == 3
    run = start('k8s/pod.sh', f'touch {tmp_path}/ready; exit 134', OTHERS_S='20')
    _signal_when_ready(run, tmp_path, after_s=0.7)
    run.communicate(timeout=10)
    assert run.returncode == 143


@pytest.mark.parametrize('code', [0, 1, 2, 143])
def test_a_pod_ends_as_its_process(start, code):
    run = start('k8s/pod.sh', f'exit {code}', OTHERS_S='20')
    run.communicate(timeout=10)
    assert run.returncode == code
