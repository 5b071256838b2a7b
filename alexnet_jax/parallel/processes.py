"""Several processes that are one run: how they find each other, agree, and end together.

Every process runs the same command and sees the same global arrays. Process 0 decides what must be
decided once and writes what must be written once.
"""

import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.parallel.mesh import ParallelConfig
from alexnet_jax.runtime.errors import UserError, first_line

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

DETECTIONS = ('off', 'auto', 'slurm', 'k8s', 'tpu', 'mpi4py')
PEER_LOST = 134  # what a process ends with that jax.distributed aborts
_FAREWELL_S = 3.0  # process 0 leaves last: its end aborts the others before they can say why
_PADDING = 1024  # bytes; a text of another length would be another program to compile
# What a collective says when the other end is gone: Gloo on CPUs, NCCL on GPUs, the service.
_LOST = re.compile(r'gloo|nccl|connection (reset|closed|refused)|socket closed|coordination', re.I)


def check_flags(
    distributed: str, coordinator_address: str, num_processes: int | None, process_id: int | None
) -> None:
    """Raise UserError unless the flags name one way for the processes to find each other."""
    explicit = {
        '--coordinator_address': coordinator_address or None,
        '--num_processes': num_processes,
        '--process_id': process_id,
    }
    given = [name for name, value in explicit.items() if value is not None]
    missing = [name for name, value in explicit.items() if value is None]
    if given and distributed != 'off':
        raise UserError(
            f'--distributed={distributed} finds the processes by itself; leave out {given[0]}, '
            'or --distributed'
        )
    if given and missing:
        raise UserError(f'{given[0]} needs {" and ".join(missing)} as well')
    if not given:
        return
    assert num_processes is not None
    assert process_id is not None
    host, _, port = coordinator_address.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(
            f'--coordinator_address={coordinator_address} is not HOST:PORT; give the host of '
            'process 0 and a free port there, for example --coordinator_address=10.0.0.1:8476'
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id={process_id} must be at least 0 and below '
            f'--num_processes={num_processes}'
        )


def connect(
    config: ParallelConfig,
    *,
    distributed: str,
    coordinator_address: str,
    num_processes: int | None,
    process_id: int | None,
    wait_on_sigterm: bool,
) -> None:
    """Join the other processes, if the flags name any; call it before any use of a device.

    Args:
      config: how long to wait for all of them at the start (`initialization_timeout_s`), for a sign
        of life of each (`heartbeat_timeout_s`) and for the others at the end.
      distributed: 'off', or who knows the processes: a launcher of that name, or with 'auto' the
        one that JAX finds.
      coordinator_address, num_processes, process_id: the processes themselves, in place of that.
      wait_on_sigterm: SIGTERM does not end the process: `reached_preemption_sync_point` tells.

    Raises UserError when the flags contradict each other, no launcher is found or the others cannot
    be joined. Ends the process with `PEER_LOST` when not all come in time.
    """
    check_flags(distributed, coordinator_address, num_processes, process_id)
    if distributed == 'off' and not coordinator_address:
        return
    where = f'at {coordinator_address}' if coordinator_address else f'by {distributed}'
    if coordinator_address and process_id == 0:
        _require_free_port(int(coordinator_address.rpartition(':')[2]))
    jax.config.update('jax_enable_preemption_service', wait_on_sigterm)
    limit_s = config.initialization_timeout_s
    _logger.info('waiting for all processes %s, %d s at most', where, limit_s)
    try:
        with (
            _without_proxies(),
            _silent('jax._src.clusters.cluster'),
            _deadline(where, limit_s),
        ):
            jax.distributed.initialize(
                coordinator_address or None,
                num_processes,
                process_id,
                cluster_detection_method=_method(distributed),
                initialization_timeout=limit_s,
                heartbeat_timeout_seconds=config.heartbeat_timeout_s,
                shutdown_timeout_seconds=config.shutdown_timeout_s,
            )
    except Exception as error:  # of gRPC, of a launcher's client; JAX has no type for them
        raise UserError(
            f'the processes cannot meet {where} ({first_line(error)}); {_REMEDY[distributed]}'
        ) from error
    devices = [device.process_index for device in jax.devices()]
    counts = [devices.count(process) for process in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f'the processes have {counts} devices; give each the same number, as with '
            '--config.parallel.cpu_devices'
        )
    if jax.process_index() > 0:
        logging.getLogger('alexnet_jax').setLevel(logging.WARNING)


