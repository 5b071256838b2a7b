"""`prepare imagenet --year=2010` on archives and a development kit of ILSVRC-2010's shape."""

import functools
import gzip
import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from alexnet_jax import prepare
from tests import photographs
from tests.photographs import encoded, expected, tar_bytes

DIRECTORY = ('imagenet2010', '1.0.256')
FILES = [f'ILSVRC2010_images_{split}.tar' for split in ('train', 'val', 'test')]
DEVKIT, TEST_ANSWERS = 'ILSVRC2010_devkit-1.0.tar.gz', 'ILSVRC2010_test_ground_truth.txt'
ZIPPED, BLANK, BLANK_TEST = '1956', '2001', 'ILSVRC2010_test_00000007.JPEG'


@functools.cache
def numbered():
    """Return the synset of each number: the sample's and invented ones, in an order by chance."""
    synsets = [synset for synset, _ in photographs.sample(8)]
    synsets += [f'n{10_000_000 + 13 * i:08d}' for i in range(992)]
    return [synsets[i] for i in np.random.default_rng(5).permutation(1000)]


def meta(numbers=range(1, 1001), synsets=None):
    """Return a meta.mat as the original's: structs in a column, the ancestors last."""
    fields = ['ILSVRC2010_ID', 'WNID', 'words', 'gloss', 'num_children', 'children']
    fields += ['wordnet_height', 'num_train_images']
    structs = np.empty((1002, 1), [(field, object) for field in fields])
    low = zip(numbers, synsets or numbered(), strict=True)
    rows = [*low, (1001, 'n00001740'), (1002, 'n00001930')]
    for struct, (number, synset) in zip(structs, rows, strict=True):
        children = np.array([[1002, 1]]) if number > 1000 else np.zeros((1, 0))
        struct[0] = (number, synset, 'a word', 'a gloss', children.size, children, 0, 1300)
    buffer = io.BytesIO()
    costs = np.zeros((1000, 1000), np.uint8)
    scipy.io.savemat(buffer, {'synsets': structs, 'cost_matrix': costs}, do_compression=True)
    return buffer.getvalue()


def answers(count, files):
    """Return the text of `count` answers, the right ones for `files`: number -> photograph."""
    synset_of = {data: synset for synset, data in photographs.sample(8)}
    lines = [1 + i * 7 % 1000 for i in range(count)]
    for number, data in files.items():
        lines[number - 1] = numbered().index(synset_of[data]) + 1
    return ''.join(f'{line}\n' for line in lines)


def devkit(meta_mat, text):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        photographs.add(tar, 'devkit-1.0/readme.txt', b'documentation')
        photographs.add(tar, 'devkit-1.0/data/meta.mat', meta_mat)
        name = 'devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt'
        photographs.add(tar, name, text.encode())
    return buffer.getvalue()


def chosen():
    """Return split -> (name -> photograph) as they must be read."""
    sample = photographs.sample(8)
    train = {f'{synset}_{10 - i}.JPEG': data for i, (synset, data) in enumerate(sample)}
    train[f'{sample[0][0]}_{ZIPPED}.JPEG'] = sample[0][1]
    train[f'{sample[1][0]}_{BLANK}.JPEG'] = sample[1][1]
    validation = {1: sample[3][1], 50_000: sample[2][1]}
    test = {7: sample[5][1], 150_000: sample[4][1], 1000: sample[6][1]}
    return {
        'train': train,
        'validation': {f'ILSVRC2010_val_{n:08d}.JPEG': d for n, d in validation.items()},
        'test': {f'ILSVRC2010_test_{n:08d}.JPEG': d for n, d in test.items()},
    }, (validation, test)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('archives')
    splits, (validation, test) = chosen()
    stored = {split: dict(files) for split, files in splits.items()}
    blank = encoded(photographs.sample(8)[7][1], 'JPEG')
    patch = [('patch_images/readme', b'not an image'), ('patch_images/val/x.JPEG', b'')]
    for split, files in stored.items():
        for name, data in files.items():
            if ZIPPED in name:
                files[name] = gzip.compress(data)
            if BLANK in name or name == BLANK_TEST:
                files[name] = blank
                patch.append((f'patch_images/{split}/{name}', data))
    inner = [
        (f'{s}.tar', tar_bytes([(n, d) for n, d in stored['train'].items() if n[:9] == s]))
        for s in numbered()
        if any(n[:9] == s for n in stored['train'])
    ]
    (folder / FILES[0]).write_bytes(tar_bytes(inner))
    in_folder = [(f'val/{name}', data) for name, data in stored['validation'].items()]
    (folder / FILES[1]).write_bytes(tar_bytes(in_folder))
    (folder / FILES[2]).write_bytes(tar_bytes(stored['test'].items()))
    (folder / 'patch_images.tar').write_bytes(tar_bytes(patch))
    (folder / DEVKIT).write_bytes(devkit(meta(), answers(50_000, validation)))
    (folder / TEST_ANSWERS).write_text(answers(150_000, test))
    return folder


