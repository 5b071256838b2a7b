"""What a command does before its imports, which take seconds: signals and JAX's own variables.

This module imports nothing of weight, so that it takes effect at once.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from alexnet_jax.runtime.errors import print_error

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_end: Callable[[int], object] = os._exit
_left_to_program = 0  # so many signals do not end the process at once


def prepare_process() -> None:
    """Let signals end this process at once and quietly, and import JAX.

    A mistake in a variable of JAX or XLA is one line and exit code 2.
    """
    _end_on_signals()
    _check_xla_flags()
    try:
        import jax  # noqa: F401
    except ValueError as error:  # JAX reads its variables, such as JAX_NUM_CPU_DEVICES, here
        print_error(f'a variable of the environment is wrong: {error}; correct or unset it')
        sys.exit(2)


def _check_xla_flags() -> None:
    """End with one line where XLA refuses a flag in XLA_FLAGS; XLA would end with exit code 1.

    Another process tries them, which takes half a second; without XLA_FLAGS nothing is done.
    """
    if not os.environ.get('XLA_FLAGS'):
        return
    read_them = [sys.executable, '-c', 'from jaxlib import _jax; _jax.CompileOptions()']
    done = subprocess.run(read_them, capture_output=True, text=True, check=False)
    last = done.stderr.strip().rpartition('\n')[2]
    if done.returncode and 'XLA_FLAGS' in last:  # any other error is not about the flags
        reason = last.partition('] ')[2]
        print_error(f'XLA refuses the environment: {reason}; correct or unset XLA_FLAGS')
        sys.exit(2)


def _end_on_signals() -> None:
    """End the process on Ctrl-C and SIGTERM with exit code 130 and 143, even within an import.

    A handler in Python would wait until the compiler of XLA returns, and KeyboardInterrupt prints a
    traceback. So the signals are taken from a pipe by a thread.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)

    def wait() -> None:
        global _left_to_program
        while True:
            number = os.read(read, 1)[0]
            if number in _SIGNALS and _left_to_program:
                _left_to_program -= 1
            elif number in _SIGNALS:
                _end(128 + number)

    threading.Thread(target=wait, name='signals', daemon=True).start()


def leave_to_program(count: int) -> None:
    """Let the program handle so many signals itself; the next one still ends it at once."""
    global _left_to_program
    _left_to_program = count


def end_with(end: Callable[[int], object]) -> None:
    """Let `end(exit_code)` end the process on a signal, instead of os._exit."""
    global _end
    _end = end
