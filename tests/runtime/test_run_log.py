"""metrics.jsonl, TensorBoard files and the console line of a run."""

import contextlib
import errno
import json
import struct
import subprocess

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from alexnet_jax.runtime import run_log
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import LogConfig, RunLog

TRAIN = {'train/loss': 2.5, 'train/top1_error': 0.75, 'train/learning_rate': 0.01}


def _open(workdir, start_step=0, **fields) -> RunLog:
    section = {'tensorboard': False, 'progress_bar': False, 'profile_steps': (0, 0), **fields}
    config = LogConfig(**section)
    return RunLog(
        epath.Path(workdir),
        config,
        start_step=start_step,
        total_steps=10,
        described=config,
    )


def _rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_rows_are_flat_and_named(tmp_path):
    with _open(tmp_path) as log:
        log.event(0, 0.0, 'started', mesh='1x2x1')
        log.train(1, 0.5, TRAIN, batch_size=16)
        log.evaluation(1, 0.5, {'eval/top1_error': 0.25})
    event, train, evaluation = _rows(tmp_path)
    assert (
        event.items() >= {'step': 0, 'kind': 'event', 'event': 'started', 'mesh': '1x2x1'}.items()
    )
    assert train.items() >= {'step': 1, 'epoch': 0.5, 'kind': 'train', **TRAIN}.items()
    assert evaluation.items() >= {'kind': 'eval', 'eval/top1_error': 0.25}.items()
    assert all(isinstance(v, int | float | str) for row in _rows(tmp_path) for v in row.values())


def test_speed_leaves_out_compilation_and_evaluation_and_counts_waiting(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_log.time, 'monotonic', lambda: clock[0])
    with _open(tmp_path) as log:
        log.advance(0, None)
        clock[0] += 50  # compilation
        log.train(1, 0.1, TRAIN, batch_size=16)
        clock[0] += 6
        log.advance(4, None)
        with log.spending('data'):
            clock[0] += 2
        with log.spending('other'):
            clock[0] += 30
        log.train(5, 0.5, TRAIN, batch_size=16)
    first, second = _rows(tmp_path)
    assert 'perf/images_per_second' not in first
    assert second['perf/images_per_second'] == pytest.approx(4 * 16 / 8)
    assert second['perf/data_wait'] == pytest.approx(2 / 8)
    assert second['time_s'] == pytest.approx(88)


def test_lines_that_come_late_and_at_once(tmp_path, monkeypatch, caplog):
    """A step takes 2 s and is looked at two steps later; all are looked at before an evaluation."""
    caplog.set_level('INFO', logger='alexnet_jax')
    clock = [0.0]
    monkeypatch.setattr(run_log.time, 'monotonic', lambda: clock[0])
    with _open(tmp_path) as log:
        for step in range(1, 8):
            log.advance(step - 1, None)
            clock[0] += 2
            for late in {3: [1], 4: [2, 3, 4], 7: [5]}.get(step, []):
                log.train(late, 0.1, TRAIN, batch_size=16)
            if step == 4:
                with log.spending('other'):
                    clock[0] += 12
    rows = {row['step']: row.get('perf/images_per_second') for row in _rows(tmp_path)}
    assert rows == {1: None, 2: 8, 3: None, 4: None, 5: 8}  # 16 images in 2 s
    # The four steps since the first line took 20 s with the evaluation; five steps are left.
    assert 'time left 0:00:25' in caplog.messages[-1]


