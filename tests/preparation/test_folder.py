"""`prepare folder`: folders and tars of classes, how they are split, what is left aside."""

import io
import itertools
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax import prepare
from tests import photographs
from tests.photographs import tar_bytes


def png(seed, size=(8, 8)):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


def tree(*parts, classes=('ant', 'bee'), count=3):
    """Return path -> PNG for each split or none, each class and each of a few names."""
    names = [
        '/'.join(p)
        for part in parts
        for c in classes
        for p in [(*part, c, f'{i}.png') for i in range(count)]
    ]
    return {name: png(seed) for seed, name in enumerate(names)}


BOTH = tree(('train',), ('test',))


def write_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def run(source, data_dir, *flags, name='own', size=0):
    flags = ['--workers=1', f'--name={name}', f'--size={size}', *flags]
    return prepare.main(['folder', f'--source={source}', f'--data_dir={data_dir}', *flags])


def read(data_dir, name='own'):
    """Return split -> [(class, image)], and the report."""
    directory = Path(data_dir) / name / '1.0.0'
    builder: Any = tfds.builder_from_directory(directory)
    classes = builder.info.features['label'].names
    splits = {
        split: [(classes[e['label']], e['image']) for e in builder.as_data_source(split)]
        for split in builder.info.splits
    }
    return splits, json.loads((directory / 'report.json').read_text())


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)).convert('RGB'))


def check(found, files):
    """Hold what was read against (class, bytes)."""
    assert [label for label, _ in found] == [label for label, _ in files]
    for (_, image), (_, data) in zip(found, files, strict=True):
        np.testing.assert_array_equal(image, pixels(data), strict=True)


def check_both(splits):
    assert set(splits) == {'train', 'test'}
    for split, found in splits.items():
        check(found, [(n.split('/')[1], d) for n, d in BOTH.items() if n.startswith(split)])


def refused(capsys, source, tmp_path, *words, flags=(), **fields):
    assert run(source, tmp_path / 'refused', *flags, **fields) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    for word in words:
        assert str(word) in errors, errors


@pytest.mark.parametrize('above', ['', 'a/', 'a/b/'])
@pytest.mark.parametrize('kind', ['folder', 'tar', 'tar.xz', 'tar.gz', 'txz', 'tbz2'])
def test_train_and_test(tmp_path, kind, above):
    files = {above + name: data for name, data in reversed(BOTH.items())}
    source = tmp_path / f'source.{kind}'
    if kind == 'folder':
        write_folder(source, files)
    else:
        packing = {'tar': '', 'txz': 'xz', 'tbz2': 'bz2'}.get(kind, kind[4:])
        with tarfile.open(source, f'w:{packing}') as tar:
            for name, data in files.items():
                photographs.add(tar, name, data)
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    check_both(splits)
    assert report['images'] == {'train': 6, 'test': 6}
    assert report['ignored'] == {}
    assert [path.name for path in (tmp_path / 'own').iterdir()] == ['1.0.0']


def test_one_level_is_divided_by_class(tmp_path):
    files = tree((), count=10)
    source = write_folder(tmp_path / 'source', files)
    flags = ('--eval_fraction=0.2', '--seed=3')
    for data_dir in 'one', 'two':
        assert run(source, tmp_path / data_dir, *flags) == 0
    assert run(source, tmp_path / 'other', '--eval_fraction=0.2', '--seed=4') == 0
    assert run(source, tmp_path / 'none', '--eval_fraction=0') == 0
    one, two, other, none = (read(tmp_path / d)[0] for d in ('one', 'two', 'other', 'none'))
    everything = [(name.split('/')[0], data) for name, data in files.items()]
    check(none['train'], everything)
    assert set(none) == {'train'}

    def names(found):
        by_pixels = {pixels(data).tobytes(): name for name, data in files.items()}
        return [by_pixels[image.tobytes()] for _, image in found]

    assert [c for c, _ in one['test']] == ['ant'] * 2 + ['bee'] * 2
    assert names(one['train']) == sorted(set(files) - set(names(one['test'])))
    assert names(one['test']) == names(two['test']) == sorted(names(two['test']))
    assert names(one['test']) != names(other['test'])


def test_what_is_not_used_is_named(tmp_path):
    source = write_folder(tmp_path / 'source', BOTH)
    write_folder(source, {'train/ant/notes.txt': b'', '.DS_Store': b'', 'train/ant/._0.png': b''})
    outside = write_folder(tmp_path / 'outside', {'secret/x.png': png(99)})
    (source / 'train/ant/link.png').symlink_to(outside / 'secret/x.png')
    (source / 'train/linked').symlink_to(outside / 'secret')
    (source / 'train/bee/dangling.png').symlink_to(tmp_path / 'nothing')
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    check_both(splits)
    assert report['ignored'] == {
        'link': ['train/ant/link.png', 'train/bee/dangling.png', 'train/linked'],
        'no image': ['.DS_Store', 'train/ant/._0.png', 'train/ant/notes.txt'],
    }


def test_a_link_within_the_source_is_followed(tmp_path):
    source = write_folder(tmp_path / 'source', BOTH)
    (source / 'train/bee/3.png').symlink_to(source / 'train/ant/0.png')
    assert run(source, tmp_path) == 0
    label, image = read(tmp_path)[0]['train'][-1]
    assert label == 'bee'
    np.testing.assert_array_equal(image, pixels(BOTH['train/ant/0.png']))