def run(source, data_dir, *flags):
    command = ['imagenet', '--year=2010', f'--source={source}', f'--data_dir={data_dir}']
    return prepare.main([*command, '--workers=1', *flags])


def read(data_dir):
    builder: Any = tfds.builder_from_directory(data_dir.joinpath(*DIRECTORY))
    return builder


def copy(source, folder, **changed):
    """Link to the files of `source`; those in `changed` are others, or missing."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in changed:
            (folder / path.name).symlink_to(path)
    for name, data in changed.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


def test_labels_order_and_pixels(source, tmp_path):
    assert run(source, tmp_path, '--allow_subset') == 0
    builder = read(tmp_path)
    classes = sorted(numbered())
    assert builder.info.features['label'].names == classes
    synset_of = {data: synset for synset, data in photographs.sample(8)}
    for split, files in chosen()[0].items():
        records = builder.as_data_source(split)
        assert len(records) == len(files)
        for (_, data), record in zip(sorted(files.items()), records, strict=True):
            assert classes[record['label']] == synset_of[data]
            np.testing.assert_array_equal(record['image'], expected(data), strict=True)
    report = json.loads(tmp_path.joinpath(*DIRECTORY, 'report.json').read_text())
    first, second = (synset for synset, _ in photographs.sample(2))
    assert report['names']['train']['gzip'] == [f'{first}_{ZIPPED}.JPEG']
    assert report['settings']['patched'] == [f'{second}_{BLANK}.JPEG', BLANK_TEST]
    assert report['ignored'] == {'patch without its image': ['x.JPEG']}


def test_without_the_patch_the_archives_are_taken(source, tmp_path):
    folder = copy(source, tmp_path / 'source', **{'patch_images.tar': None})
    assert run(folder, tmp_path, '--allow_subset') == 0
    blank = expected(encoded(photographs.sample(8)[7][1], 'JPEG'))
    image = read(tmp_path).as_data_source('test')[0]['image']
    np.testing.assert_array_equal(image, blank, strict=True)


def refused(capsys, source, tmp_path, *words, flags=('--allow_subset',)):
    assert run(source, tmp_path / 'data', *flags) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    for word in words:
        assert str(word) in errors, errors
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize('missing', [*FILES, DEVKIT, TEST_ANSWERS])
def test_a_missing_file(source, tmp_path, capsys, missing):
    folder = copy(source, tmp_path / 'source', **{missing: None})
    refused(capsys, folder, tmp_path, folder / missing, 'is missing', '--source', *FILES, DEVKIT)


def test_a_wrong_number_of_images(source, tmp_path, capsys):
    refused(capsys, source, tmp_path, 'has 8 synsets, not 1000', '--allow_subset', flags=())


@pytest.mark.parametrize(
    ('file', 'data', 'words'),
    [
        (DEVKIT, b'not this', ('cannot read', DEVKIT)),
        (DEVKIT, gzip.compress(b'not this', mtime=0), ('cannot read', DEVKIT)),
        (DEVKIT, tar_bytes([('devkit-1.0/readme.txt', b'')]), (DEVKIT, 'data/meta.mat')),
        (DEVKIT, devkit(b'not this' * 100, '1\n'), (DEVKIT, 'is not the development kit')),
        (TEST_ANSWERS, b'1\n2\n', ('has 2 answers for test, not 150000', TEST_ANSWERS)),
        (TEST_ANSWERS, b'1001\n' * 150_000, ('answers that are not 1 to 1000',)),
        (TEST_ANSWERS, b'0\n' * 150_000, ('answers that are not 1 to 1000',)),
        (TEST_ANSWERS, b'dog\n', (TEST_ANSWERS, "'dog'")),
        (FILES[2], tar_bytes([('ILSVRC2010_test_00150001.JPEG', b'')]), ('test_00150001',)),
        (FILES[1], tar_bytes([(BLANK_TEST, b'')]), (f'{BLANK_TEST!r} is not', FILES[1])),
        (FILES[0], tar_bytes([('n00001740.tar', b'')]), ("'n00001740.tar' is not",)),
    ],
)
def test_files_that_do_not_belong(source, tmp_path, capsys, file, data, words):
    folder = copy(source, tmp_path / 'source', **{file: data})
    refused(capsys, folder, tmp_path, *words)


@pytest.mark.parametrize(
    ('numbers', 'synsets', 'words'),
    [
        ([*range(1, 1000), 2000], None, 'KeyError: 1000'),
        ([*range(1, 1000), 1], None, 'KeyError: 1000'),
        (range(1, 1001), ['n00000001'] * 1000, 'has a synset with two numbers'),
    ],
)
def test_a_kit_whose_numbers_are_not_those_of_1000_synsets(
    source, tmp_path, capsys, numbers, synsets, words
):
    kit = devkit(meta(numbers, synsets), '1\n' * 50_000)
    folder = copy(source, tmp_path / 'source', **{DEVKIT: kit})
    refused(capsys, folder, tmp_path, DEVKIT, words)