def test_a_resumed_log_has_each_step_once_and_time_goes_on(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(run_log.time, 'monotonic', lambda: clock[0])
    with _open(tmp_path) as log:
        for step in range(1, 6):
            clock[0] += 10
            log.train(step, 0.1, TRAIN, batch_size=16)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 6, "kind": "tr')  # torn by a kill
    clock[0] = 1000.0
    with _open(tmp_path, start_step=3) as log:
        log.event(3, 0.3, 'resumed')
        clock[0] += 10
        log.train(4, 0.4, TRAIN, batch_size=16)
    rows = _rows(tmp_path)
    assert [row['step'] for row in rows] == [1, 2, 3, 3, 4]
    assert [row['time_s'] for row in rows] == [10, 20, 30, 30, 40]


def _values(directory) -> list:
    """Read TensorBoard's event files: length, checksum, bytes, checksum (TFRecord)."""
    found = []
    for path in directory.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from('<Q', data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])  # pyright: ignore
            found += [(event.step, value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_has_the_same_numbers(tmp_path):
    with _open(tmp_path, tensorboard=True) as log:
        log.event(0, 0.0, 'started')
        log.train(2, 0.5, TRAIN, batch_size=16)
        log.evaluation(2, 0.5, {'eval/top1_error': 0.25})
    values = _values(tmp_path / 'tensorboard')
    scalars = {(step, v.tag): v.simple_value for step, v in values if not v.HasField('tensor')}
    assert scalars == pytest.approx(
        {(2, n): v for n, v in (TRAIN | {'eval/top1_error': 0.25}).items()}
    )


def test_tensorboard_shows_the_configuration_as_text(tmp_path):
    with _open(tmp_path, start_step=3, tensorboard=True, profile_steps=(5, 6)):
        pass
    values = _values(tmp_path / 'tensorboard')
    ((step, shown),) = [(step, v) for step, v in values if v.HasField('tensor')]
    assert (step, shown.tag) == (3, 'config/text_summary')
    assert shown.metadata.plugin_data.plugin_name == 'text'
    assert shown.tensor.string_val[0].decode().splitlines() == [
        '    tensorboard = True',
        '    progress_bar = False',
        '    profile_steps = (5, 6)',
        "    wandb_project = ''",
    ]


def test_console_line(tmp_path, caplog):
    caplog.set_level('INFO', logger='alexnet_jax')
    with _open(tmp_path) as log:
        log.train(1, 0.1, TRAIN, batch_size=16)
        log.advance(2, None)
        log.train(3, 0.3, TRAIN, batch_size=16)
    line = caplog.messages[-1]
    for words in (
        'step 3/10',
        'loss 2.5000',
        'top-1 error 0.750',
        'images/s',
        'data wait',
        'time left',
    ):
        assert words in line


def test_profile_window(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run_log.jax.profiler, 'start_trace', lambda d: calls.append(('start', d)))
    monkeypatch.setattr(run_log.jax.profiler, 'stop_trace', lambda: calls.append(('stop', at[0])))
    at = [0]
    with _open(tmp_path, profile_steps=(3, 5)) as log:
        for step in range(8):
            at[0] = step
            if step == 2:
                assert not calls
            log.advance(step, None)
    assert calls == [('start', str(tmp_path / 'profile')), ('stop', 5)]


@pytest.mark.parametrize(
    'damage',
    [bytes(20), b'\xff\xfe{"step": 2', b'{"step": 2, "ki', b'12', b''],
    ids=['NULs', 'no UTF-8', 'torn', 'number', 'empty'],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, damage):
    path = tmp_path / 'my metrics.jsonl'
    whole = [b'{"step": 1, "time_s": 1}', b'{"step": 3, "time_s": 3}', b'']
    content = b'\n'.join([whole[0], damage, *whole[1:]])
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'^line 2 of {path} is damaged') as caught:
        run_log._drop_rows_after(epath.Path(path), 1)
    assert '\n' not in str(caught.value)
    assert path.read_bytes() == content
    subprocess.run(str(caught.value).partition('delete it: ')[2], shell=True, check=True)
    assert [row['step'] for row in run_log.read_rows(epath.Path(path))] == [1, 3]


def test_read_rows_of_nothing(tmp_path):
    assert run_log.read_rows(epath.Path(tmp_path / 'none')) == []


def test_a_run_that_was_started_twice_began_from_what_the_second_start_says():
    rows = [{'event': 'started', 'init_data': 'a/1'}, {'event': 'started', 'init_data': 'b/1'}]
    assert run_log.initial_data([*rows, {'event': 'resumed'}]) == 'b/1'
    assert run_log.initial_data([{'event': 'started'}]) == ''
    assert run_log.initial_data([]) == ''


FULL = '/dev/full'  # writing there fails as on a full disk


def _fill_the_disk(log):
    log._file.close()
    log._path, log._file = epath.Path(FULL), open(FULL, 'a')  # noqa: SIM115


@pytest.mark.fault
def test_a_row_that_cannot_be_written_ends_the_run_in_one_line(tmp_path, caplog):
    with pytest.raises(UserError) as error, _open(tmp_path) as log:
        _fill_the_disk(log)
        log.event(0, 0.0, 'started')
    assert str(error.value) == (
        'cannot write a row to /dev/full (No space left on device); free some space there, '
        'then run the same command again'
    )
    assert caplog.messages == [str(error.value)]  # the same again when the file is closed


@pytest.mark.fault
def test_a_log_that_cannot_be_closed_is_one_line(tmp_path):
    with pytest.raises(UserError, match='No space left on device'), _open(tmp_path) as log:
        _fill_the_disk(log)
        log._file.write('what is still in the buffer')


@pytest.mark.fault
@pytest.mark.parametrize('replaced', [False, True])
def test_a_log_that_is_deleted_or_replaced_under_the_run(tmp_path, replaced):
    words = r'cannot write a row to .*deleted, renamed or unmounted'
    with pytest.raises(UserError, match=words), _open(tmp_path) as log:
        log.event(0, 0.0, 'started')
        (tmp_path / 'metrics.jsonl').unlink()
        if replaced:
            (tmp_path / 'metrics.jsonl').write_text('')
        log.event(1, 0.0, 'stopped')


@pytest.mark.fault
def test_a_log_that_cannot_be_cut_is_whole_and_leaves_nothing_behind(tmp_path, monkeypatch):
    with _open(tmp_path) as log:
        log.train(1, 0.1, TRAIN, batch_size=16)
    before = (tmp_path / 'metrics.jsonl').read_bytes()

    def fail(self, target):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(type(epath.Path(tmp_path)), 'replace', fail)
    with pytest.raises(UserError, match=r'metrics.jsonl .No space left'):
        _open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before


@pytest.mark.fault
def test_tensorboard_on_a_full_disk_is_one_warning(tmp_path, caplog):
    with _open(tmp_path, tensorboard=True) as log:
        log._board._writer._py_recordio_writer._writer.close()
        full = open(FULL, 'wb')  # noqa: SIM115
        log._board._writer._py_recordio_writer._writer = full
        for step in range(1, 40):  # SummaryWriter's queue holds ten, and then waits for ever
            log.train(step, 0.1, TRAIN, batch_size=16)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
    assert warnings == ['TensorBoard is given up: [Errno 28] No space left on device']
    assert [row['step'] for row in _rows(tmp_path)] == list(range(1, 40))
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.fault
def test_tensorboard_without_its_directory_is_one_warning(tmp_path, caplog):
    (tmp_path / 'tensorboard').write_text('a file')
    with _open(tmp_path, tensorboard=True) as log:
        log.train(1, 0.1, TRAIN, batch_size=16)
    assert [r.getMessage() for r in caplog.records if r.levelname == 'WARNING'] == [
        f"TensorBoard is given up: [Errno 17] File exists: '{tmp_path}/tensorboard'"
    ]


@pytest.mark.fault
@pytest.mark.parametrize('fails', ['start_trace', 'stop_trace'])
def test_a_profile_that_fails_is_one_warning(tmp_path, monkeypatch, caplog, fails):
    def fail(*arguments):
        raise RuntimeError('no space\nand more')

    monkeypatch.setattr(run_log.jax.profiler, 'start_trace', lambda directory: None)
    monkeypatch.setattr(run_log.jax.profiler, 'stop_trace', lambda: None)
    monkeypatch.setattr(run_log.jax.profiler, fails, fail)
    with _open(tmp_path, profile_steps=(3, 5)) as log:
        for step in range(8):
            log.advance(step, None)
    assert caplog.messages == ['the profile is given up: no space']
