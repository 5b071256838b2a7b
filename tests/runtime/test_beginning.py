"""What happens before a command has imported what it needs: signals, and JAX's own variables."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A call of C that takes hours: a handler in Python would wait for its end.
BUSY = """
import hashlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
from alexnet_jax.runtime import beginning
beginning._end_on_signals()
print('ready', flush=True)
hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_at_once_and_quietly(number, code):
    process = subprocess.Popen(
        [sys.executable, '-c', BUSY],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, '')


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('XLA_FLAGS', '--xla_foo=1', 'Unknown flag in XLA_FLAGS: --xla_foo=1; correct or unset'),
        ('JAX_NUM_CPU_DEVICES', 'abc', 'Invalid value "abc" for JAX flag jax_num_cpu_devices'),
        ('JAX_ENABLE_X64', 'perhaps', "invalid truth value 'perhaps'"),
    ],
)
def test_a_variable_that_jax_refuses_is_one_line(name, value, words):
    done = subprocess.run(
        [sys.executable, '-m', 'alexnet_jax.main', '--config=configs/tiny.py'],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert done.stderr.startswith('error: ')
    assert words in done.stderr
