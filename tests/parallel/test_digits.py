"""The digits from the command line: the mesh is an override and changes no loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20


def losses(workdir: Path, data_dir: Path, data: int, model: int, backend: str) -> list[float]:
    """Train the digits for some steps in a process of its own; return the loss of each."""
    parallel = {'data': data, 'model': model, 'backend': backend, 'cpu_devices': data * model}
    changes = {
        'optim.learning_rate': 0.0003,  # a tenth: what rounding differs by grows with the steps
        'training.total_steps': STEPS,
        'training.log_every_steps': 1,
        'training.eval_every_epochs': 0.0,
        **{f'parallel.{field}': value for field, value in parallel.items()},
    }
    subprocess.run(
        [
            *(sys.executable, '-m', 'alexnet_jax.main', '--config=configs/digits.py'),
            *(f'--workdir={workdir}', f'--data_dir={data_dir}'),
            *(f'--config.{field}={value}' for field, value in changes.items()),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith('JAX_')},
        check=True,
    )
    saved = json.loads((workdir / 'config.json').read_text())['parallel']
    assert saved.items() >= parallel.items()
    assert len(json.loads((workdir / 'environment.json').read_text())['devices']) == data * model
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    trained = [row for row in rows if row['kind'] == 'train']
    assert [row['step'] for row in trained] == list(range(1, STEPS + 1))
    return [row['train/loss'] for row in trained]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory, data_dir):
    run = losses(tmp_path_factory.mktemp('run') / 'run', data_dir, 1, 1, 'shard_map')
    assert len(set(run)) == STEPS
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ('data', 'model', 'backend'),
    [
        (2, 1, 'shard_map'),
        (1, 2, 'shard_map'),
        (2, 2, 'shard_map'),
        (1, 4, 'shard_map'),
        (2, 2, 'pmap'),
    ],
)
def test_every_mesh_has_the_losses_of_one_device(
    tmp_path, data_dir, on_one_device, data, model, backend
):
    run = losses(tmp_path / 'run', data_dir, data, model, backend)
    worst = np.abs(np.subtract(run, on_one_device)).max()
    print(f'{data}x{model} {backend}: loss {run[0]:.6f} .. {run[-1]:.6f}, off by {worst:.1e}')
    assert worst <= 1e-4
