"""How a command ends: errors of the system in one line, and a standard output of any kind."""

import contextlib
import errno
import io
import os
import pathlib
import signal
import subprocess
import sys

import PIL
import pytest

from alexnet_jax import command_line
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError, print_error, safe_output, user_error

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_errors_of_the_system_are_the_users_and_others_are_bugs(tmp_path):
    with pytest.raises(OSError, match='none') as caught:
        (tmp_path / 'none').read_text()
    line = f'{tmp_path}/none: No such file or directory; mend that, then run the same command again'
    assert str(user_error(caught.value)) == line
    assert str(user_error(OSError(errno.EIO, 'Input/output error'))).startswith('Input/output err')
    error = UserError('as it is')
    assert user_error(error) is error
    for bug in (ValueError('x'), OSError('of a library'), PIL.UnidentifiedImageError('no image')):
        assert user_error(bug) is None


def test_a_write_without_a_name_gets_one():
    match = r'^cannot write /dev/full \(No space left on device\); '
    with (
        pytest.raises(UserError, match=match),
        storage.writing('/dev/full'),
        open('/dev/full', 'w') as file,
    ):
        file.write('x')


def test_an_error_is_one_line_whatever_it_names(capsys):
    print_error('a\nb\r\x85\u2028\x1b[0m \udcff ü')
    assert capsys.readouterr().err == 'error: a\\nb\\r\\x85\\u2028\\x1b[0m \\udcff ü\n'


def stream(path_or_fd, encoding='utf-8'):
    return io.TextIOWrapper(open(path_or_fd, 'wb'), encoding=encoding, errors='strict')


def test_characters_that_the_output_does_not_have_are_escaped(tmp_path):
    with stream(tmp_path / 'out', 'ascii') as out, contextlib.redirect_stdout(out), safe_output():
        print('köö', '\udcff', '日')
    assert (tmp_path / 'out').read_bytes() == b'k\\xf6\\xf6 \\udcff \\u65e5\n'


@pytest.mark.parametrize('size', [1, 100_000])  # less and more than the buffer holds
def test_a_reader_that_has_left_ends_no_work(size):
    ours, theirs = os.pipe()
    os.close(ours)
    done = []
    ended = pytest.raises(SystemExit)
    with stream(theirs) as out, contextlib.redirect_stdout(out), ended as end, safe_output():
        print('x' * size)
        print('y')
        done.append(True)
    assert (end.value.code, done) == (128 + signal.SIGPIPE, [True])


@pytest.mark.parametrize('size', [1, 100_000])
def test_a_full_output_is_said_after_the_work(size, capsys):
    done = []

    def command():
        print('x' * size)
        done.append(True)

    with stream('/dev/full') as out, contextlib.redirect_stdout(out):
        assert command_line.run(command) == 2
    assert done
    assert 'cannot write to standard output (No space left on device)' in capsys.readouterr().err


def test_a_closed_output_is_like_none(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)  # as Python has it after >&-
    monkeypatch.setattr(sys, 'stderr', None)
    assert command_line.run(lambda: print('x')) == 0
    print_error('x')  # finds a stream


@pytest.fixture
def heed_ctrl_c():
    """Let SIGINT interrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_ends_a_command_with_its_code(capsys, heed_ctrl_c):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        assert command_line.run(lambda number=number: signal.raise_signal(number)) == 128 + number
        error = f'error: stopped by {number.name}; to go on, run the same command again\n'
        assert capsys.readouterr().err == error
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


TWO_SIGNALS = """
import signal
from alexnet_jax import command_line

def command():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGTERM)

command_line.run(command)
"""


def test_a_second_signal_ends_a_command_that_cleans_up(heed_ctrl_c):
    done = subprocess.run([sys.executable, '-c', TWO_SIGNALS], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, b'', b'')


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a background job
    try:
        assert command_line.run(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_bug_is_raised():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 / 0)
