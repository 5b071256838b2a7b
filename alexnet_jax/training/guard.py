"""What keeps a run safe: one writer a workdir, an orderly end on a signal, no bad state saved."""

import contextlib
import datetime
import fcntl
import json
import math
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from alexnet_jax.config import UserError


@contextlib.contextmanager
def workdir_lock(workdir: epath.Path) -> Iterator[None]:
    """Hold WORKDIR/LOCK; raise UserError, naming the owner, when another process holds it.

    The kernel drops the lock when its owner ends, however it ends.
    """
    if '://' in str(workdir):
        raise UserError(f'--workdir={workdir} is not a local directory; only those were tried')
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / 'LOCK', 'a+')  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f'cannot write to {workdir} ({error.strerror or error}); choose another --workdir'
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f'{workdir} is in use by {file.read().strip() or "another process"}; '
                'wait for it to end or choose another --workdir'
            ) from error
        file.truncate(0)
        owner = {
            'pid': os.getpid(),
            'host': socket.gethostname(),
            'since': datetime.datetime.now().isoformat(timespec='seconds'),
        }
        file.write(json.dumps(owner))
        file.flush()
        yield


class StopSignal:
    """Notes SIGTERM and SIGINT so that the loop can save and end; a second one ends at once."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> 'StopSignal':
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.received


_LOWER_THE_RATE = (
    'nothing was saved from there on; lower --config.optim.learning_rate and run the same command, '
    'which goes on from the last checkpoint, or choose another --workdir'
)


def require_finite_loss(step: int, loss: float, where: str) -> None:
    """Raise UserError when the loss `where` (in training, in the evaluation) is not a number."""
    if not math.isfinite(loss):
        raise UserError(f'the loss is {loss} {where} at step {step}; {_LOWER_THE_RATE}')


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def require_finite_parameters(step: int, params: Any) -> None:
    """Raise UserError when a parameter is not finite, so that it is not saved."""
    if not _all_finite(params):
        raise UserError(f'a parameter is not finite after step {step}; {_LOWER_THE_RATE}')
