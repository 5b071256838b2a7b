"""Keep a run safe: lock its workdir, stop on signals, end a hang, and refuse non-finite states."""

import contextlib
import datetime
import faulthandler
import json
import logging
import math
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from alexnet_jax.parallel import processes
from alexnet_jax.runtime import locks
from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)
_LOCK_WAIT_S = 120.0  # a job may restart while the process before it is still saving


@contextlib.contextmanager
def workdir_lock(workdir: epath.Path, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
    """Hold WORKDIR/LOCK for this run; process 0 holds it on behalf of all processes.

    Raises UserError, naming the owner, when another run keeps the lock for `wait_s`, and when some
    process does not see the lock: all processes must share one workdir.
    """
    with contextlib.ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(_lock(workdir, wait_s)))
        lock = workdir / 'LOCK'
        processes.require_same({'--workdir/LOCK': lock.read_text() if lock.exists() else 'absent'})
        yield


@contextlib.contextmanager
def _lock(workdir: epath.Path, wait_s: float) -> Iterator[None]:
    """Lock the file for this process, and write the process and its host into the file."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / 'LOCK', 'a+')  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f'cannot write to {workdir} ({error.strerror or error}); choose another --workdir'
        ) from error
    with file:
        if not locks.hold(file, 0.0):
            _logger.warning('%s is in use by %s; waiting %g s', workdir, _owner(file), wait_s)
            if not locks.hold(file, wait_s):
                raise _in_use(workdir, _owner(file))
        file.truncate(0)
        owner = {
            'pid': os.getpid(),
            'host': socket.gethostname(),
            'since': datetime.datetime.now().isoformat(timespec='seconds'),
        }
        file.write(json.dumps(owner))
        file.flush()
        os.fsync(file.fileno())  # so that other machines see it
        yield


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or 'another process'


def _in_use(workdir: epath.Path, owner: str) -> UserError:
    remedy = 'wait for it to end or choose another --workdir'
    if f'"host": "{socket.gethostname()}"' not in owner:  # NFS may keep a lost machine's lock
        remedy += f'; if you know that that run has ended, rm {shlex.quote(str(workdir / "LOCK"))}'
    return UserError(f'{workdir} is in use by {owner}; {remedy}')


class StopSignal:
    """Records SIGTERM and SIGINT so that the loop can save and stop; a second signal ends at once.

    With several processes, all stop at the same step when any of them gets a signal. SIGTERM is
    then handled by jax.distributed, which tells the other processes, so a second SIGTERM has no
    effect.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal to stop for, once all processes have agreed to stop
        self._noted = 0  # the signal that this process has received
        self._checks = 0
        self._alone = jax.process_count() == 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> 'StopSignal':
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._noted:
            os._exit(128 + number)
        self._noted = number
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)

    def due(self) -> bool:
        """Say whether to stop now; all processes must ask equally often and get the same answer."""
        self._checks += 1
        if self._alone:
            self.received = self._noted
        elif multihost_utils.reached_preemption_sync_point(self._checks):
            self.received = self._noted or signal.SIGTERM
        return self.received > 0

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.received


_HUNG = 75  # exit code
_PATIENCE = 10  # how many times longer a slow operation may take
_LAST_WORDS_S = 10.0  # to write the stacks in, because the file system may hang, too
_OTHERS_S = 5.0  # to wait: once this process ends, the others can no longer write their stacks


class Watchdog:
    """Ends the run with exit code 75 when an operation takes longer than `limit_s`; 0: never.

    It counts its own ticks instead of reading a clock, so that no time passes while the process is
    stopped (SIGSTOP) or the machine is asleep. It writes the stacks of all threads to
    WORKDIR/hang-N.txt, where N is the number of the process.
    """

    def __init__(self, workdir: epath.Path, limit_s: float) -> None:
        self._path = workdir / f'hang-{jax.process_index()}.txt'
        self._limit_s = limit_s
        self._alone = jax.process_count() == 1
        self._ended = threading.Event()
        self.expect('the start', slow=True)

    def __enter__(self) -> 'Watchdog':
        if self._limit_s > 0:
            threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def expect(self, what: str, slow: bool = False) -> None:
        """Begin to time the operation `what`; a slow one may take ten times as long as others."""
        self._expected = (what, self._limit_s * (_PATIENCE if slow else 1))

    def _watch(self) -> None:
        tick_s = min(1.0, self._limit_s / 10)
        seen, waited_s = self._expected, 0.0
        while not self._ended.wait(tick_s):
            waited_s = waited_s + tick_s if self._expected is seen else 0.0
            seen = self._expected
            if waited_s >= seen[1]:
                self._end(*seen)

    def _end(self, what: str, limit_s: float) -> None:
        """Write the stacks and end the process, even if the file system hangs."""

        def last_words() -> None:
            with open(self._path, 'w') as file:
                faulthandler.dump_traceback(file, all_threads=True)
            _logger.error(
                '%s took longer than %g s (config.training.watchdog_s); the stacks are in %s',
                what,
                limit_s,
                self._path,
            )

        writer = threading.Thread(target=last_words, daemon=True)
        writer.start()
        writer.join(_LAST_WORDS_S)
        if not self._alone:
            time.sleep(_OTHERS_S)
        processes.end_now(_HUNG)


_LOWER_THE_RATE = (
    'no checkpoint was saved after that; lower --config.optim.learning_rate and run the same '
    'command, which continues from the last checkpoint, or choose another --workdir'
)


def require_finite_loss(step: int, loss: float, where: str) -> None:
    """Raise UserError when a loss is not finite; `where` says which one, as 'in the evaluation'."""
    if not math.isfinite(loss):
        raise UserError(f'the loss is {loss} {where} at step {step}; {_LOWER_THE_RATE}')


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def require_finite_parameters(step: int, params: Any) -> None:
    """Raise UserError when a parameter is not finite, so that no such state is saved."""
    if not _all_finite(params):
        raise UserError(f'a parameter is not finite after step {step}; {_LOWER_THE_RATE}')
