"""Start tiny runs of several processes on this machine, and read what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Compiles in a quarter of the time and runs slower: what these tests run, they run a few times.
QUICK = {'XLA_FLAGS': '--xla_backend_optimization_level=0'}


class Run:
    """`launch/local.sh COUNT ARGUMENTS`, its output in one file; killed where it has not ended."""

    def __init__(
        self,
        count: int,
        workdir: Path,
        data_dir: Path,
        *arguments: str,
        config: str = 'tiny',
        **env: str,
    ):
        self.workdir = workdir
        self._output = workdir.parent / f'{workdir.name}.out'
        command = [
            str(ROOT / 'launch' / 'local.sh'),
            str(count),
            f'--config=configs/{config}.py',
            f'--workdir={workdir}',
            f'--data_dir={data_dir}',
            '--config.log.tensorboard=false',
            *arguments,
        ]
        with self._output.open('w') as file:
            self.process = subprocess.Popen(
                command,
                cwd='/',  # the script changes to the checkout by itself
                env=os.environ | QUICK | {'PYTHON': sys.executable} | env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.began = time.monotonic()

    def __enter__(self) -> 'Run':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for pid in self.pids().values():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self._output.read_text()

    def finish(self, timeout_s: float = 200) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'it does not end:\n{self.output()}') from None

    def pids(self) -> dict[int, int]:
        """Return the pid of each process by its number, of those that run."""
        found = {}
        for entry in Path('/proc').iterdir():
            try:
                words = (entry / 'cmdline').read_text().split('\0') if entry.name.isdigit() else []
            except OSError:  # it has just ended
                continue
            if f'--workdir={self.workdir}' in words and 'alexnet_jax.main' in words:
                number = next(w for w in words if w.startswith('--process_id='))
                found[int(number.partition('=')[2])] = int(entry.name)
        return found

    def wait_for_step(self, step: int, timeout_s: float = 200) -> None:
        """Wait until a training row of this step is written."""
        end = time.monotonic() + timeout_s
        while not any(r['kind'] == 'train' and r['step'] >= step for r in rows(self.workdir)):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, f'it does not get on:\n{self.output()}'
            time.sleep(0.01)


def rows(workdir: Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(workdir: Path) -> dict[int, float]:
    return {row['step']: row['train/loss'] for row in rows(workdir) if row['kind'] == 'train'}
