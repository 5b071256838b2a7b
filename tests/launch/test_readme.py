"""launch/README.md: its predictions are what the command computes, and its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from alexnet_jax.benchmarks import prediction
from configs import alexnet

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'launch' / 'README.md').read_text()
COMMAND = 'python -m alexnet_jax.benchmark prediction'
LAYOUTS = {
    'data_parallel': '(a) data parallel',
    'two_towers': '(b) two towers',
    'one_weird_trick': '(c) one weird trick',
}


def table(command: str) -> str:
    """Return the table that the command's prediction makes."""
    config = alexnet.get_config()
    assumed = []
    for word in shlex.split(command)[4:]:
        name, _, value = word.lstrip('-').partition('=')
        if name == 'assume':
            assumed = value.split(',')
        else:
            _, section, field = name.split('.')
            config[section][field] = type(config[section][field])(value)
    got = prediction.predict(config, prediction.Assumptions.parse(assumed))
    lines = []
    for devices in got['assumed/devices']:
        for layout, words in LAYOUTS.items():
            row = {
                key.rpartition('/')[2]: value
                for key, value in got.items()
                if key.startswith(f'{layout}/{devices}/')
            }
            exchanged = row['images_ms'] + row['activations_ms']
            cells = [
                devices,
                words,
                f'{row["step_ms"]:.2f}',
                f'{row["arithmetic_ms"]:.2f}',
                f'{exchanged:.2f}',
                f'{row["gradients_ms"]:.2f}',
                f'{100 * row["efficiency"]:.0f} %',
                f'{row["images_per_second"]:,.0f}',
                f'{row["input_gb_s_per_node"]:.0f}',
                f'{60 * row["hours"]:.1f}',
                f'{row["cost"]:.2f}',
            ]
            lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    last = [f'{words} {got[f"{layout}/pays_up_to"]}' for layout, words in LAYOUTS.items()]
    return '\n'.join([*lines, '', f'Efficiency stays above one half up to: {", ".join(last)}.'])


@pytest.mark.parametrize('command', re.findall(rf'^{COMMAND}.*$', README, flags=re.MULTILINE))
def test_the_predictions_are_those_of_the_command(command):
    expected = table(command)
    shown = README.partition(f'\n{command}\n')[2].partition('---|\n')[2]
    assert shown.startswith(expected), f'in launch/README.md, below {command}:\n{expected}'


def test_two_predictions_are_shown():
    assert README.count(f'\n{COMMAND}') == 2


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r'launch/[\w/.]*\w', README))
    assert {'launch/slurm/train.sbatch', 'launch/k8s/submit.sh'} <= names
    missing = [name for name in names if not (ROOT / name).is_file()]
    assert not missing
    for file in (ROOT / 'launch').rglob('*'):
        if file.is_file() and file.name not in ('README.md', 'jobset_gpu.yaml', 'jobset_tpu.yaml'):
            assert str(file.relative_to(ROOT)) in names, 'not in the README'


def test_the_dockerfile_copies_what_there_is_and_installs_extras_that_there_are():
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    for line in re.findall(r'^COPY (.*)$', text, flags=re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    extras = set(re.findall(r'^(\w+) = \["', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE))
    named = {*re.findall(r'ACCELERATOR=(\w+)', text), 'k8s'}
    assert {'cuda', 'tpu'} <= named <= extras
