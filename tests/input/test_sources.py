"""Data sets by name: those of the writer, those of tfds itself, and each way they can be wrong."""

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from alexnet_jax.input import sources
from alexnet_jax.preparation import digits, records
from alexnet_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNTS = {'train': 20, 'validation': 7}


def image_of(split, index, shape=(6, 5, 3)):
    rng = np.random.default_rng([COUNTS[split], index])
    return rng.integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


class Photos(tfds.core.GeneratorBasedBuilder):
    """An ordinary data set of tfds: PNG images, a feature more than we need, shuffled."""

    VERSION = tfds.core.Version('1.2.0')
    FEATURES: ClassVar[dict[str, Any]] = {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(6, 5, 3)),
        'label': tfds.features.ClassLabel(names=['cat', 'dog', 'owl']),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {'id': f'{split} {i}', 'image': png(image_of(split, i)), 'label': i % 3}


class Varying(Photos):
    """Images of two sizes, and one without a label."""

    FEATURES: ClassVar[dict[str, Any]] = Photos.FEATURES | {
        'image': tfds.features.Image(shape=(None, None, 3))
    }

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            shape = (6, 5, 3) if split == 'train' else (5 + i % 2, 5, 3)
            label = -1 if (split, i) == ('train', 5) else i % 3
            yield i, {'id': f'{split} {i}', 'image': png(image_of(split, i, shape)), 'label': label}


