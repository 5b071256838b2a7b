"""Run several processes as one: how they find each other, agree, and end together.

Every process runs the same command and sees the same global arrays. Process 0 makes the decisions
and writes the files for all of them.
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

from alexnet_jax.parallel import mesh
from alexnet_jax.parallel.mesh import ParallelConfig
from alexnet_jax.runtime.errors import UserError, first_line, print_error, user_error

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

DETECTIONS = ('off', 'auto', 'slurm', 'k8s', 'tpu', 'mpi4py')
PEER_LOST = 134  # exit code of a process that jax.distributed aborts
_FAREWELL_S = 3.0  # process 0 ends last, because its end aborts the others before they report
_PADDING = 1024  # bytes; texts are padded, because each array length needs its own compilation
_NEWS_S = 10.0  # Gloo gives up on some collectives when a process is 30 s late
# What Gloo, NCCL, gRPC and JAX's coordinator say of a process that is gone.
_LOST = re.compile(
    r'connection (was )?(reset|closed|refused|aborted)|broken pipe|socket closed'
    r'|remote process exited|heartbeat timeout|stopped sending heartbeats'
    r'|another task died|task .*(crashed|disconnected|unhealthy)|tasks? (has|have) crashed'
    r'|failed to send rpc to coordination service',
    re.IGNORECASE,
)
# A mistake or a fault of this process, whatever else the message mentions: NCCL appends its last
# warning, "which may be unrelated".
_OWN_FAULT = re.compile(
    r'unhandled cuda error|invalid (usage|argument)|internal error|out of memory'
    r'|unable to load nccl|version mismatch|RESOURCE_EXHAUSTED|INVALID_ARGUMENT',
    re.IGNORECASE,
)

_first_of_several = False  # whether this is process 0 and there are others


def check_flags(
    distributed: str, coordinator_address: str, num_processes: int | None, process_id: int | None
) -> None:
    """Raise UserError unless the flags give one complete way to find the other processes."""
    explicit = {
        '--coordinator_address': coordinator_address or None,
        '--num_processes': num_processes,
        '--process_id': process_id,
    }
    given = [name for name, value in explicit.items() if value is not None]
    missing = [name for name, value in explicit.items() if value is None]
    if given and distributed != 'off':
        raise UserError(
            f'--distributed={distributed} finds the processes by itself; leave out either '
            f'{given[0]} or --distributed'
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
    """Connect to the other processes, if the flags ask for it; call this before using a device.

    Args:
      config: how long to wait for all processes at the start (`initialization_timeout_s`), for a
        heartbeat of each (`heartbeat_timeout_s`), and for the others at the end.
      distributed: the launcher that knows the processes, 'auto' for the one that JAX finds, or
        'off'.
      coordinator_address, num_processes, process_id: the processes themselves, without a launcher.
      wait_on_sigterm: SIGTERM does not end the process; `reached_preemption_sync_point` reports it.

    Raises UserError if the flags contradict each other, no launcher is found or the connection
    fails. Ends the process with `PEER_LOST` if not all processes connect in time.
    """
    check_flags(distributed, coordinator_address, num_processes, process_id)
    if distributed == 'off' and not coordinator_address:
        return
    where = f'at {coordinator_address}' if coordinator_address else f'by {distributed}'
    if coordinator_address and process_id == 0:
        _require_free_port(int(coordinator_address.rpartition(':')[2]))
    jax.config.update('jax_enable_preemption_service', wait_on_sigterm)
    limit_s = config.initialization_timeout_s
    _logger.info('waiting for all processes %s for at most %d s', where, limit_s)
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
    except Exception as error:  # of gRPC or a launcher's client, without a common type
        raise UserError(
            f'the processes cannot meet {where} ({first_line(error)}); {_REMEDY[distributed]}'
        ) from error


def start_devices() -> None:
    """Start the devices of this process, and wait until all processes have done so.

    Raises UserError if they cannot be used, or unless every process has the same number of them.
    """
    global _first_of_several
    devices = [device.process_index for device in mesh.start_devices()]
    counts = [devices.count(process) for process in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f'the processes have {counts} devices; give each the same number, for example with '
            '--config.parallel.cpu_devices'
        )
    _first_of_several = jax.process_index() == 0 and jax.process_count() > 1
    if jax.process_index() > 0:
        logging.getLogger('alexnet_jax').setLevel(logging.WARNING)


_REMEDY = {
    'off': 'start each with its own --process_id, and 0 on the host of --coordinator_address',
    'auto': 'JAX finds no launcher here; for one process leave out --distributed',
    'slurm': 'start them with srun',
    'k8s': "start them in pods of one job, after pip install 'jax[k8s]'",
    'tpu': 'start them on the hosts of a TPU',
    'mpi4py': 'start them with mpirun, after pip install mpi4py',
}


def _method(distributed: str) -> str | None:
    """Return JAX's name for a launcher."""
    if distributed == 'tpu':
        gke = {'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & os.environ.keys()
        return 'gketpu' if gke else 'gcetpu'
    # JAX has no name for Kubernetes, but finds it by itself.
    return {'off': 'deactivate', 'auto': None, 'k8s': None}.get(distributed, distributed)


def _require_free_port(port: int) -> None:
    """Raise UserError if the port is in use, where jaxlib 0.10.2 would crash."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(('', port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f'port {port} of --coordinator_address cannot be opened here ({reason}); '
            'choose another port for all processes'
        ) from error


@contextlib.contextmanager
def _deadline(where: str, limit_s: int) -> Iterator[None]:
    """End this process if the body takes longer than `limit_s`; JAX would abort with no reason."""

    def end() -> None:
        print_error(
            f'not all processes connected {where} within {limit_s} s '
            '(config.parallel.initialization_timeout_s); look at the output of each process'
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
    """Hide the environment's proxies, through which the processes would never connect."""
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
    """Call `make` in process 0, and return its result, a JSON value, in every process.

    A UserError raised in process 0 is raised in every process.
    """
    if jax.process_count() == 1:
        return make()
    return json.loads(bytes_from_first(lambda _: json.dumps(make()).encode()))


def bytes_from_first(
    make: Callable[[Callable[[], None]], bytes], note_progress: Callable[[], None] = lambda: None
) -> bytes:
    """Call `make(progress)` in process 0, and return its bytes in every process.

    This may take hours: whenever `make` calls `progress`, `note_progress` is called in process 0
    and, at least every ten seconds, in the processes that wait. A UserError or an error of the
    system in process 0 is raised as a UserError in every process.
    """
    if jax.process_count() == 1:
        return make(note_progress)
    if jax.process_index() > 0:
        while (length := int(multihost_utils.broadcast_one_to_all(np.int32(0)))) == 0:
            note_progress()
        answer = b''
    else:
        answer = _answer_with_news(make, note_progress)
        length = len(answer)
        multihost_utils.broadcast_one_to_all(np.int32(length))
    answer = bytes(multihost_utils.broadcast_one_to_all(_pad(answer, length)))[:length]
    if answer.startswith(_FAILED):
        raise UserError(answer.removeprefix(_FAILED).decode())
    return answer.removeprefix(_DONE)


_DONE, _FAILED = b'd', b'f'  # the first byte of an answer, which is therefore never empty


def _answer_with_news(
    make: Callable[[Callable[[], None]], bytes], note_progress: Callable[[], None]
) -> bytes:
    """Make process 0's answer; a length of 0 tells the others that it is still working."""
    last = time.monotonic()

    def progress() -> None:
        nonlocal last
        note_progress()
        if time.monotonic() - last >= _NEWS_S:
            multihost_utils.broadcast_one_to_all(np.int32(0))
            last = time.monotonic()

    try:
        return _DONE + make(progress)
    except Exception as error:
        if mendable := user_error(error):
            return _FAILED + str(mendable).encode(errors='backslashreplace')
        raise


def same_arrays(tree: _T) -> _T:
    """Return process 0's arrays in every process; their shapes must be the same in all."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise UserError in every process, naming the first fact that is not the same in all.

    `facts` is a flat mapping of JSON values.
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
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def whole(array: jax.Array) -> np.ndarray:
    """Return the whole of an array, even if it is spread over processes; all must call this."""
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    return multihost_utils.process_allgather(array, tiled=True) if spread else np.asarray(array)


def end_all(error: BaseException) -> NoReturn:
    """Print the error and end this process, so that the other processes end, too.

    A UserError and a lack of memory print one line and have exit code 2. The loss of another
    process prints a line with the whole error and has exit code `PEER_LOST`. Any other error prints
    a traceback and has exit code 1, and in a single process it is raised again.
    """
    if isinstance(error, UserError):
        print_error(error)
        leave(2)
    if lack := _lack_of_memory(error):
        print_error(
            f'{lack}; lower config.training.batch_size and config.evaluation.batch_size, or raise '
            'config.training.accumulation_steps or parallel.model'
        )
        leave(2)
    if not jax.distributed.is_initialized():
        raise error
    if is_lost_peer(error):
        print_error(f'another process was lost; its output says why. Seen here: {error}')
        leave(PEER_LOST)
    traceback.print_exception(error)
    leave(1)


def _lack_of_memory(error: BaseException) -> str:
    """Return what memory is lacking, with the figures of the error, or '' for another error."""
    if isinstance(error, MemoryError):
        return f'the memory of this machine is too small ({first_line(error)})'
    full = isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
    if full and re.search('memory|allocat', str(error), re.IGNORECASE):  # and not a full disk
        return f'the memory of the devices is too small ({first_line(error)})'
    return ''


def is_lost_peer(error: BaseException) -> bool:
    """Say whether an error comes from a collective or a barrier because a process was lost."""
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return jax.distributed.is_initialized() and of_runtime and says_lost_peer(str(error))


def says_lost_peer(message: str) -> bool:
    """Say whether an error's message means that another process is gone, and nothing else."""
    return bool(_LOST.search(message)) and not _OWN_FAULT.search(message)


def leave(code: int) -> NoReturn:
    """End this process; if there are several, do not wait for the others."""
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    end_now(code)


def end_now(code: int) -> NoReturn:
    """End this process at once, from any thread; with several processes, process 0 ends last."""
    if _first_of_several:  # jax.process_index() would wait for devices that hang at their start
        time.sleep(_FAREWELL_S)
    os._exit(code)


def _pad(text: bytes, length: int) -> np.ndarray:
    """Return the text as uint8, padded to a multiple of `_PADDING` that holds `length`."""
    padded = np.zeros(-(-int(length) // _PADDING) * _PADDING, np.uint8)
    padded[: len(text[: len(padded)])] = np.frombuffer(text[: len(padded)], np.uint8)
    return padded
