"""Lock a file for one process; the kernel releases the lock however that process ends."""

import fcntl
import logging
import math
import time
from typing import IO

_logger = logging.getLogger(__name__)
_POLL_S = 0.1


def hold(file: IO[str], wait_s: float = math.inf) -> bool:
    """Lock an open file until it is closed; return False if it stays locked for `wait_s`.

    On a file system without locks (Lustre without -o flock, NFS without lockd) this logs a warning
    and returns True.
    """
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        except OSError as error:
            _logger.warning(
                'cannot lock files here (%s); make sure that only one run uses %s', error, file.name
            )
            return True
