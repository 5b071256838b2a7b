"""The scripts for TPU VMs, with a gcloud that records and answers, and the host's part for real."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TPU_VM = ROOT / 'launch' / 'tpu_vm'
# Writes each call, arguments and calls apart by ASCII's separators. The answers are the lines of
# the files `vm` (to `describe`) and `hosts` (to `ssh ... state`, hosts apart by commas), one for
# each question; with one line left it stays. CREATE is the exit code of a creation.
GCLOUD = r"""#!/bin/bash
cd "$RECORD"
printf '%s\037' "$@" >>calls
printf '\036' >>calls
next() {
  local line
  line=$(head -n 1 "$1")
  if (($(wc -l <"$1") > 1)); then sed -i 1d "$1"; fi
  echo "$line"
}
case "$4 $*" in
  describe*)
    answer=$(next vm)
    case $answer in
      GONE) echo "ERROR: NOT_FOUND: no such node" >&2; exit 1 ;;
      DOWN) echo "ERROR: no network" >&2; exit 1 ;;
    esac
    echo "$answer" ;;
  ssh*host.sh\ state*)
    answer=$(next hosts)
    [[ $answer == silent ]] && exit 255
    for word in ${answer//,/ }; do echo "SSH: connecting"; echo "state $word"; done ;;
  scp*) cp "$5" copied ;;
  create*) exit "${CREATE:-0}" ;;