_REMEDY = {
    'off': 'start each with its own --process_id, and 0 on the host of --coordinator_address',
    'auto': 'JAX finds no launcher here; for one process leave the flag out',
    'slurm': 'start them by srun',
    'k8s': "start them in pods of one job, with pip install 'jax[k8s]'",
    'tpu': 'start them on the hosts of a TPU',
    'mpi4py': 'start them by mpirun, with pip install mpi4py',
}


def _method(distributed: str) -> str | None:
    """Return JAX's name of a launcher."""
    if distributed == 'tpu':
        gke = {'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & os.environ.keys()
        return 'gketpu' if gke else 'gcetpu'
    # JAX has no name for Kubernetes, but finds it by itself.
    return {'off': 'deactivate', 'auto': None, 'k8s': None}.get(distributed, distributed)


def _require_free_port(port: int) -> None:
    """Raise UserError when the port is taken: jaxlib 0.10.2 would crash."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f'port {port} of --coordinator_address cannot be opened here ({reason}); '
            'choose another one for all processes'
        ) from error


@contextlib.contextmanager
def _deadline(where: str, limit_s: int) -> Iterator[None]:
    """End this process when what is inside takes longer; JAX would abort without a reason."""

    def end() -> None:
        print(
            f'error: not all processes came {where} in {limit_s} s '
            '(config.parallel.initialization_timeout_s); look at the output of each',
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_LOST)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment: through one the processes would never meet."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if '_proxy' in name.lower()}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def from_first(make: Callable[[], _T]) -> _T:
    """Return in every process what `make` returns in process 0, a JSON value.

    A UserError of process 0 is raised in every process.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {'value': make()}
        except UserError as error:
            answer = {'error': str(error)}
    text = json.dumps(answer).encode()
    length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(_pad(text, length)))[:length])
    if 'error' in answer:
        raise UserError(answer['error'])
    return answer['value']


def same_arrays(tree: _T) -> _T:
    """Return process 0's arrays, of the same shapes in every process, as NumPy arrays."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise UserError in every process, naming the first fact that is not the same in all.

    `facts` is flat and JSON.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(dict(facts)).encode()
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(_pad(text, lengths.max()))
    every = [json.loads(bytes(t)[:n]) for t, n in zip(texts, lengths, strict=True)]
    for process, theirs in enumerate(every):
        for name in {**every[0], **theirs}:
            if every[0].get(name) != theirs.get(name):
                raise UserError(
                    f'the processes disagree: {name} is {theirs.get(name)!r} in process {process} '
                    f'and {every[0].get(name)!r} in process 0; start all of them alike'
                )


def wait_for_all(where: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def whole(array: jax.Array) -> np.ndarray:
    """Return all of an array, also of one that is spread over processes; all call it alike."""
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    return multihost_utils.process_allgather(array, tiled=True) if spread else np.asarray(array)


def end_all(error: BaseException) -> NoReturn:
    """End this process so that the others end too, the reason on standard error.

    A UserError is one line and exit code 2, the loss of another process one line and `PEER_LOST`,
    any other error a traceback and 1. A single process raises that.
    """
    if isinstance(error, UserError):
        print(f'error: {error}', file=sys.stderr)
        leave(2)
    if not jax.distributed.is_initialized():
        raise error
    if is_lost_peer(error):
        line = f'error: another process was lost, its own output says why ({first_line(error)})'
        print(line, file=sys.stderr)
        leave(PEER_LOST)
    traceback.print_exception(error)
    leave(1)


def is_lost_peer(error: BaseException) -> bool:
    """Say whether an error is that of a collective or a barrier whose other end is gone."""
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return jax.distributed.is_initialized() and of_runtime and bool(_LOST.search(str(error)))


def leave(code: int) -> NoReturn:
    """End this process, of several without waiting for the others."""
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    end_now(code)


def end_now(code: int) -> NoReturn:
    """End this process from any thread, whatever the others do; of several, process 0 last."""
    if jax.distributed.is_initialized() and jax.process_index() == 0:
        time.sleep(_FAREWELL_S)
    os._exit(code)


def _pad(text: bytes, length: int) -> np.ndarray:
    """Return the text as uint8, in whole multiples of the padding that hold `length`."""
    padded = np.zeros(-(-int(length) // _PADDING) * _PADDING, np.uint8)
    padded[: len(text[: len(padded)])] = np.frombuffer(text[: len(padded)], np.uint8)
    return padded
