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
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from alexnet_jax.parallel import processes
from alexnet_jax.runtime import beginning, locks, storage
from alexnet_jax.runtime.errors import UserError, print_error

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
        owner = {
            'pid': os.getpid(),
            'host': socket.gethostname(),
            'since': datetime.datetime.now().isoformat(timespec='seconds'),
        }
        with storage.writing(f'LOCK to {workdir}'):
            file.truncate(0)
            os.write(file.fileno(), json.dumps(owner).encode())  # a buffer would fail again
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
        beginning.leave_to_program(1)  # until now the first signal ended the process at once
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        beginning.leave_to_program(0)

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
_LAST_WORDS_S = 10.0  # to write the stacks in, because the file system may hang, too
_OTHERS_S = 5.0  # to wait: once this process ends, the others can no longer write their stacks


class Watchdog:
    """Ends the process with exit code 75 when an operation takes longer than its limit.

    It counts its own ticks instead of reading a clock, so that no time passes while the process is
    stopped (SIGSTOP) or the machine is asleep. It writes the stacks of all threads to
    WORKDIR/hang-N.txt, where N is the number of the process, or to standard error as long as no
    workdir is known or if that file cannot be written.
    """

    def __init__(self, limit_s: float, slow_limit_s: float, first_step_file: str = '') -> None:
        """Take the limits of a step and of a slow operation in seconds; 0 means no limit.

        `first_step_file` is made after the first training step.
        """
        self._limits = {
            False: (limit_s, 'config.training.watchdog_s'),
            True: (slow_limit_s, 'config.training.watchdog_slow_s'),
        }
        self._first_step_file = first_step_file
        self._stacks: epath.Path | None = None
        self._ended = threading.Event()
        self.expect('the start', slow=True)

    def __enter__(self) -> 'Watchdog':
        global _watchdog
        _watchdog = self
        if any(limit_s > 0 for limit_s, _ in self._limits.values()):
            threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        global _watchdog
        _watchdog = None
        self._ended.set()

    def expect(self, what: str, slow: bool = False) -> None:
        """Begin to time the operation `what`."""
        self._expected = (what, *self._limits[slow])

    def use_workdir(self, workdir: epath.Path) -> None:
        """Write the stacks into this directory, which exists."""
        self._stacks = workdir / f'hang-{jax.process_index()}.txt'

    def note_step(self) -> None:
        """Make the file that says that this start of the run has done a step."""
        file, self._first_step_file = self._first_step_file, ''
        if file:
            try:
                open(file, 'w').close()
            except OSError as error:
                _logger.warning('cannot write --first_step_file=%s (%s)', file, error)

    def _watch(self) -> None:
        tick_s = min(1.0, *(s / 10 for s, _ in self._limits.values() if s > 0))
        seen, waited_s = self._expected, 0.0
        while not self._ended.wait(tick_s):
            waited_s = waited_s + tick_s if self._expected is seen else 0.0
            seen = self._expected
            if waited_s >= seen[1] > 0:
                self._end(*seen)

    def _end(self, what: str, limit_s: float, field: str) -> None:
        """Write the stacks and end the process, even if the file system or the output hangs."""
        kept = self._stacks is not None and _in_time(self._keep_stacks)
        where = f'are in {self._stacks}' if kept else 'follow'

        def last_words() -> None:
            print_error(f'{what} took longer than {limit_s:g} s ({field}); the stacks {where}')
            if not kept:
                faulthandler.dump_traceback(all_threads=True)

        _in_time(last_words)
        if jax.distributed.is_initialized():
            time.sleep(_OTHERS_S)
        processes.end_now(_HUNG)

    def _keep_stacks(self) -> None:
        assert self._stacks is not None
        with open(self._stacks, 'w') as file:
            faulthandler.dump_traceback(file, all_threads=True)


_watchdog: Watchdog | None = None  # that of this process


def expect(what: str, slow: bool = False) -> None:
    """Begin to time the operation `what`, if the process has a watchdog.

    The limit is `training.watchdog_s`, and `training.watchdog_slow_s` for a slow operation: one
    that compiles, or reads or writes much.
    """
    if _watchdog:
        _watchdog.expect(what, slow)


def use_workdir(workdir: epath.Path) -> None:
    """Let the watchdog, if there is one, write into this directory, which exists."""
    if _watchdog:
        _watchdog.use_workdir(workdir)


def note_step() -> None:
    """Tell the watchdog, if there is one, that a training step is done."""
    if _watchdog:
        _watchdog.note_step()


def _in_time(write: Callable[[], None]) -> bool:
    """Call `write` in a thread, and say whether it has returned before `_LAST_WORDS_S`."""
    written = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            write()
            written.set()

    threading.Thread(target=run, daemon=True).start()
    return written.wait(_LAST_WORDS_S)


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
