"""Every script of launch/: bash parses it, shellcheck is content, JAX accepts its environment."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(file for file in (ROOT / 'launch').rglob('*') if file.suffix in ('.sh', '.sbatch'))
each_script = pytest.mark.parametrize(
    'script', SCRIPTS, ids=lambda f: str(f.relative_to(ROOT / 'launch'))
)


@each_script
def test_bash_can_parse_it(script):
    run = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, '')


@each_script
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = Path(sysconfig.get_path('scripts')) / 'shellcheck'
    run = subprocess.run(
        # SC2329: it does not see that a trap calls a function.
        [shellcheck, '--external-sources', '--exclude=SC2329', script],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, '')


@pytest.mark.parametrize(
    'script', [s for s in SCRIPTS if s.name.startswith('env_')], ids=lambda f: f.name
)
def test_jax_accepts_the_environment(script):
    """A flag that XLA or JAX does not know ends the process."""
    code = 'import jax, jax.numpy as jnp; print(jax.jit(lambda x: x + 1)(jnp.int32(1)))'
    run = subprocess.run(
        ['bash', '-euc', f'source {script}; exec {sys.executable} -c "{code}"'],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, '2\n'), run.stderr


def test_no_hyper_parameter_stands_in_a_file_of_launch():
    """What a run computes is said by its config and its command line only."""
    for file in (ROOT / 'launch').rglob('*'):
        if file.is_file() and file.suffix != '.md':
            code = re.sub(r'^ *#.*', '', file.read_text(), flags=re.MULTILINE)
            assert not re.search(r'--config\.\w', code), file