class Unlabelled(Photos):
    FEATURES: ClassVar[dict[str, Any]] = {
        'image': tfds.features.Image(shape=(6, 5, 3)),
        'label': tfds.features.Scalar(dtype=np.int64),
        'id': tfds.features.Text(),
    }


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Return a data directory with several data sets; read it only."""
    data_dir = tmp_path_factory.mktemp('data')
    for builder in (Photos, Varying, Unlabelled):
        builder(data_dir=data_dir, file_format='array_record').download_and_prepare()
    for version in ('1.9.0', '1.10.0'):
        records.write_dataset(
            data_dir,
            name='tiny',
            version=version,
            description='random',
            image_shape=(6, 5, 3),
            class_names=['a', 'b'],
            splits={split: range(count) for split, count in COUNTS.items()},
            shards={'train': 3, 'validation': 1},
            read_example=lambda i: (image_of('train', i), i % 2),
        )
    return data_dir


@pytest.fixture
def data_dir(prepared, tmp_path):
    """Return a copy, to be damaged."""
    return shutil.copytree(prepared, tmp_path / 'data')


def open_dataset(dir, name='tiny', **changes):
    section: dict[str, Any] = dict(
        name=name,
        dir=str(dir),
        train_split='train',
        eval_split='validation',
        image_shape=(),
        train_examples=0,
        eval_examples=0,
        read_threads=1,
        prefetch_batches=1,
    )
    return sources.open_dataset(sources.DataConfig(**section | changes))


def refused(*parts, **section):
    """Check that the data set is refused in one line with these parts, and return the line."""
    with pytest.raises(UserError) as caught:
        open_dataset(**section)
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert part in message
    return message


def test_own_data_set(prepared):
    dataset = open_dataset(prepared, read_threads=3, prefetch_batches=4)
    assert dataset.full_name == 'tiny/1.10.0'  # the highest: not by the alphabet
    assert dataset.directory == str(prepared / 'tiny' / '1.10.0')
    assert dataset.num_classes == 2
    assert dataset.class_names == ('a', 'b')
    assert dataset.image_shape == (6, 5, 3)
    assert (dataset.read_threads, dataset.prefetch_batches) == (3, 4)
    assert len(dataset.train) == 20
    assert len(dataset.eval) == 7
    for index in range(20):
        example = dataset.train[index]
        np.testing.assert_array_equal(example['image'], image_of('train', index), strict=True)
        assert example['label'].dtype == np.int32
        assert example['label'] == index % 2
    for index in (20, -1):
        with pytest.raises(IndexError):
            dataset.train[index]


def test_a_data_set_of_tfds_by_its_name(prepared, monkeypatch):
    monkeypatch.setattr('socket.socket.connect', pytest.fail)
    dataset = open_dataset(prepared, 'photos', image_shape=(6, 5, 3), train_examples=20)
    assert dataset.full_name == 'photos/1.2.0'
    assert dataset.class_names == ('cat', 'dog', 'owl')
    got = [(example['image'].tobytes(), int(example['label'])) for example in dataset.train]
    want = [(image_of('train', i).tobytes(), i % 3) for i in range(20)]
    assert sorted(got) == sorted(want)  # tfds shuffles what it writes


@pytest.mark.parametrize(
    ('name', 'full_name'), [('tiny:1.9.0', 'tiny/1.9.0'), ('photos:1.2.0', 'photos/1.2.0')]
)
def test_a_version_can_be_named(prepared, name, full_name):
    assert open_dataset(prepared, name).full_name == full_name


def test_a_config_can_be_named(data_dir):
    (data_dir / 'sized' / 'small').mkdir(parents=True)
    (data_dir / 'tiny' / '1.9.0').rename(data_dir / 'sized' / 'small' / '1.9.0')
    assert len(open_dataset(data_dir, 'sized/small').train) == 20
    refused("'sized'", 'sized/small', dir=data_dir, name='sized')


@pytest.mark.parametrize(
    ('split', 'indices'),
    [('train[:90%]', range(18)), ('train[15:]', range(15, 20)), ('train[-5:-2]', range(15, 18))],
)
def test_slices(prepared, split, indices):
    dataset = open_dataset(prepared, train_split=split, train_examples=len(indices))
    assert len(dataset.train) == len(indices)
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(dataset.train[row]['image'], image_of('train', index))


def digest(split):
    return hashlib.sha256(b''.join(e['image'].tobytes() for e in split)).hexdigest()


def digest_there(data_dir):
    return digest(open_dataset(data_dir, 'photos').train)


def test_threads_and_processes(prepared):
    split = open_dataset(prepared, 'photos').train
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: split[i % 20]['image'].tobytes(), range(400)))
    assert images == [example['image'].tobytes() for example in split] * 20
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(digest_there, prepared).result() == digest(split)
        assert pool.submit(digest, split).result() == digest(split)


def test_fingerprint(data_dir):
    dataset = open_dataset(data_dir)
    first = dataset.fingerprint()
    assert first == open_dataset(data_dir, read_threads=5).fingerprint()
    assert all(type(value) in (str, int) for value in first.values())
    assert json.loads(json.dumps(first)) == first
    assert first['train_name'] == 'tiny/1.10.0'
    assert first['train_examples'] == 20
    assert first['image_shape'] == '6x5x3'

    def changed(**section):
        other = open_dataset(data_dir, **section).fingerprint()
        return {name for name in first if first[name] != other[name]}

    assert changed(name='tiny:1.9.0') == {'train_name', 'eval_name'}
    assert changed(eval_split='validation[:6]') == {
        'eval_split',
        'eval_examples',
        'eval_shards',
        'eval_sample',
    }
    directory = data_dir / 'tiny' / '1.10.0'
    shutil.rmtree(directory)
    records.write_dataset(
        data_dir,
        name='tiny',
        version='1.10.0',
        description='other pixels, two shards',
        image_shape=(6, 5, 3),
        class_names=['a', 'c'],
        splits={split: range(count) for split, count in COUNTS.items()},
        shards={'train': 2, 'validation': 1},
        read_example=lambda i: (image_of('train', i) // 2, i % 2),
    )
    assert changed() == {'class_names', 'train_sample', 'train_shards', 'eval_sample'}


def test_missing(prepared):
    there = 'which has photos, tiny, unlabelled, varying'
    line = refused("'digits'", str(prepared), there, dir=prepared, name='digits')
    assert f'python -m alexnet_jax.prepare digits --data_dir={prepared}' in line
    command = f'tfds build cifar10 --file_format=array_record --data_dir={prepared}'
    refused("'cifar10'", command, dir=prepared, name='cifar10')
    refused('alexnet_jax.prepare --help', there, dir=prepared, name='tinny')
    refused("'tiny:7.0.0'", there, dir=prepared, name='tiny:7.0.0')
    refused('which has none', dir=prepared / 'nowhere', name='mnist')


ODD_NAMES = ['a [1]', '[ab]', 'a[0:2]', 'a*b?', '{VERSION}', 'a\\', ' b ', '"\'%s#', '~', '-x']
ODD_NAMES += ['a@2,b', '\xe9', 'e\u0301', 'a\nb', '\x01\u2028', 'tiny.array_record-00000-of-00001']


@pytest.mark.parametrize('name', ODD_NAMES)
def test_a_data_directory_of_any_name(prepared, tmp_path, name):
    shutil.copytree(prepared / 'tiny', tmp_path / name / 'tiny')
    dataset = open_dataset(tmp_path / name)
    assert dataset.full_name == 'tiny/1.10.0'
    np.testing.assert_array_equal(dataset.train[19]['image'], image_of('train', 19))


@pytest.mark.parametrize('name', ['.', '-x', '[x]'])
def test_a_relative_data_directory(prepared, tmp_path, monkeypatch, name):
    shutil.copytree(prepared / 'tiny', tmp_path / name / 'tiny')
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset(name).train) == 20


def test_the_name_of_a_data_directory_is_no_pattern(prepared, tmp_path):
    shutil.copytree(prepared / 'tiny', tmp_path / 'axb' / 'tiny')
    for name in ('a*b', 'a?b', 'a[x]b'):
        refused('which has none', dir=tmp_path / name)
    assert not sources.is_prepared('t*', tmp_path / 'axb')
    assert not sources.is_prepared('tiny:1.*', tmp_path / 'axb')


def test_a_data_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / 'file').touch()
    refused(f'{tmp_path}/file: Not a directory; mend that', dir=tmp_path / 'file')


@pytest.mark.parametrize(
    'file',
    [
        *('features.json', 'dataset_info.json', 'label.labels.txt', 'recipe.json'),
        'tiny-train.array_record-00001-of-00003',
    ],
)
def test_a_file_that_cannot_be_opened_is_not_prepared_again(data_dir, file):
    path = data_dir / 'tiny' / '1.10.0' / file
    path.unlink()
    path.mkdir()  # permissions mean nothing to root
    refused(f'{path}: Is a directory; mend that', dir=data_dir)


def test_half_copied(data_dir):
    path = data_dir / 'tiny' / '1.10.0'
    (path / 'features.json').unlink()
    refused(f'{path} is incomplete: it has no features.json', dir=data_dir, name='tiny:1.10.0')
    assert open_dataset(data_dir).full_name == 'tiny/1.9.0', 'the highest that is complete'


@pytest.mark.parametrize(
    'content', [None, b'', b'a\n', b'a\nb\nc\n', b'b\na\n', b'a\na\n', b'\xff']
)
def test_class_names_missing_or_damaged(data_dir, content):
    path = data_dir / 'tiny' / '1.10.0' / 'label.labels.txt'
    assert path.read_bytes() == b'a\nb\n'
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(f'{path} is missing or damaged; to prepare', dir=data_dir)


@pytest.mark.parametrize('content', [b'', b'cat\ndog\n', b'cat\ndog\ndog\n'])
def test_class_names_of_tfds_damaged(data_dir, content):
    path = data_dir / 'photos' / '1.2.0' / 'label.labels.txt'
    path.write_bytes(content)
    refused(f'{path} is missing or damaged; to prepare', dir=data_dir, name='photos')


def remove(path, other):
    path.unlink()


def remove_all(path, other):
    shutil.rmtree(path.parent)


def cut(path, other):
    os.truncate(path, path.stat().st_size // 2)


def copy_over(path, other):
    shutil.copyfile(other, path)  # of the same size: only the time tells


def replace(path, other):
    shutil.copyfile(other, path.with_suffix('.new'))
    path.with_suffix('.new').replace(path)


@pytest.mark.parametrize('was_read', [False, True])
@pytest.mark.parametrize('change', [remove, remove_all, cut, copy_over, replace])
def test_a_file_that_changes_while_it_is_read_is_named(data_dir, change, was_read):
    dataset = open_dataset(data_dir)
    path, other = (
        data_dir / 'tiny' / version / 'tiny-train.array_record-00001-of-00003'
        for version in ('1.10.0', '1.9.0')
    )
    if was_read:
        dataset.train[7]
    change(path, other)
    for index in range(6, 13):
        with pytest.raises(UserError, match=f'example {index} of .* removed or changed') as caught:
            dataset.train[index]
        assert str(caught.value).startswith(f'{path}: ')
    if change is not remove_all:
        for index in (5, 13):
            np.testing.assert_array_equal(dataset.train[index]['image'], image_of('train', index))


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_stored_as_tfrecord(data_dir):
    (data_dir / 'tiny').rename(data_dir / 'mnist')
    path = data_dir / 'mnist' / '1.10.0' / 'dataset_info.json'
    edit_json(path, lambda info: info.update(name='mnist', fileFormat='tfrecord'))
    line = refused('mnist/1.10.0', 'stored as tfrecord', dir=data_dir, name='mnist')
    assert 'tfds build mnist --file_format=array_record' in line


@pytest.mark.parametrize('damage', ['delete', 'cut'])
def test_metadata_missing_or_cut(data_dir, damage):
    path = data_dir / 'photos' / '1.2.0' / 'dataset_info.json'
    path.write_text(path.read_text()[:99])
    if damage == 'delete':
        path.unlink()
    refused(str(path.parent), 'not a complete data set', dir=data_dir, name='photos')


@pytest.mark.parametrize('split', ['valid', 'train[:9x%]', 'train[:200]', 'train['])
def test_unknown_split(prepared, split):
    parts = (repr(split), 'train, validation', 'tiny/1.10.0')
    refused('data.train_split', *parts, dir=prepared, train_split=split)
    refused('data.eval_split', *parts, dir=prepared, eval_split=split)


@pytest.mark.parametrize(
    ('splits', 'found'),
    [
        (('train', 'val'), 'val'),
        (('train', 'val', 'validation'), 'validation'),
        (('train', 'validation', 'test', 'val'), 'test'),
        (('train', 'valid', 'dev'), ''),
    ],
)
def test_the_split_to_evaluate_on_is_found_by_its_name(tmp_path, splits, found):
    records.write_dataset(
        tmp_path,
        name='named',
        version='1.0.0',
        description='random',
        image_shape=(6, 5, 3),
        class_names=['a', 'b'],
        splits={split: range(3) for split in splits},
        shards=dict.fromkeys(splits, 1),
        read_example=lambda i: (image_of('train', i), i % 2),
    )
    if found:
        assert open_dataset(tmp_path, 'named', eval_split='').eval.name == found
    else:
        parts = ("config.data.eval_split = ''", 'test, validation, val', 'has train, valid, dev')
        refused(*parts, dir=tmp_path, name='named', eval_split='')
    named = open_dataset(tmp_path, 'named', eval_split=splits[1])
    assert named.eval.name == splits[1]


def test_wrong_count(prepared):
    for section in ({'train_examples': 1281167}, {'train_split': 'train[:0]'}):
        refused('data.train_examples', '--config.data', dir=prepared, **section)
    refused('validation has 7', 'data.eval_examples = 8', dir=prepared, eval_examples=8)


def test_wrong_shape(prepared):
    parts = ('tiny/1.10.0', '6x5x3', '(256, 256, 3)', "--config.data.image_shape='(6, 5, 3)'")
    refused(*parts, dir=prepared, image_shape=(256, 256, 3))


def test_images_of_varying_size(prepared):
    stored: Any = tfds.builder_from_directory(prepared / 'varying' / '1.2.0')
    shapes = [example['image'].shape for example in stored.as_data_source('validation')]
    odd = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
    section: Any = dict(dir=prepared, name='varying', train_split='validation')
    remedy = 'alexnet_jax.preparation.records.write_dataset'
    refused('varying size (?x?x3)', remedy, **section)
    # Found on opening when the first image differs, otherwise when the image is read.
    refused('example 0 of varying/1.2.0 validation', remedy, image_shape=shapes[odd], **section)
    dataset = open_dataset(image_shape=shapes[0], **section)
    with pytest.raises(UserError, match=f'example {odd} of varying/1.2.0 validation is uint8'):
        dataset.train[odd]


def test_an_example_without_a_label(prepared):
    stored: Any = tfds.builder_from_directory(prepared / 'varying' / '1.2.0')
    labels = [example['label'] for example in stored.as_data_source('train')]
    dataset = open_dataset(prepared, 'varying', eval_split='train', image_shape=(6, 5, 3))
    with pytest.raises(UserError, match=f'example {labels.index(-1)} of .* train has label -1'):
        dataset.train[labels.index(-1)]


def test_features_missing(prepared):
    refused('unlabelled/1.2.0', 'id, image, label', 'ClassLabel', dir=prepared, name='unlabelled')


@pytest.mark.parametrize('damage', ['delete', 'cut', 'empty'])
def test_a_file_missing_or_cut(data_dir, damage):
    path = data_dir / 'tiny' / '1.10.0' / 'tiny-train.array_record-00001-of-00003'
    size = {'delete': 0, 'cut': path.stat().st_size - 100, 'empty': 0}[damage]
    path.write_bytes(path.read_bytes()[:size])
    if damage == 'delete':
        path.unlink()
    line = refused(str(path), '0 of 7 records', f'move {path.parent} away', dir=data_dir)
    assert 'rm -r' not in line, 'the command that makes it again is not known'
    # A slice without that file is whole.
    assert len(open_dataset(data_dir, train_split='train[:6]').train) == 6


def test_the_command_named_mends_the_data_set(tmp_path):
    data_dir, other = tmp_path / 'a b', tmp_path / 'a'
    other.mkdir()
    directory = digits.prepare_digits(data_dir)
    (directory / 'digits-test.array_record-00000-of-00001').unlink()
    line = refused(str(directory), dir=data_dir, name='digits', eval_split='test')
    command = line.partition('again: ')[2].replace('python', sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=ROOT)
    assert len(open_dataset(data_dir, 'digits', eval_split='test').eval) == 360
    assert other.exists()


def test_a_flipped_bit(data_dir):
    path = data_dir / 'tiny' / '1.10.0' / 'tiny-train.array_record-00001-of-00003'
    content = bytearray(path.read_bytes())
    content[content.index(image_of('train', 8).tobytes()) + 30] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(data_dir)
    assert dataset.train[7]['label'] == 1
    with pytest.raises(UserError, match=r'example 8 of .* train cannot be read') as caught:
        dataset.train[8]
    assert '\n' not in str(caught.value)
    assert str(caught.value).startswith(f'{path}: ')
