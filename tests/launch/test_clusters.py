"""docs/clusters.md: its predictions are what the commands compute, and its files are there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'clusters.md').read_text()
COMMANDS = re.findall(r'^python (-m alexnet_jax\.benchmark prediction .*)$', PAGE, re.MULTILINE)
LAYOUTS = {
    'data_parallel': '(a) data parallel',
    'two_towers': '(b) two towers',
    'one_weird_trick': '(c) one weird trick',
}


@pytest.fixture(scope='module')
def predictions() -> list[dict]:
    """Return what the page's two commands say: 128 images a device, and 1024 on all devices."""
    outputs = [
        subprocess.check_output([sys.executable, *shlex.split(command), '--json'], cwd=ROOT)
        for command in COMMANDS
    ]
    assert len(outputs) == 2
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_the_table_is_what_the_commands_compute(predictions):
    growing, fixed = predictions
    columns = [(growing, 8), (growing, 64), (growing, 512), (fixed, 64), (fixed, 512)]
    lines = []
    for layout, words in LAYOUTS.items():
        rows = [{'name': f'{layout}/{devices}', **got} for got, devices in columns]
        cells = [
            f'{row[row["name"] + "/step_ms"]:.2f} ms, {row[row["name"] + "/efficiency"]:.0%}'
            for row in rows
        ]
        lines.append('| ' + ' | '.join([words, *cells]).replace('%', ' %') + ' |')
    expected = '\n'.join(lines)
    assert f'---|\n{expected}\n\n' in PAGE, f'in docs/clusters.md the table is now:\n{expected}'


def test_what_follows_from_the_table(predictions):
    growing, fixed = predictions
    pays_up_to = [[got[f'{layout}/pays_up_to'] for layout in LAYOUTS] for got in predictions]
    assert pays_up_to == [[8, 16, 16], [8, 8, 8]]
    assert growing['data_parallel/512/batch'] == 65_536
    assert f'{growing["data_parallel/8/input_gb_s_per_node"]:.0f} GB/s for a node' in PAGE
    assert f'{growing["gflop_per_image"]:.4f} GFLOP' in PAGE
    assert all(got['kind'] == 'PREDICTED, not measured' for got in (growing, fixed))


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r'(?<!tests/)launch/[\w/.]*\w', PAGE))
    missing = [name for name in names if not (ROOT / name).is_file()]
    assert not missing
    for file in (ROOT / 'launch').rglob('*'):
        if file.is_file() and file.name not in ('jobset_gpu.yaml', 'jobset_tpu.yaml'):
            assert str(file.relative_to(ROOT)) in names, 'not in docs/clusters.md'


def test_the_dockerfile_copies_what_there_is_and_installs_extras_that_there_are():
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    for line in re.findall(r'^COPY (.*)$', text, flags=re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    extras = set(re.findall(r'^(\w+) = \["', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE))
    named = {*re.findall(r'ACCELERATOR=(\w+)', text), 'k8s'}
    assert {'cuda', 'tpu'} <= named <= extras
