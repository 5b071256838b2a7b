"""The watchdog: what is late ends the process, a pause of it does not. The lock of the workdir."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from alexnet_jax.runtime import locks
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import guard

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import logging, sys, time
from etils import epath
from alexnet_jax.training import guard
logging.basicConfig()
def stuck(seconds):
    time.sleep(seconds)
with guard.Watchdog({limit}, {slow}, sys.argv[1] + '/first') as watchdog:
    guard.use_workdir(epath.Path(sys.argv[1]))
    {body}
print('the end')
"""


def _start(workdir: Path, limit: float, body: str, slow: float = 100.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CODE.format(limit=limit, slow=slow, body=body), str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_takes_too_long_ends_the_process_and_leaves_the_stacks(tmp_path):
    process = _start(tmp_path, 0.5, "guard.expect('step 7'); stuck(100)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, '')
    words = r'step 7 took longer than 0\.5 s \(config\.training\.watchdog_s\); the stacks are in '
    assert re.search(words + re.escape(str(tmp_path / 'hang-0.txt')), err), err
    assert re.search(r'in stuck$', (tmp_path / 'hang-0.txt').read_text(), re.M)


def test_what_is_slow_has_a_limit_of_its_own_also_before_there_is_a_workdir(tmp_path):
    """The start is slow; the stacks go to standard error."""
    code = CODE.replace('    guard.use_workdir(epath.Path(sys.argv[1]))\n', '')
    code = code.format(limit=0, slow=0.5, body='stuck(100)')
    process = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (75, '')
    first, *stacks = process.stderr.splitlines()
    assert first == (
        'error: the start took longer than 0.5 s (config.training.watchdog_slow_s); '
        'the stacks follow'
    )
    assert any(re.search(r'in stuck$', line) for line in stacks)
    assert not list(tmp_path.iterdir())


TWO_SIGNALS = """
import hashlib, signal
from alexnet_jax.runtime import beginning
from alexnet_jax.training import guard
beginning._end_on_signals()
with guard.StopSignal():
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)  # stands for the compiler: a call of C
"""


def test_the_second_signal_ends_the_process_even_while_it_compiles():
    process = subprocess.Popen(
        [sys.executable, '-c', TWO_SIGNALS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, '')


HANGS = """
def hang(file, *mode):
    if 'hang-0.txt' in str(file):
        time.sleep(1000)
    return io.open(file, *mode)
"""


@pytest.mark.parametrize('hangs', [False, True])
def test_the_stacks_get_out_even_if_the_workdir_is_gone_or_hangs(tmp_path, hangs):
    body = 'import io; guard._LAST_WORDS_S = 0.5\n'
    body += '    exec(hang); guard.open = locals()["hang"]\n' if hangs else ''
    body += "    guard.expect('a step'); stuck(100)"
    code = CODE.format(limit=0.5, slow=100, body=body)
    process = subprocess.run(
        [sys.executable, '-c', f'import io\nhang = {HANGS!r}\n{code}', str(tmp_path / 'gone')],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 75
    assert 'a step took longer than 0.5 s (config.training.watchdog_s); the stacks follow' in (
        process.stderr
    )
    assert re.search(r'in stuck$', process.stderr, re.M)


def test_the_first_step_leaves_its_file(tmp_path):
    body = 'assert not list(epath.Path(sys.argv[1]).iterdir()); guard.note_step()'
    process = _start(tmp_path, 1.0, body)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, 'the end\n'), err
    assert [p.name for p in tmp_path.iterdir()] == ['first']
    process = _start(tmp_path / 'gone', 1.0, 'guard.note_step()')
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, 'the end\n'), err
    assert 'cannot write --first_step_file' in err


def test_what_gets_on_what_is_slow_and_zero_end_nothing(tmp_path):
    """Each of ten steps in time; a slow one of two limits; after a pause of four, in time again."""
    steps = 'for i in range(10): guard.expect(f"step {i}"); stuck(0.1)'
    slow = 'guard.expect("a save", slow=True); stuck(2)'
    pause = "guard.expect('a step'); stuck(0.6); print('ready', flush=True)"
    pause += '; [stuck(0.05) for _ in range(20)]'
    running = [_start(tmp_path, 1.0, body) for body in (steps, slow)]
    running.append(_start(tmp_path, 0, "guard.expect('a step'); stuck(2)"))
    running.append(_start(tmp_path, 0, 'stuck(2)', slow=0))
    paused = _start(tmp_path, 2.5, pause)
    running.append(paused)
    assert paused.stdout is not None
    assert paused.stdout.readline() == 'ready\n'
    paused.send_signal(signal.SIGSTOP)
    time.sleep(4)
    paused.send_signal(signal.SIGCONT)
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, 'the end\n'), err


def _refusal(workdir: Path) -> str:
    with (
        pytest.raises(UserError) as caught,
        guard.workdir_lock(epath.Path(workdir), wait_s=0.2),
    ):
        pass
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_held_workdir_is_refused_by_the_name_of_its_owner(tmp_path):
    workdir = tmp_path / 'a run'
    with guard.workdir_lock(epath.Path(workdir)):
        line = _refusal(workdir)
        assert line.startswith(f'{workdir} is in use by {{"pid": {os.getpid()}, "host": ')
        assert 'rm ' not in line, 'this machine lives: its kernel lets go of the lock by itself'
        (workdir / 'LOCK').write_text(json.dumps({'pid': 7, 'host': 'gone'}))
        line = _refusal(workdir)
    assert '{"pid": 7, "host": "gone"}' in line
    assert line.endswith(f"if you know that that run has ended, rm '{workdir}/LOCK'")


def test_a_run_that_is_started_again_waits_for_the_end_of_the_last(tmp_path, caplog):
    workdir = epath.Path(tmp_path)
    with contextlib.ExitStack() as last:
        last.enter_context(guard.workdir_lock(workdir))
        timer = threading.Timer(0.5, last.close)
        timer.start()
        with guard.workdir_lock(workdir, wait_s=60):
            timer.join()
    assert f'{tmp_path} is in use by ' in caplog.text
    assert 'waiting 60 s' in caplog.text


@pytest.mark.parametrize('reason', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog, reason):
    def flock(file, operation):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(locks.fcntl, 'flock', flock)
    with guard.workdir_lock(epath.Path(tmp_path)):
        assert json.loads((tmp_path / 'LOCK').read_text())['pid'] == os.getpid()
    (line,) = caplog.messages
    assert os.strerror(reason) in line
    assert str(tmp_path / 'LOCK') in line