def test_sizes(tmp_path, capsys):
    source = write_folder(tmp_path / 'source', BOTH | {'train/bee/9.png': png(1, (9, 12))})
    refused(capsys, source, tmp_path, 'train/bee/9.png has 12x9 pixels', '8x8', '--size=256')
    assert run(source, tmp_path, size=16) == 0
    label, image = read(tmp_path)[0]['train'][-1]
    assert label == 'bee'
    expected = photographs.expected(png(1, (9, 12)), size=16)
    np.testing.assert_array_equal(image, expected, strict=True)


def like_cifar():
    """Return (name, JPEG file) for 60 small photographs named like those of the archive below."""
    return [
        (f'cifar10_jpeg/test/airplane/{i:04}.jpg', photographs.piece(i, (32, 32), quality=75))
        for i in range(60)
    ]


def cifar():
    """Return (name, JPEG file) for the first 60 images of a real archive."""
    with tarfile.open(photographs.shared_file('cifar10_jpeg.tar.xz')) as tar:
        members = (member for member in tar if member.isfile())
        # Only the beginning is decompressed: test/airplane.
        return [(m.name, tar.extractfile(m).read()) for m in itertools.islice(members, 60)]


@pytest.mark.parametrize('choose', [like_cifar, pytest.param(cifar, marks=pytest.mark.photographs)])
def test_a_slice_of_cifar(tmp_path, choose):
    chosen = choose()
    files = [(n.replace('/test/', '/train/') if i % 3 else n, d) for i, (n, d) in enumerate(chosen)]
    source = tmp_path / 'cifar.tar.xz'
    source.write_bytes(lzma.compress(tar_bytes(files), preset=0))
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    assert report['images'] == {'train': 40, 'test': 20}
    for split, found in splits.items():
        check(found, [(n.split('/')[2], d) for n, d in files if f'/{split}/' in n])
        assert all(image.shape == (32, 32, 3) for _, image in found)


def test_an_unpacked_tar_is_kept_for_the_next_run_after_an_error(tmp_path, capsys):
    source = tmp_path / 'source.tar.gz'
    with tarfile.open(source, 'w:gz') as tar:
        for name, data in (BOTH | {'train/ant/5.png': b'broken'}).items():
            photographs.add(tar, name, data)
    assert run(source, tmp_path) == 2
    assert '1 images cannot be used' in capsys.readouterr().err
    (kept,) = (tmp_path / 'own').glob('source_*.tar')
    assert run(source, tmp_path, '--skip_broken') == 0
    assert 'decompressing' not in capsys.readouterr().out
    assert not kept.exists()
    check_both(read(tmp_path)[0])


@pytest.mark.parametrize(
    ('files', 'flags', 'words'),
    [
        ({}, (), ['contains no image']),
        ({'train/ant/a.txt': b''}, (), ['contains no image']),
        (tree((), count=2), (), ['--eval_fraction=0.1']),
        (tree((), count=2), ('--eval_fraction=0.1',), ['leaves one split empty']),
        (tree(('train',)), (), ['--eval_fraction=0.1']),
        (tree(('test',)), (), ['no train folder']),
        (BOTH, ('--eval_fraction=0.1',), ['leave out --eval_fraction']),
        (BOTH | {'test/cow/1.png': png(0)}, (), ['no training images of cow']),
        (BOTH | {'train/0.png': png(0)}, (), ['train/0.png']),
        (BOTH | {'train/ant/deep/0.png': png(0)}, (), ['train/ant/deep/0.png']),
        (BOTH | {'extra/ant/0.png': png(0)}, (), ['extra']),
        ({'train/a/0.png': b'x', 'test/a/0.png': b'x'}, (), ['no image that can be read']),
        (BOTH, ('--eval_fraction=1',), ['--eval_fraction=1']),
        (BOTH, ('--name=Own',), ["--name='Own'"]),
        (BOTH, ('--name=../own',), ['--name=']),
        (BOTH, ('--size=-1',), ['--size=-1']),
    ],
)
def test_sources_that_cannot_be_used(tmp_path, capsys, files, flags, words):
    (tmp_path / 'source').mkdir()
    source = write_folder(tmp_path / 'source', files)
    refused(capsys, source, tmp_path, *words, flags=flags)
    assert not list((tmp_path / 'refused').rglob('features.json'))


def test_archives_that_cannot_be_read(tmp_path, capsys):
    refused(capsys, tmp_path / 'none', tmp_path, 'No such file', tmp_path / 'none')
    for kind, words in (
        ('tar', 'as a tar'),
        ('tar.xz', 'cannot decompress'),
        ('tar.gz', 'cannot decompress'),
        ('zip', 'neither a folder nor a .tar, .tar.xz, .tar.gz or .tar.bz2; unpack it first'),
    ):
        source = tmp_path / f'source.{kind}'
        source.write_bytes(b'not this' * 100)
        refused(capsys, source, tmp_path, words, source)
    whole = lzma.compress(tar_bytes(BOTH.items()))
    source = tmp_path / 'cut.tar.xz'
    source.write_bytes(whole[: len(whole) // 2])
    refused(capsys, source, tmp_path, 'cannot decompress', source)
    assert not list((tmp_path / 'refused').rglob('source_*'))