esac
"""
VM = {'NAME': 'net', 'ZONE': 'us-central1-a', 'TYPE': 'v5litepod-16'}
RUN = ['--config=configs/alexnet.py', "--workdir=/mnt/it's here"]


@pytest.fixture
def gcloud(tmp_path):
    """Run a script with the recording gcloud; return the process and the calls."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    (programs / 'gcloud').write_text(GCLOUD)
    (programs / 'gcloud').chmod(0o755)

    def run(script: str, *arguments: str, vm: str = 'READY', hosts: str = '0', **environment: str):
        for name, answers in (('vm', vm), ('hosts', hosts)):
            (tmp_path / name).write_text('\n'.join(answers.split()) + '\n')
        process = subprocess.run(
            [TPU_VM / script, *arguments],
            env={'PATH': f'{programs}:{os.environ["PATH"]}', 'RECORD': str(tmp_path)}
            | {'POLL_S': '0'}
            | VM
            | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / 'calls'
        records = calls.read_text().split('\x1e')[:-1] if calls.exists() else []
        return process, [record.split('\x1f')[:-1] for record in records]

    return run


def verbs(calls: list[list[str]]) -> list[str]:
    """Return what each call does: `create`, `delete`, ...; what host.sh is to do for ssh."""
    assert all(call[:3] == ['compute', 'tpus', 'tpu-vm'] for call in calls)
    on_hosts = (re.search(r'host\.sh (\w+)|(uv venv)', ' '.join(call)) for call in calls)
    return [m[1] or 'install' if m else c[3] for m, c in zip(on_hosts, calls, strict=True)]


def test_create(gcloud, tmp_path):
    run, calls = gcloud('create.sh', STARTUP_SCRIPT='mount.sh')
    assert run.returncode == 0, run.stderr
    assert verbs(calls) == ['create', 'scp', 'install']
    assert calls[0][3:] == [
        'create',
        'net',
        '--zone=us-central1-a',
        '--accelerator-type=v5litepod-16',
        '--version=tpu-ubuntu2204-base',
        '--spot',
        '--metadata-from-file=startup-script=mount.sh',
    ]
    assert calls[1][5:] == ['net:alexnet_jax.tar.gz', '--zone=us-central1-a', '--worker=all']
    assert calls[2][4:7] == ['net', '--zone=us-central1-a', '--worker=all']
    with tarfile.open(tmp_path / 'copied') as archive:
        names = set(archive.getnames())
    assert {'alexnet_jax/alexnet_jax/main.py', 'alexnet_jax/configs/alexnet.py'} <= names


def test_create_without_spot(gcloud):
    _, calls = gcloud('create.sh', SPOT='false')
    assert '--spot' not in calls[0]


def test_a_failed_creation_installs_nothing(gcloud):
    run, calls = gcloud('create.sh', CREATE='3')
    assert run.returncode == 3
    assert verbs(calls) == ['create']


@pytest.mark.parametrize('name', list(VM))
def test_a_missing_value_is_named(gcloud, name):
    run, calls = gcloud('create.sh', **{name: ''})
    assert run.returncode != 0
    assert f'{name}: ' in run.stderr
    assert calls == []


def test_run_starts_all_hosts_with_the_arguments_unchanged(gcloud):
    run, [call] = gcloud('run.sh', 'start', *RUN)
    assert run.returncode == 0, run.stderr
    assert call[3:7] == ['ssh', 'net', '--zone=us-central1-a', '--worker=all']
    assert shlex.split(call[7].removeprefix('--command=')) == (
        ['alexnet_jax/launch/tpu_vm/host.sh', 'start', *RUN]
    )


@pytest.mark.parametrize(
    ('vm', 'hosts', 'expected', 'code'),
    [
        # An undisturbed run, from nothing.
        ('GONE READY', 'running,running 0,running 0,0', 'delete create scp install start', 0),
        # The VM is there and nothing runs on it.
        ('CREATING READY', 'none,none running,running 0,0', 'start', 0),
        # Taken away in the middle.
        ('READY PREEMPTED READY', 'running 0,0', 'delete create scp install start', 0),
        # One host lost its peer while the others still run; saved on SIGTERM; watchdog; killed.
        ('READY', 'running,134 running 0,0', 'stop start', 0),
        ('READY', '143,143 0,0', 'stop start', 0),
        ('READY', '134,75 0,0', 'stop start', 0),
        ('READY', '137,0 0,0', 'stop start', 0),
        # A mistake of the user's, in which the others lost their peer.
        ('READY', 'running,running 134,2', '', 2),
        ('READY', '1,134', '', 1),
        ('READY', '0,139', '', 139),
        # No step was done, once all have ended; unless one was taken away or did a step.
        ('READY', 'running,3 3,3', '', 3),
        ('READY', '3,143 0,0', 'stop start', 0),
        ('READY', '3,134 0,0', 'stop start', 0),
        ('READY', '3,2', '', 2),
        # No answer of Google, or none of the hosts for a short time, changes nothing.
        ('DOWN DOWN READY', 'silent silent running 0,0', '', 0),
        ('READY', 'silent silent silent silent 0', 'delete create scp install start', 0),
    ],
)
def test_babysit(gcloud, vm, hosts, expected, code):
    run, calls = gcloud('babysit.sh', *RUN, vm=vm, hosts=hosts, MAX_SILENCE='3')
    assert run.returncode == code, run.stderr
    assert [v for v in verbs(calls) if v not in ('describe', 'state')] == expected.split()
    for call, verb in zip(calls, verbs(calls), strict=True):
        if verb == 'start':
            assert shlex.split(call[-1])[2:] == RUN


def test_babysit_has_a_bound(gcloud):
    run, calls = gcloud('babysit.sh', *RUN, hosts='134', MAX_STARTS='3')
    assert run.returncode == 75
    assert verbs(calls).count('start') == 3
    run, calls = gcloud('babysit.sh', *RUN, vm='GONE', MAX_STARTS='4', CREATE='1')
    assert run.returncode == 75
    assert verbs(calls).count('create') == 4
    assert verbs(calls).count('start') == 3  # of before: none without a VM


@pytest.fixture
def host(tmp_path):
    """Run host.sh for real, in a copy of its place in the checkout."""
    script = tmp_path / 'launch' / 'tpu_vm' / 'host.sh'
    script.parent.mkdir(parents=True)
    shutil.copy(TPU_VM / 'host.sh', script)
    shutil.copy(ROOT / 'launch' / 'task.sh', script.parents[1])
    python = tmp_path / 'python'
    python.write_text(
        '#!/bin/bash\nprintf "%s\\n" "${@:1:$#-1}" "$JAX_PLATFORMS" >arguments\n'
        'did_a_step() { last=${!#}; touch "${last#*=}"; }\neval "$RUN"\n'
    )
    python.chmod(0o755)

    def run(*arguments: str, program: str = 'true') -> str:
        environment = os.environ | {'PYTHON': str(python), 'RUN': program, 'GRACE_S': '3'}
        process = subprocess.run(
            [script, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )
        return process.stdout.strip() or process.stderr.strip()

    def wait(state: str) -> None:
        end = time.monotonic() + 20
        while (now := run('state')) != f'state {state}':
            assert time.monotonic() < end, now
            time.sleep(0.05)

    yield run, wait
    run('stop')


def test_a_host_starts_a_run_and_tells_its_end(host, tmp_path):
    run, wait = host
    wait('none')
    run('start', *RUN, program='echo hello; did_a_step "$@"; exit 75')
    wait('75')
    assert (tmp_path / 'arguments').read_text().splitlines() == (
        ['-m', 'alexnet_jax.main', '--distributed=tpu', *RUN, 'tpu,cpu']
    )
    assert (tmp_path / 'run.log').read_text() == 'hello\n'
    run('start', program='true')
    wait('0')
    run('start', program='exit 75')  # before its first step
    wait('3')


def test_a_host_stops_with_sigterm_and_has_one_run_at_a_time(host):
    run, wait = host
    run('start', program='trap "exit 143" TERM; while true; do sleep 0.1; done')
    wait('running')
    time.sleep(0.3)
    assert run('start') == 'error: a run is already in progress here; stop it first'
    run('stop')
    wait('143')


def test_a_host_kills_what_does_not_stop(host, tmp_path):
    run, wait = host
    run('start', program='exit 2')
    wait('2')
    run('start', program='trap "" TERM; while true; do sleep 0.1; done')
    wait('running')
    time.sleep(0.3)
    run('stop')
    wait('137')
    with pytest.raises(ProcessLookupError):
        os.killpg(int((tmp_path / 'run.pid').read_text()), signal.SIGKILL)
