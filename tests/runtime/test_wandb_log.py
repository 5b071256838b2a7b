"""A run that is also logged to Weights & Biases: what is sent, and what happens when that fails."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from alexnet_jax.runtime import wandb_log
from alexnet_jax.runtime.run_log import LogConfig, RunLog
from alexnet_jax.runtime.wandb_log import WandbLog
from configs import tiny
from tests.local_run import QUICK, ROOT, rows
from tests.typed_config import typed

TRAIN = {'train/loss': 2.5, 'train/top1_error': 0.75, 'train/learning_rate': 0.01}


def _config(**changes):
    config = tiny.get_config()
    config.update_from_flattened_dict({'data.dir': '/home/me/data', **changes})
    return typed(config)


def _open(workdir, start_step=0, **changes) -> RunLog:
    workdir.mkdir(exist_ok=True)
    section = LogConfig(
        tensorboard=False, progress_bar=False, profile_steps=(0, 0), wandb_project='demo'
    )
    return RunLog(
        epath.Path(workdir),
        section,
        start_step=start_step,
        total_steps=10,
        described=_config(**changes),
    )


def _log(workdir, steps=range(1, 4), **changes):
    """Log some steps, and return the seconds that the end took."""
    with _open(workdir, min(steps) - 1, **changes) as log:
        log.event(min(steps) - 1, 0.0, 'started')
        for step in steps:
            log.train(step, 0.5, TRAIN, batch_size=16)
        log.evaluation(max(steps), 0.5, {'eval/top1_error': 0.25})
        began = time.monotonic()
    return time.monotonic() - began


def _warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


def _records(path: Path):
    """Read a file of wandb: blocks of 32 KiB with records (checksum, length, kind, bytes)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from('<IHB', data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b''


def _sent(workdir) -> list[tuple[str, dict, list[dict]]]:
    """Return the id, the configuration and the history of each start."""
    starts = []
    for path in sorted((workdir / 'wandb').glob('offline-run-*/run-*.wandb')):
        ids, config, history = set(), {}, []
        for record in _records(path):
            if record.HasField('run'):
                ids.add(record.run.run_id)
                config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif record.HasField('history'):
                items = record.history.item
                history.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
        assert len(ids) == 1
        starts.append((ids.pop(), config, history))
    return starts


@pytest.mark.slow
def test_a_resumed_run_continues_the_run_with_its_rows_and_its_configuration(
    tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    _log(tmp_path)
    time.sleep(1.1)  # wandb names a start by the second
    _log(tmp_path, range(3, 6), **{'optim.learning_rate': 0.5})
    (first_id, first, history), (second_id, second, later) = _sent(tmp_path)
    assert first_id == second_id == (tmp_path / 'wandb_id').read_text().strip()
    assert [
        (row['step'], row.get('train/loss'), row.get('eval/top1_error')) for row in history
    ] == [
        (1, 2.5, None),
        (2, 2.5, None),
        (3, 2.5, None),
        (3, None, 0.25),
    ]
    assert [row['step'] for row in later] == [3, 4, 5, 5]
    assert all('event' not in row and 'kind' not in row for row in history + later)
    wanted = json.loads(json.dumps(_config().to_dict()))
    assert first['model'] == wanted['model']
    assert first['optim'] == wanted['optim']
    assert second['optim'] == wanted['optim'] | {'learning_rate': 0.5}
    assert set(wanted['data']) - set(first['data']) == {'dir'}
    for path in (tmp_path / 'wandb').glob('*/run-*.wandb'):
        data = path.read_bytes()
        for private in ('/home/me', str(tmp_path), os.uname().nodename, str(ROOT)):
            assert private.encode() not in data
    assert not _warnings(caplog)
    assert capfd.readouterr() == ('', '')
    assert [row['step'] for row in rows(tmp_path)] == [0, 1, 2, 2, 3, 4, 5, 5]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that puts a module in the place of wandb."""

    def put(init='', log='', finish='', top=''):
        folder = tmp_path / 'fake'
        folder.mkdir()
        (folder / 'wandb.py').write_text(
            f"""
import sys, time
{top or 'pass'}
print('a word'); print('a word', file=sys.stderr)
class Settings:
    def __init__(self, **settings): pass
class Run:
    def define_metric(self, *names, **options): pass
    def log(self, row):
        print('a word')
        {log or 'pass'}
    def finish(self, exit_code):
        {finish or 'pass'}
def init(**options):
    {init or 'pass'}
    return Run()
"""
        )
        monkeypatch.setenv('PYTHONPATH', str(folder))

    return put


FAIL = "raise RuntimeError('no network\\nand more')"
HANG = 'time.sleep(1000)'


@pytest.mark.fault
@pytest.mark.parametrize(
    ('broken', 'words'),
    [
        ({'init': FAIL}, 'no network'),
        ({'log': FAIL}, 'no network'),
        ({'finish': FAIL}, 'no network'),
        ({'init': "sys.exit('no login')"}, 'no login'),
        ({'init': 'raise KeyboardInterrupt'}, 'KeyboardInterrupt'),
        ({'log': 'import os; os.kill(os.getpid(), 9)'}, 'its process ended with exit code -9'),
        (
            {'top': "raise ModuleNotFoundError('no', name='wandb')"},
            'wandb is not installed; pip install "alexnet_jax[wandb]"',
        ),
    ],
    ids=['init', 'log', 'finish', 'exit', 'interrupt', 'killed', 'not installed'],
)
def test_a_failure_is_one_warning(tmp_path, fake, caplog, capfd, broken, words):
    fake(**broken)
    took_s = _log(tmp_path / 'run')
    assert _warnings(caplog) == [f'W&B is given up: {words}']
    assert took_s < 10
    assert [row['step'] for row in rows(tmp_path / 'run')] == [0, 1, 2, 3, 3]
    assert capfd.readouterr() == ('', '')


@pytest.mark.fault
@pytest.mark.parametrize('hangs', ['top', 'init', 'log', 'finish'])
def test_what_hangs_delays_the_end_by_the_stated_time_only(
    tmp_path, fake, monkeypatch, caplog, hangs
):
    monkeypatch.setattr(wandb_log, '_CLOSE_S', 2.0)
    fake(**{hangs: HANG})
    with _open(tmp_path / 'run') as log:
        began = time.monotonic()
        for step in range(1, 101):
            log.train(step, 0.5, TRAIN, batch_size=16)
        assert time.monotonic() - began < 2
        began = time.monotonic()
    assert 1.5 < time.monotonic() - began < 5
    (warning,) = _warnings(caplog)
    assert warning.startswith('W&B is given up: it had not finished 2 s after the end of the run')
    assert log._wandb._child.poll() is not None
    assert len(rows(tmp_path / 'run')) == 100


@pytest.mark.fault
def test_a_run_that_a_signal_has_stopped_waits_less(tmp_path, fake, monkeypatch, caplog):
    monkeypatch.setattr(wandb_log, '_STOP_S', 1.0)
    fake(init=HANG)
    with _open(tmp_path / 'run') as log:
        log.event(1, 0.5, 'stopped', signal=15)
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert 'it had not finished 1 s after the end' in _warnings(caplog)[0]


@pytest.mark.fault
def test_a_full_queue_drops_rows_and_counts_them(tmp_path, fake, monkeypatch, caplog):
    monkeypatch.setattr(wandb_log, '_ROWS', 5)
    go, heard = tmp_path / 'go', tmp_path / 'heard'
    fake(
        init=f'import pathlib\n    while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)',
        log=f"open({str(heard)!r}, 'a').write(str(row['step']) + chr(10))",
    )
    log = WandbLog(epath.Path(tmp_path), 'demo', _config())
    long = 'x' * 300_000  # more than a pipe holds
    for step in range(100):
        log.write({'step': step, 'long': long})
    time.sleep(0.5)  # the thread waits for the pipe now
    for step in range(100, 200):
        log.write({'step': step, 'long': long})
    go.touch()
    log.close(0)
    came = len(heard.read_text().splitlines())
    assert 5 <= came <= 12
    assert _warnings(caplog) == [
        f'W&B lacks {200 - came} rows, which came faster than it took them; metrics.jsonl has them'
    ]


@pytest.mark.fault
def test_an_id_that_cannot_be_written_is_one_warning(tmp_path, fake, caplog):
    fake()
    (tmp_path / 'wandb_id').mkdir()
    _log(tmp_path)
    (warning,) = _warnings(caplog)
    assert 'wandb_id' in warning


def _train(tmp_path, data_dir, *arguments, **env):
    command = [sys.executable, '-m', 'alexnet_jax.main', '--config=configs/tiny.py']
    command += [f'--workdir={tmp_path}', f'--data_dir={data_dir}', '--config.log.tensorboard=false']
    command += ['--config.log.wandb_project=demo', *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | QUICK | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_as_without_it(tmp_path, number, code):
    """The signal goes to the process of W&B, too, as from a scheduler."""
    workdir, steps = tmp_path / 'run', '--config.training.total_steps=100000'
    run = _train(workdir, tmp_path, steps, WANDB_MODE='offline')
    while not any(row['kind'] == 'train' and row['step'] > 20 for row in rows(workdir)):
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    children = subprocess.run(['pgrep', '-P', str(run.pid)], capture_output=True, text=True)
    for pid in (run.pid, *map(int, children.stdout.split())):
        os.kill(pid, number)
    output, _ = run.communicate(timeout=100)
    assert run.returncode == code
    assert 'W&B' not in output
    (_, _, history), *_ = _sent(workdir)
    logged = [row['step'] for row in rows(workdir) if row['kind'] == 'train']
    assert [row['step'] for row in history if 'train/loss' in row] == logged
