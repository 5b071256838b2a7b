"""One holder of a file at a time; the kernel lets go of it however its holder ends."""

import fcntl
import logging
import math
import time
from typing import IO

_logger = logging.getLogger(__name__)
_POLL_S = 0.1


def hold(file: IO[str], wait_s: float = math.inf) -> bool:
    """Lock an open file until it is closed; False if another has it for `wait_s` from now on.

    Where the file system has no locks (Lustre without -o flock, NFS without lockd), a warning says
    so, and the answer is True.
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
            _logger.warning('no file locks (%s): let one run only use %s', error, file.name)
            return True
