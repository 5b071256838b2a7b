"""The writer: what is read back, killing it, other recipes, workers."""

import contextlib
import errno
import fractions
import functools
import itertools
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import termios
import time
import unicodedata
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets, model_selection

from alexnet_jax.preparation import digits, records
from alexnet_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = (5, 4, 3)
ITEMS = {'train': list(range(23)), 'test': list(range(100, 107))}
# Runs a write in another process, which may be killed: EXTRA is code run at each example.
SCRIPT = """
import os, signal, sys, time
import numpy as np
from alexnet_jax import command_line
from alexnet_jax.preparation import records

def read_example(item):
    {extra}
    rng = np.random.default_rng(item)
    return rng.integers(0, 256, (5, 4, 3), dtype=np.uint8), item % 3

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    sys.exit(command_line.run(lambda: records.write_dataset(
        {data_dir!r}, name='tiny', version='1.2.0', description='random', image_shape=(5, 4, 3),
        class_names=['a', 'b', 'c'], splits={items!r}, shards={{'train': 4, 'test': 1}},
        read_example=read_example, workers={workers})))
"""


def expected(item):
    return np.random.default_rng(item).integers(0, 256, SHAPE, dtype=np.uint8), item % 3


def write(data_dir, read_example=expected, **changes):
    recipe: dict[str, Any] = dict(
        name='tiny',
        version='1.2.0',
        description='random',
        image_shape=SHAPE,
        class_names=['a', 'b', 'c'],
        splits=ITEMS,
        shards={'train': 4, 'test': 1},
    )
    return records.write_dataset(data_dir, read_example=read_example, **recipe | changes)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def in_another_process(tmp_path, data_dir, extra='pass', workers=1, **options):
    script = tmp_path / 'script.py'
    script.write_text(
        SCRIPT.format(extra=extra, data_dir=str(data_dir), items=ITEMS, workers=workers)
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([sys.executable, script], env=environment, **options)


def one_line(caught):
    message = str(caught.value)
    assert '\n' not in message
    return message


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    return write(tmp_path_factory.mktemp('reference'))


def test_tfds_reads_what_was_written(reference):
    builder: Any = tfds.builder_from_directory(reference)
    assert builder.info.full_name == 'tiny/1.2.0'
    assert builder.info.features['label'].names == ['a', 'b', 'c']
    assert builder.info.splits['train'].shard_lengths == [5, 6, 6, 6]
    for split, items in ITEMS.items():
        source = builder.as_data_source(split)
        assert len(source) == len(items)
        for item, example in zip(items, source, strict=True):
            image, label = expected(item)
            np.testing.assert_array_equal(example['image'], image, strict=True)
            assert example['label'] == label


def test_digits_are_those_of_sklearn(tmp_path):
    directory = digits.prepare_digits(tmp_path)
    assert directory == tmp_path / 'digits' / '1.0.0'
    pixels, labels = datasets.load_digits(return_X_y=True)
    scaled = [[round(fractions.Fraction(int(v) * 255, 16)) for v in image] for image in pixels]
    images = np.array(scaled, np.uint8).reshape(-1, 8, 8, 1)
    split = model_selection.train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    builder: Any = tfds.builder_from_directory(directory)
    assert 'round(v * 255 / 16)' in builder.info.description
    for name, count, want, want_labels in zip(
        ('train', 'test'), (1437, 360), split[:2], split[2:], strict=True
    ):
        source = list(builder.as_data_source(name))
        assert len(source) == count
        np.testing.assert_array_equal([e['image'] for e in source], want)
        np.testing.assert_array_equal([e['label'] for e in source], want_labels)
        proportions = np.bincount(want_labels) / count - np.bincount(labels) / 1797
        assert np.abs(proportions).max() < 1 / count  # no class is off by a whole example
    assert images.min() == 0
    assert images.max() == 255


def test_a_complete_data_set_is_left_alone(tmp_path):
    directory = write(tmp_path)
    before = {path: os.stat(path).st_mtime_ns for path in directory.iterdir()}
    assert write(tmp_path, read_example=pytest.fail) == directory
    assert {path: os.stat(path).st_mtime_ns for path in directory.iterdir()} == before


def test_two_workers_write_the_same_bytes(tmp_path, reference):
    assert in_another_process(tmp_path, tmp_path, workers=2).wait() == 0
    assert files(tmp_path / 'tiny' / '1.2.0') == files(reference)


def test_a_shard_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, dropped = [], []

    def fsync(descriptor):
        path = pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}'))
        assert path.suffix == '.tmp'
        assert not path.with_suffix('').exists()
        synced.append((path.with_suffix('').name, path.read_bytes()))

    def fadvise(descriptor, offset, length, advice):
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED), 'the whole file'
        dropped.append(pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}')).stem)
        assert dropped[-1] == synced[-1][0], 'pages that are not on disk would stay'

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'posix_fadvise', fadvise)
    directory = write(tmp_path)
    assert len(dropped) == 5
    shards = {name: data for name, data in files(directory).items() if '.array_record-' in name}
    assert dict(synced) == shards
    assert len(synced) == 5


