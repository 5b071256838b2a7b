"""Log a run to Weights & Biases, without ever stopping or slowing it."""

import dataclasses
import json
import logging
import os
import pathlib
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import Section
from alexnet_jax.runtime.errors import escaped

_logger = logging.getLogger(__name__)
_PROGRAM = pathlib.Path(__file__).with_name('wandb_process.py')
_ROWS = 10_000  # that may wait; some megabytes
_INIT_S = 90.0  # for W&B to answer; the default of wandb
_CLOSE_S = 30.0  # that the end of a run may be delayed
_STOP_S = 10.0  # the same for a run that a signal has stopped: the next signal may be SIGKILL
_SPARE_S = 5.0  # of _CLOSE_S, after W&B was told to give up


class WandbLog:
    """Logs the rows of a run to a project of Weights & Biases, in another thread and process.

    The thread starts `runtime/wandb_process.py` and hands it the rows. A failure is one warning,
    and the rows after it are not logged. A run has one id, which is kept in WORKDIR/wandb_id: a
    resumed run continues the same run of W&B.
    """

    def __init__(self, workdir: epath.Path, project: str, config: Section) -> None:
        """Take the whole configuration; paths of this machine are not sent."""
        self._workdir = workdir
        self._project = project
        self._config = _without_paths(config)
        self._messages: queue.Queue[dict[str, Any] | int] = queue.Queue(_ROWS)
        self._dropped = 0
        self._child: subprocess.Popen[str] | None = None
        self._warn = threading.Lock()  # held from the first warning on
        self._thread = threading.Thread(target=self._run, name='wandb', daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Queue a row; while the queue is full, rows are dropped and counted."""
        if not self._thread.is_alive():  # it has warned
            return
        try:
            self._messages.put_nowait(dict(row))
        except queue.Full:
            self._dropped += 1

    def close(self, exit_code: int, *, stopped: bool = False) -> None:
        """Wait until W&B has all rows, but not longer than 30 s, or 10 s if a signal stopped it."""
        wait_s = _STOP_S if stopped else _CLOSE_S
        until = time.monotonic() + wait_s
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._messages.put(exit_code, timeout=0.1)
                break
            except queue.Full:
                pass
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(
                f'it had not finished {wait_s:g} s after the end of the run; '
                f'`wandb sync` may upload what is in {self._workdir / "wandb"}'
            )
            if self._child:
                self._child.kill()
                self._thread.join(1.0)
        elif self._dropped and not self._warn.locked():
            _logger.warning(
                'W&B lacks %d rows, which came faster than it took them; metrics.jsonl has them',
                self._dropped,
            )

    def _give_up(self, why: str) -> None:
        """Warn, unless there was a warning before."""
        if self._warn.acquire(blocking=False):
            _logger.warning('W&B is given up: %s', escaped(why))

    def _run(self) -> None:
        """Start the other process, hand it the rows, and wait for its end."""
        try:
            problem = self._log()
        except Exception as error:  # of the file system, or of starting a process
            problem = str(error)
        if problem:
            self._give_up(problem.strip().partition('\n')[0])

    def _log(self) -> str:
        """Return what went wrong, or ''."""
        start = {
            'project': self._project,
            'id': _run_id(self._workdir / 'wandb_id'),
            'name': pathlib.Path(os.path.abspath(self._workdir)).name,
            'workdir': os.path.abspath(self._workdir),
            'config': self._config,
            'init_s': _INIT_S,
            'finish_s': _CLOSE_S - _SPARE_S,
        }
        self._child = subprocess.Popen(
            [sys.executable, '-P', _PROGRAM],  # -P: without the folder of the program in sys.path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # W&B would report its own errors elsewhere
            env={'WANDB_ERROR_REPORTING': 'false', **os.environ},
            start_new_session=True,  # Ctrl-C is for the training
            encoding='utf-8',
        )
        assert self._child.stdin
        message: Any = start
        try:
            while True:
                self._child.stdin.write(json.dumps(message) + '\n')
                self._child.stdin.flush()
                if isinstance(message, int):
                    break
                message = self._messages.get()
        except BrokenPipeError:
            pass  # it has failed, and says why
        problem, _ = self._child.communicate()
        code = self._child.returncode
        return problem or (f'its process ended with exit code {code}' if code else '')


def _without_paths(section: Section) -> dict[str, Any]:
    """Return the nested fields of a section without those that are paths."""
    kept: dict[str, Any] = {}
    for declared in dataclasses.fields(section):
        value = getattr(section, declared.name)
        if isinstance(value, Section):
            kept[declared.name] = _without_paths(value)
        elif declared.metadata['rule'] not in (storage.path_field, storage.paths_field):
            kept[declared.name] = value
    return kept


def _run_id(path: epath.Path) -> str:
    """Return the id of the run, which is made once."""
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    made = secrets.token_hex(4)
    storage.replace(path, f'{made}\n'.encode())
    return made
