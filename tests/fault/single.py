"""Start the tiny run as its own process, and read what it leaves."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed

ROOT = Path(__file__).resolve().parents[2]


def command(workdir: Path, data_dir: Path, *arguments: str, program: str = '') -> list[str]:
    """Return the command of a run; the text of a Python `program` may stand for `main`."""
    return [
        sys.executable,
        *(['-c', program] if program else ['-m', 'alexnet_jax.main']),
        '--config=configs/tiny.py',
        f'--workdir={workdir}',
        f'--data_dir={data_dir}',
        # With what an earlier start has compiled, a start takes a quarter of the time.
        f'--config.training.compilation_cache_dir={data_dir}/compiled',
        '--config.log.tensorboard=false',
        *arguments,
    ]


def start(workdir: Path, data_dir: Path, *arguments: str, program: str = '') -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, data_dir, *arguments, program=program),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: list[str]) -> tuple[int, str, str]:
    """Return the exit code, the standard output and the standard error of a command."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return the exit code, the standard output and the standard error."""
    out, err = process.communicate(timeout=250)
    return process.returncode, out, err


def rows(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(row['step'], row['train/loss']) for row in rows(workdir) if row['kind'] == 'train']


def wait_for(process: subprocess.Popen, condition: Any, timeout_s: float = 200) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'the run does not get on'
        time.sleep(0.01)


def sealed_steps(workdir: Path) -> list[int]:
    return sorted(int(p.parent.name) for p in workdir.glob('checkpoints/*/manifest.json'))


def state_sha256(workdir: Path) -> tuple[int, str]:
    """Return the newest step and the SHA-256 of all that is trained: parameters, momentum, step."""
    experiment = build(typed(tiny.get_config()), with_data=False)
    with Checkpoints(epath.Path(workdir)) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state(), lambda meta: None)
    assert restored is not None
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state):
        array = np.asarray(leaf)
        digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
        digest.update(array.tobytes())
    return restored.step, digest.hexdigest()
