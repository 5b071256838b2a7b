"""Which errors of the network libraries mean that another process is gone, by real messages."""

import pytest

from alexnet_jax.parallel import processes

_RPC = 'UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was '
_RPC += 'preempted/died/restarted unexpectedly or this task is experiencing network issues.'
LOST = [
    'Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by '
    'peer [127.0.0.1]:28048',
    'UNKNOWN: Gloo ReduceScatter failed: [gloo/tcp/pair.cc:547] Connection closed by peer [::1]:24',
    'INTERNAL: Gloo AllGather failed: readv [10.0.0.2]:4123: Connection reset by peer',
    'FAILED_PRECONDITION: Gloo send failed: writev [10.0.0.2]:4123: Broken pipe',
    'INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or there was a network '
    "error. Last NCCL warning(error) log entry (may be unrelated) 'socketProgress: Connection "
    "closed by remote peer node2<42830>'.",
    'NCCL operation ncclCommInitRank failed: unhandled system error (run with NCCL_DEBUG=INFO for '
    "details). Last NCCL warning(error) log entry (may be unrelated) 'Call to connect returned "
    "Connection refused'.",
    'UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 heartbeat timeout. This indicates that the '
    'remote task has failed, got preempted, or crashed unexpectedly.',
    'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats): '
    '/job:jax_worker/replica:0/task:1',
    _RPC + '\nAdditional GRPC error information: {grpc_message:"Socket closed", grpc_status:14}',
    'UNAVAILABLE: failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:8476: '
    'Failed to connect to remote host: Connection refused',
    'This most likely indicates that another task died; see the other task logs for more details.',
    '/job:jax_worker/replica:0/task:1 unexpectedly tried to connect: Task was disconnected',
]
OWN = [
    'NCCL operation ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled cuda error (run '
    'with NCCL_DEBUG=INFO for details). Last NCCL warning(error) log entry (may be '
    "unrelated) 'Cuda "
    "failure 2 'out of memory''.",
    'NCCL operation ncclAllReduce(...) failed: unhandled cuda error. Last NCCL warning(error) log '
    "entry (may be unrelated) 'socketProgress: Connection closed by remote peer node2<42830>'.",
    'NCCL operation ncclCommInitRank failed: invalid usage (run with NCCL_DEBUG=WARN for details). '
    "Last NCCL warning(error) log entry (may be unrelated) 'Duplicate GPU detected : rank 0 and "
    "rank 1 both on CUDA device 1000'.",
    'NCCL operation ncclCommInitRank failed: internal error - please report this issue to the NCCL '
    "developers. Last NCCL warning(error) log entry (may be unrelated) 'Attribute "
    'busid of node nic '
    "not found'.",
    'NCCL operation ncclCommInitRank failed: unhandled system error (run with NCCL_DEBUG=INFO for '
    "details). Last NCCL warning(error) log entry (may be unrelated) 'Error while creating shared "
    "memory segment /dev/shm/nccl-Zz1 (size 9637888), error: No space left on device (28)'.",
    'NCCL operation ncclGetUniqueId(&id) failed: Unable to load NCCL library. '
    'Multi-GPU collectives '
    'will not work.',
    'NCCL operation ncclAllReduce failed: invalid argument',
    'Mismatched NCCL version detected : rank 0 has 22304 and rank 1 has 22103',
    'UNKNOWN: Gloo ReduceScatter failed: [gloo/transport/tcp/buffer.cc:72] Read timeout [::1]:3862',
    'Gloo all-reduce failed: [gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms '
    'for recv operation to complete',
    '[enforce fail at gloo/allreduce.cc:33] input.nelement() == output.nelement()',
    'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes.',
    'INVALID_ARGUMENT: Mismatched ReplicaGroup size',
    'INTERNAL: CUDA error: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered',
    'the key is not in the key-value store of the coordination service',
    'All arrays must have the same dtype.',
]


@pytest.mark.parametrize('message', LOST)
def test_a_lost_process(message):
    assert processes.says_lost_peer(message)


@pytest.mark.parametrize('message', OWN)
def test_no_lost_process(message):
    assert not processes.says_lost_peer(message)
