"""How processes find each other, and what is said when they do not."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_jax.parallel import processes
from alexnet_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOCAL = str(ROOT / 'launch' / 'local.sh')


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (
            ('auto', 'a:1', None, None),
            '--distributed=auto finds .* leave out either --coordinator_address or --distributed',
        ),
        (('slurm', '', 2, None), '--distributed=slurm finds .* leave out either --num_proc'),
        (
            ('off', 'a:1', None, None),
            '--coordinator_address needs --num_processes and --process_id',
        ),
        (('off', '', None, 0), '--process_id needs --coordinator_address and --num_processes'),
        (('off', 'host', 2, 0), '--coordinator_address=host is not HOST:PORT'),
        (('off', ':80', 2, 0), 'is not HOST:PORT'),
        (('off', 'host:0', 2, 0), 'is not HOST:PORT'),
        (('off', 'host:65536', 2, 0), 'is not HOST:PORT'),
        (('off', 'a:1', 2, 2), '--process_id=2 must be at least 0 and below --num_processes=2'),
        (('off', 'a:1', 2, -1), '--process_id=-1 must be'),
    ],
)
def test_flags_that_contradict_each_other_are_one_line(flags, words):
    with pytest.raises(UserError, match=words) as error:
        processes.check_flags(*flags)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('flags', [('off', '', None, None), ('tpu', '', None, None)])
def test_flags_that_go_together(flags):
    processes.check_flags(*flags)
    processes.check_flags('off', '[::1]:80', 1, 0)


CONNECT = """
import sys
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.parallel import processes
from tests import reference
def connect(distributed='off', address='', count=None, number=None, wait_s=30):
    try:
        config = reference.parallel(
            initialization_timeout_s=wait_s, heartbeat_timeout_s=10, shutdown_timeout_s=5)
        processes.connect(
            config, distributed=distributed, coordinator_address=address, num_processes=count,
            process_id=number, wait_on_sigterm=False)
    except UserError as error:
        print(error)
"""


def _python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', CONNECT + code],
        cwd=ROOT,
        env={'PATH': os.environ['PATH'], 'JAX_PLATFORMS': 'cpu', **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def test_no_launcher_and_a_taken_port_are_one_line_each():
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        done = _python(f'connect("auto"); connect("slurm"); connect("off", "a:{port}", 2, 0)')
    auto, slurm, taken = done.stdout.splitlines()
    assert re.fullmatch('the processes cannot meet by auto .*JAX finds no launcher here.*', auto)
    assert re.fullmatch('the processes cannot meet by slurm .*start them with srun', slurm)
    assert taken == (
        f'port {port} of --coordinator_address cannot be opened here (Address already in use); '
        'choose another port for all processes'
    )


@pytest.mark.parametrize('number', [0, 1])
def test_a_process_that_never_starts_is_one_line(number):
    began = time.monotonic()
    done = _python(f'connect("off", "127.0.0.1:{_free_port()}", 2, {number}, wait_s=2)')
    assert time.monotonic() - began < 30
    assert done.returncode == 134
    lines = [line for line in done.stderr.splitlines() if 'error: ' in line]
    assert len(lines) == 1
    assert re.search('not all processes connected at .* within 2 s', lines[0])


def test_a_proxy_is_not_asked_the_way_to_another_process():
    with socket.create_server(('127.0.0.1', 0)) as proxy:  # takes connections, answers nothing
        address = f'http://127.0.0.1:{proxy.getsockname()[1]}'
        code = f'connect("off", "localhost:{_free_port()}", 1, 0, wait_s=10)\n'
        code += 'import os, jax; print(jax.process_count(), os.environ["http_proxy"])'
        done = _python(code, http_proxy=address, HTTPS_PROXY=address)
    assert done.stdout == f'1 {address}\n', done.stderr


def _local(tmp_path: Path, body: str, *arguments: str, **env: str) -> subprocess.Popen:
    """Start `launch/local.sh` with a script in place of python; $me is the number."""
    python = tmp_path / 'python'
    python.write_text(
        '#!/usr/bin/env bash\n'
        'if [[ $1 == -c ]]; then echo 4711; exit; fi\n'
        'for word; do [[ $word == --process_id=* ]] && me=${word#*=}; done\n' + body
    )
    python.chmod(0o755)
    return subprocess.Popen(
        [LOCAL, *arguments],
        env=os.environ | {'PYTHON': str(python)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_local_sh_starts_each_process(tmp_path):
    run = _local(tmp_path, 'pwd; echo "$JAX_LOCAL_DEVICE_IDS $*"', '3', '--mode=evaluate', 'a b')
    out, err = run.communicate(timeout=20)
    assert run.returncode == 0
    command = '-m alexnet_jax.main --coordinator_address=127.0.0.1:4711 --num_processes=3'
    assert out == f'{ROOT}\n0 {command} --process_id=0 --mode=evaluate a b\n'
    for number in (1, 2):
        assert f'[{number}] {ROOT}\n' in err
        line = f'[{number}] {number} {command} --process_id={number} --mode=evaluate a b\n'
        assert line in err


@pytest.mark.parametrize(
    ('codes', 'code'), [('0 0', 0), ('0 7', 7), ('134 1', 1), ('2 134', 2), ('143 143', 143)]
)
def test_local_sh_ends_with_the_code_that_says_most(tmp_path, codes, code):
    run = _local(tmp_path, f'codes=({codes}); exit "${{codes[me]}}"', '2')
    run.communicate(timeout=20)
    assert run.returncode == code


def test_local_sh_kills_what_does_not_end(tmp_path):
    body = 'trap "" TERM; [[ $me == 1 ]] && exit 3; while :; do sleep 0.1; done'
    run = _local(tmp_path, body, '3', OTHERS_S='1')
    _, err = run.communicate(timeout=20)
    assert run.returncode == 3
    assert 'killing the processes 0 2, which did not end' in err


@pytest.fixture
def interruptible():
    """What is started in the background ignores Ctrl-C, and a shell cannot undo that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_local_sh_passes_signals_on(tmp_path, interruptible, number, code):
    body = (
        'trap "sleep 0.5; exit 143" TERM; trap "sleep 0.5; exit 130" INT; '
        f'touch {tmp_path}/ready-$me; while :; do sleep 0.1; done'
    )
    run = _local(tmp_path, body, '2')
    while len(list(tmp_path.glob('ready-*'))) < 2:
        time.sleep(0.01)
    run.send_signal(number)
    run.communicate(timeout=20)
    assert run.returncode == code


def test_local_sh_kills_on_a_second_signal(tmp_path):
    body = f'trap "touch {tmp_path}/got-$me" TERM; touch {tmp_path}/ready-$me; '
    run = _local(tmp_path, body + 'while :; do sleep 0.1; done', '2')
    for name in ('ready-*', 'got-*'):
        while len(list(tmp_path.glob(name))) < 2:
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
    run.communicate(timeout=20)
    assert run.returncode == 137


@pytest.mark.parametrize('arguments', [(), ('0',), ('--config=configs/digits.py', '2')])
def test_local_sh_wants_a_number(arguments):
    done = subprocess.run([LOCAL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: launch/local.sh needs the number of processes first')
