"""A real Slurm on this machine, without systemd: munged, slurmctld and slurmd in one directory."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ACTIVE = ('PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING')
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'squeue', 'scancel')
# Debian puts the daemons where only root looks.
PATH = f'{os.environ["PATH"]}:/usr/sbin:/sbin'

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job starts when its old credential has expired: seconds, not the default two minutes.
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=60
# The node may claim processors that the machine has not.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=NO
"""


class Slurm:
    """Commands of the cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {'PATH': PATH, 'SLURM_CONF': str(root / 'slurm.conf')}

    def __call__(self, *command: str, **options) -> str:
        """Run a command of Slurm; return what it prints, without the last line's end."""
        environment = self.environment | options.pop('environment', {})
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, **options
        )
        assert run.returncode == 0, f'{command}: {run.stdout}{run.stderr}\n{self.log()}'
        return run.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """Return one field of a job, such as JobState or Restarts."""
        words = self('scontrol', 'show', 'job', job, '--oneliner').split()
        return next(w.split('=', 1)[1] for w in words if w.startswith(f'{name}='))

    def wait(self, job: str, state: str, timeout_s: float) -> None:
        """Wait until a job is in this state; fail when it ends in another."""
        end = time.monotonic() + timeout_s
        while (now := self.field(job, 'JobState')) != state:
            waiting = now in ACTIVE and time.monotonic() < end
            assert waiting, f'job {job} is {now}\n{self.log()}'
            time.sleep(0.3)

    def log(self) -> str:
        """Return the end of what slurmctld and slurmd have to say, for a failed test."""
        texts = [(self.root / f'{name}.log').read_text() for name in ('slurmctld', 'slurmd')]
        return '\n'.join(line for text in texts for line in text.splitlines()[-15:])


@contextlib.contextmanager
def running(root: Path) -> Iterator[Slurm]:
    """Start the three daemons under `root`, a directory that is not there yet; end them."""
    root.mkdir(mode=0o755)
    for name in ('state', 'spool'):
        (root / name).mkdir()
    (root / 'munge.key').write_bytes(os.urandom(1024))
    (root / 'munge.key').chmod(0o600)
    ctld_port, slurmd_port = _free_ports(2)
    (root / 'slurm.conf').write_text(
        CONFIG.format(
            host=socket.gethostname().split('.')[0],
            user=getpass.getuser(),
            root=root,
            ctld_port=ctld_port,
            slurmd_port=slurmd_port,
        )
    )
    slurm = Slurm(root)
    commands = [
        # --force: the directory of a test may be writable for more people than munged likes.
        ['munged', '--foreground', '--force', f'--key-file={root}/munge.key']
        + [f'--{name}-file={root}/munge.{name}' for name in ('pid', 'seed')]
        + [f'--socket={root}/munge.socket', '--num-threads=1'],
        ['slurmctld', '-D'],
        ['slurmd', '-D'],
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            program = shutil.which(command[0], path=PATH)
            assert program, command
            log = stack.enter_context(open(root / f'{command[0]}.log', 'w'))
            daemon = subprocess.Popen(
                [program, *command[1:]], stdout=log, stderr=log, env=slurm.environment
            )
            stack.callback(_end, daemon)
            if command[0] == 'munged':
                _wait_for(lambda: (root / 'munge.socket').exists(), slurm)
        _wait_for(lambda: _idle(slurm), slurm)
        yield slurm


def _idle(slurm: Slurm) -> bool:
    run = subprocess.run(
        ['sinfo', '--noheader', '--format=%T'],
        capture_output=True,
        text=True,
        env=slurm.environment,
        timeout=60,
    )
    return run.stdout.strip() == 'idle'


def _wait_for(condition, slurm: Slurm) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, slurm.log()
        time.sleep(0.2)


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(('127.0.0.1', 0))
        return [s.getsockname()[1] for s in sockets]