def test_a_disk_that_loses_what_is_written_ends_in_one_line(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(UserError, match='No space left on device') as caught:
        write(tmp_path)
    assert 'tiny-train.array_record-00000-of-00004' in one_line(caught)
    monkeypatch.undo()
    assert len(files(write(tmp_path))) > 5


@pytest.mark.fault
@pytest.mark.parametrize('at', [5, 14])  # before the first example of a shard, and inside one
def test_killed_and_run_again(tmp_path, reference, at):
    kill = f'if item == {at}: os.kill(os.getpid(), signal.SIGKILL)'
    assert in_another_process(tmp_path, tmp_path, kill).wait() == -signal.SIGKILL
    directory = tmp_path / 'tiny' / '1.2.0'
    shards = [path for path in directory.iterdir() if '-of-' in path.name]
    whole = {p: os.stat(p).st_mtime_ns for p in shards if p.suffix != '.tmp'}
    assert len(whole) == {5: 1, 14: 2}[at]
    assert [path.name for path in directory.glob('*.json')] == ['recipe.json']  # not complete

    assert write(tmp_path).exists()
    assert {path: os.stat(path).st_mtime_ns for path in whole} == whole
    assert files(directory) == files(reference)


@pytest.mark.parametrize('workers', [1, 2])
def test_the_bar_on_a_terminal_moves_within_a_shard_and_goes_on_after_a_kill(tmp_path, workers):
    kill = 'if item == 14: os.kill(os.getpid(), signal.SIGKILL)'
    assert in_another_process(tmp_path, tmp_path, kill).wait() == -signal.SIGKILL  # 11 are written
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    slow = f'time.sleep({0.2 * workers})'
    process = in_another_process(tmp_path, tmp_path, slow, workers, stderr=theirs)
    os.close(theirs)
    shown = b''
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait() == 0
    os.close(ours)
    bars = re.findall(rb'(\d+)/30 \[(\S+)<(\S+), +(\S+)', shown)
    counts = [int(count) for count, *_ in bars]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (11, 30)
    assert len(set(counts)) > 6  # more than the ends of the four shards that are left
    assert re.search(rb'images/s|s/ images', shown)
    *_, (_, _, left, rate) = [bar for bar in bars if 20 < int(bar[0]) < 30]
    assert b'?' not in left + rate


@pytest.mark.fault
@pytest.mark.parametrize('at', range(8))  # five shards, then three files of metadata
def test_ended_at_a_rename_and_run_again(tmp_path, reference, monkeypatch, at):
    directory, calls = tmp_path / 'tiny' / '1.2.0', itertools.count()
    replace = type(reference).replace

    def interrupt(path, target):
        if next(calls) == at:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(reference), 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert not (directory / 'features.json').exists()
    monkeypatch.undo()
    write(tmp_path)
    assert files(directory) == files(reference)


def test_one_of_two_processes_writes_and_the_other_waits(tmp_path, reference):
    log = tmp_path / 'log'
    slow = f'time.sleep(0.02); open({str(log)!r}, "a").write("x")'
    both = [in_another_process(tmp_path, tmp_path, slow) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert log.stat().st_size == 30  # each example was read once
    assert files(tmp_path / 'tiny' / '1.2.0') == files(reference)


@pytest.mark.fault
def test_workers_end_with_their_parent(tmp_path):
    log = tmp_path / 'log'
    slow = f'time.sleep(0.05); open({str(log)!r}, "a").write("x")'
    parent = in_another_process(tmp_path, tmp_path, slow, workers=2)
    while not log.exists() or log.stat().st_size < 3:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(0.3)
    written = log.stat().st_size
    assert written < 20  # of 30: they were in the middle
    time.sleep(0.5)
    assert log.stat().st_size == written


@pytest.mark.fault
@pytest.mark.parametrize(('workers', 'number'), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_interrupted_and_run_again(tmp_path, reference, workers, number):
    log = tmp_path / 'log'
    slow = f'time.sleep(0.05); open({str(log)!r}, "a").write("x")'
    options: Any = dict(start_new_session=True, stderr=subprocess.PIPE, text=True)
    process = in_another_process(tmp_path, tmp_path, slow, workers, **options)
    while not log.exists() or log.stat().st_size < 16:  # with two workers, two shards of 5 and 6
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does, so the workers get it, too
    _, errors = process.communicate()
    line = f'error: stopped by {number.name}; to go on, run the same command again\n'
    assert (process.returncode, errors) == (128 + number, line)
    assert log.stat().st_size < 30, 'the shards that were being written were finished first'
    directory = tmp_path / 'tiny' / '1.2.0'
    assert not list(directory.glob('*.tmp'))
    whole = {path: os.stat(path).st_mtime_ns for path in directory.glob('*-of-*')}
    assert len(whole) >= 1
    write(tmp_path)
    assert {path: os.stat(path).st_mtime_ns for path in whole} == whole
    assert files(directory) == files(reference)


def killed_at_14(log, item):
    if item == 14 and not log.exists():
        log.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return expected(item)


@pytest.mark.fault
def test_a_killed_worker_ends_in_one_line_and_the_next_run_goes_on(tmp_path, reference):
    read_example = functools.partial(killed_at_14, tmp_path / 'log')
    with pytest.raises(UserError, match=r'^a worker process was ended .* fewer --workers$') as end:
        write(tmp_path, read_example, workers=2)
    one_line(end)
    directory = tmp_path / 'tiny' / '1.2.0'
    assert not list(directory.glob('*.tmp'))
    write(tmp_path, read_example)
    assert files(directory) == files(reference)


@pytest.mark.fault
@pytest.mark.parametrize(
    ('method', 'at', 'name'),
    [
        ('write_text', 0, 'recipe.json'),
        ('write_text', 1, ''),  # the names of the classes, by tfds
        ('replace', 0, 'tiny-train.array_record-00000-of-00004'),
        ('replace', 6, ''),
        ('mkdir', 1, ''),
    ],
)
def test_a_full_disk_at_each_file(tmp_path, reference, monkeypatch, method, at, name):
    calls, original = itertools.count(), getattr(type(reference), method)

    def fail(path, *arguments, **options):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a write names no file
        return original(path, *arguments, **options)

    monkeypatch.setattr(type(reference), method, fail)
    with pytest.raises(UserError, match='No space left on device') as caught:
        write(tmp_path)
    directory = tmp_path / 'tiny' / '1.2.0'
    assert one_line(caught).startswith(f'cannot write {directory / name} (')
    assert not list(directory.glob('*.tmp'))
    monkeypatch.undo()
    write(tmp_path)
    assert files(directory) == files(reference)


@pytest.mark.fault
def test_what_a_kill_left_is_removed(tmp_path, reference):
    directory = write(tmp_path)
    (directory / 'features.json').unlink()
    (directory / 'report.json.123.tmp').touch()
    (directory / 'metadata.tmp').mkdir()
    (directory / 'metadata.tmp' / 'features.json').touch()
    write(tmp_path)
    assert files(directory) == files(reference)


@pytest.mark.fault
def test_full_disk(tmp_path):
    script = f"""
import resource
from alexnet_jax.runtime.errors import UserError
from tests.preparation import test_records
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    test_records.write({str(tmp_path)!r})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'cannot write {tmp_path}/tiny/1.2.0/tiny-train')
    assert done.stdout.count('\n') == 1


@pytest.mark.fault
def test_a_shard_cut_short_is_written_again(tmp_path, reference):
    directory = write(tmp_path)
    (directory / 'features.json').unlink()
    shard = directory / 'tiny-train.array_record-00002-of-00004'
    shard.write_bytes(shard.read_bytes()[:-1000])
    write(tmp_path)
    assert files(directory) == files(reference)


@pytest.mark.parametrize('complete', [True, False])
@pytest.mark.parametrize(
    ('changes', 'field'),
    [
        ({'image_shape': (4, 5, 3)}, 'image_shape'),
        ({'description': 'sharper'}, 'description'),
        ({'class_names': ['a', 'b', 'd']}, 'class_names'),
        ({'shards': {'train': 3, 'test': 1}}, 'train shards'),
        ({'splits': {**ITEMS, 'test': [1, 2]}}, 'test examples'),
        ({'splits': {**ITEMS, 'test': ITEMS['test'][::-1]}}, 'test items'),
        ({'splits': {'train': ITEMS['train']}}, 'test examples'),
    ],
)
def test_another_recipe_is_refused(tmp_path, changes, field, complete):
    data_dir = tmp_path / 'a b'
    directory = write(data_dir)
    if not complete:
        (directory / 'features.json').unlink()
    before = files(directory)
    with pytest.raises(UserError, match=f': {field} is .* there and .* here') as caught:
        write(data_dir, **changes)
    assert f"rm -r '{directory}'" in one_line(caught)
    assert files(directory) == before


@pytest.mark.parametrize('left', ['tiny-train.array_record-00000-of-00004', 'features.json'])
def test_files_of_others_are_refused(tmp_path, reference, left):
    directory = tmp_path / 'tiny' / '1.2.0'
    directory.mkdir(parents=True)
    (directory / left).write_bytes((reference / left).read_bytes())
    with pytest.raises(UserError, match='was made with other settings') as caught:
        write(tmp_path)
    assert str(directory) in one_line(caught)


def test_a_recipe_cut_short_is_another_one(tmp_path):
    directory = write(tmp_path)
    (directory / 'recipe.json').write_text('{"name": "ti')
    with pytest.raises(UserError, match=r"name is None there and 'tiny/1\.2\.0' here"):
        write(tmp_path)


# Blanks, separators, controls and formats.
SPECIAL = [
    c
    for c in map(chr, range(0x3100))
    if c.isspace() or unicodedata.category(c) in ('Cc', 'Cf', 'Zl', 'Zp', 'Zs')
]


def test_class_names_are_those_that_tfds_reads_or_are_refused(tmp_path):
    names = [''] + [form.format(c) for c in SPECIAL for form in ('{}', '{}x', 'x{}', 'x{}y')]
    refused = set()
    for name in names:
        tfds.features.ClassLabel(names=[name]).save_metadata(tmp_path, 'label')
        label = tfds.features.ClassLabel(num_classes=1)
        with contextlib.suppress(ValueError):
            label.load_metadata(tmp_path, 'label')
        if label.names == [name]:
            records.check_class_names([name])
        else:
            with pytest.raises(UserError) as caught:
                records.check_class_names([name])
            assert repr(name)[1:-1] in one_line(caught) or ascii(name) in one_line(caught)
            refused.add(name)
    assert {'', 'x\ny', 'x\ry', ' x', 'x\t', '\u2028x', '\xa0'} <= refused
    assert not {'x y', 'x\u2028y', 'x\x85y', 'x\u200b'} & refused


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (['a', 'caf\xe9', 'cafe\u0301'], r"'cafe\\u0301' .* same text as .* class 'caf\\xe9'"),
        (['a', '\u212a', 'K'], r"'K' .* same text as that of the class '\\u212a'"),  # the Kelvin
        (['a', 'a', 'b'], "'a' .* same text as that of the class 'a'"),
        (['a', 'b\udcff', 'c'], r"'b\\udcff' .* is not UTF-8"),
        (['a', 'b\nc', 'd'], r"'b\\nc' .* has a line break; rename its folder"),
    ],
)
def test_names_that_are_one_class_for_a_reader_are_refused_first(tmp_path, names, words):
    with pytest.raises(UserError, match=words) as caught:
        write(tmp_path, pytest.fail, class_names=names)
    one_line(caught)
    assert not list(tmp_path.iterdir())


def test_odd_class_names_are_read_back(tmp_path):
    names = ['#1', 'x\u2028y', "it's, 50%\t{}", 'caf\xe9', '\uff21', 'A', '\u65e5']
    info = tfds.builder_from_directory(write(tmp_path, class_names=names)).info
    assert info.features['label'].names == names


def bad_example(image, label, item):
    return (image, label) if item == 9 else expected(item)


@pytest.mark.parametrize(
    ('image', 'label', 'words'),
    [
        (np.zeros((4, 5, 3), np.uint8), 0, r'uint8 \[4, 5, 3\]'),
        (np.zeros(SHAPE, np.int32), 0, 'int32'),
        (np.zeros(SHAPE, np.uint8), 3, 'label 3'),
        (np.zeros(SHAPE, np.uint8), -1, 'label -1'),
    ],
)
def test_a_bad_example_is_named(tmp_path, image, label, words):
    read_example = functools.partial(bad_example, image, label)
    with pytest.raises(UserError, match=f'example 9 .*{words}') as caught:
        write(tmp_path, read_example)
    one_line(caught)
    assert not (tmp_path / 'tiny' / '1.2.0' / 'features.json').exists()
    assert write(tmp_path).exists()  # mended, it goes on


def test_an_error_of_a_worker_comes_out(tmp_path):
    read_example = functools.partial(bad_example, np.zeros((1, 1, 3), np.uint8), 0)
    with pytest.raises(UserError, match='example 9 ') as caught:
        write(tmp_path, read_example, workers=2)
    one_line(caught)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'cannot write .*--data_dir') as caught:
        write(tmp_path / 'file')
    assert str(tmp_path / 'file') in one_line(caught)
