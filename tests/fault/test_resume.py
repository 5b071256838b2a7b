"""Kills and signals: the same command goes on, its parameters bitwise those of a clean run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import guard

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def _command(workdir: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        '-m',
        'alexnet_jax.main',
        '--config=configs/tiny.py',
        f'--workdir={workdir}',
        f'--config.training.total_steps={STEPS}',
        '--config.training.eval_every_epochs=0.15',  # steps 14, 27, 40
        '--config.checkpoint.save_every_steps=5',
        '--config.log.tensorboard=false',
        *arguments,
    ]


def _start(workdir: Path, data_dir: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        _command(workdir, *arguments),
        cwd=ROOT,
        env=os.environ | {'TFDS_DATA_DIR': str(data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _rows(workdir: Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Wait until a training row of this step is written."""
    end = time.monotonic() + 100
    while not any(row['kind'] == 'train' and row['step'] >= step for row in _rows(workdir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'the run does not get on'
        time.sleep(0.002)


def _digest(workdir: Path, data_dir: Path) -> str:
    code, out, err = _finish(_start(workdir, data_dir, '--mode=evaluate'))
    assert code == 0, err
    step, number, sha, digest = out.splitlines()[-1].split()[:4]
    assert (step, number, sha) == ('step', str(STEPS), 'sha256')
    return digest


@pytest.fixture(scope='module')
def clean(tmp_path_factory, data_dir):
    """The digest and the losses of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp('clean')
    code, _, err = _finish(_start(workdir, data_dir))
    assert code == 0, err
    return _digest(workdir, data_dir), _losses(workdir)


def _losses(workdir: Path) -> dict[int, float]:
    return {row['step']: row['train/loss'] for row in _rows(workdir) if row['kind'] == 'train'}


def test_kill_9_and_resume_is_bitwise_the_clean_run(tmp_path, data_dir, clean):
    """Three kills between, during and just after saves; every step stands once in the metrics."""
    for step in (8, 15, 31):  # 15 is saved, 14 and 27 are evaluated
        process = _start(tmp_path, data_dir)
        _wait_for_step(process, tmp_path, step)
        while step == 8 and not list((tmp_path / 'checkpoints').glob('*/manifest.json')):
            time.sleep(0.002)
        process.kill()
        process.communicate()
    code, _, err = _finish(_start(tmp_path, data_dir))
    assert code == 0, err
    events = [row['event'] for row in _rows(tmp_path) if row['kind'] == 'event']
    assert events.count('resumed') == 3
    assert _losses(tmp_path) == clean[1]
    assert [r['step'] for r in _rows(tmp_path) if r['kind'] == 'eval'] == [14, 27, 40]
    assert _digest(tmp_path, data_dir) == clean[0]
    code, out, _ = _finish(_start(tmp_path, data_dir))
    assert code == 0
    assert out == f'nothing to train: {tmp_path} is at step {STEPS} of {STEPS}\n'


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(tmp_path, data_dir, clean, number, code):
    process = _start(tmp_path, data_dir)
    _wait_for_step(process, tmp_path, 7)
    process.send_signal(number)
    got, _, err = _finish(process)
    assert got == code, err
    stopped = _rows(tmp_path)[-1]
    assert stopped['event'] == 'stopped'
    assert (tmp_path / 'checkpoints' / str(stopped['step']) / 'manifest.json').exists()
    losses = _losses(tmp_path)
    assert losses.keys() == set(range(1, stopped['step'] + 1))
    assert losses.items() <= clean[1].items()
    if number == signal.SIGTERM:
        code, _, err = _finish(_start(tmp_path, data_dir))
        assert code == 0, err
        resumed = next(row for row in _rows(tmp_path) if row.get('event') == 'resumed')
        assert resumed['step'] == stopped['step']
        assert _losses(tmp_path) == clean[1]
        assert _digest(tmp_path, data_dir) == clean[0]


RECIPE = (
    '--config.augment.mixup_alpha=0.4',
    '--config.augment.cutmix_alpha=1.0',
    '--config.training.label_smoothing=0.1',
    '--config.training.ema_decay=0.9',
    "--config.model.conv1.after=('bn','activation','pool')",
    "--config.model.conv2.after=('activation','bn','pool')",
)


def test_with_mixed_images_averages_and_batch_statistics(tmp_path, data_dir):
    """A kill and a resume are bitwise the clean run, and one device reads what two have saved."""
    clean, killed = tmp_path / 'clean', tmp_path / 'killed'
    code, _, err = _finish(_start(clean, data_dir, *RECIPE))
    assert code == 0, err
    process = _start(killed, data_dir, *RECIPE)
    _wait_for_step(process, killed, 23)
    process.kill()
    process.communicate()
    code, _, err = _finish(_start(killed, data_dir, *RECIPE))
    assert code == 0, err
    assert [row['event'] for row in _rows(killed) if row['kind'] == 'event'].count('resumed') == 1
    assert _losses(killed) == _losses(clean)
    lines = set()
    for workdir, devices in ((clean, 2), (killed, 2), (killed, 1)):
        mesh = (f'--config.parallel.{name}={devices}' for name in ('cpu_devices', 'model'))
        arguments = (*RECIPE, '--mode=evaluate', *mesh)
        code, out, err = _finish(_start(workdir, data_dir, *arguments))
        assert code == 0, err
        lines.add(out.splitlines()[-1])
    assert len(lines) == 1, lines


def test_two_runs_in_one_workdir(tmp_path, data_dir):
    first = _start(tmp_path, data_dir)
    _wait_for_step(first, tmp_path, 1)
    first.send_signal(signal.SIGSTOP)
    words = re.escape(f'{tmp_path} is in use by {{"pid": {first.pid}')
    try:
        with (
            pytest.raises(UserError, match=words),
            guard.workdir_lock(epath.Path(tmp_path), wait_s=0.0),
        ):
            pass
    finally:
        first.kill()
        first.communicate()
    with guard.workdir_lock(epath.Path(tmp_path), wait_s=0.0):  # the kernel has let go of it
        assert json.loads((tmp_path / 'LOCK').read_text())['pid'] == os.getpid()
