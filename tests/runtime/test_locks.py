"""The lock of a workdir: one file under all its names, and a disk that is full at the start."""

import contextlib
import resource

import pytest
from etils import epath

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import guard

pytestmark = pytest.mark.fault


def test_two_names_of_one_workdir_are_one_lock(tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (tmp_path / 'link').symlink_to(workdir)
    monkeypatch.chdir(tmp_path)
    names = (tmp_path / 'link', workdir / '..' / 'run', 'run', f'{workdir}//')
    with guard.workdir_lock(epath.Path(workdir), wait_s=0.0):
        for name in names:
            with (
                pytest.raises(UserError, match='is in use by'),
                guard.workdir_lock(epath.Path(name), wait_s=0.0),
            ):
                pass
    for name in names:
        with guard.workdir_lock(epath.Path(name), wait_s=0.0):
            pass


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(UserError) as error:
            stack.enter_context(guard.workdir_lock(epath.Path(tmp_path), wait_s=0.0))
    assert str(error.value) == (
        f'cannot write LOCK to {tmp_path} (File too large); raise the limit on the size of '
        'a file (ulimit -f), then run the same command again'
    )
    with guard.workdir_lock(epath.Path(tmp_path), wait_s=0.0):
        pass
