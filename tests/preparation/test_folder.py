"""`prepare folder`: folders and archives of classes, how they are split, what is left aside."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.preparation import archives, layout, listing
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


def zip_bytes(files):
    """Return a zip of (name, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def write(path, data):
    path.write_bytes(data)
    return path


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
@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar', 'tar.xz', 'tar.gz', 'txz', 'tbz2'])
def test_train_and_test(tmp_path, kind, above):
    files = {above + name: data for name, data in reversed(BOTH.items())}
    source = tmp_path / f'source.{kind}'
    if kind == 'folder':
        write_folder(source, files)
    elif kind == 'zip':
        source.write_bytes(zip_bytes(files.items()))
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
    write_folder(source, {'train/ant/notes.txt': b'', 'labels.csv': b''})
    outside = write_folder(tmp_path / 'outside', {'secret/x.png': png(99)})
    (source / 'train/ant/link.png').symlink_to(outside / 'secret/x.png')
    (source / 'linked').symlink_to(outside / 'secret')
    (source / 'train/bee/dangling.png').symlink_to(tmp_path / 'nothing')
    (source / 'train/bee/itself.png').symlink_to('itself.png')
    (source / 'train/README').symlink_to(outside / 'secret/x.png')
    os.mkfifo(source / 'train/ant/pipe.png')
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    check_both(splits)
    bee = [f'train/bee/{name}.png' for name in ('dangling', 'itself')]
    assert report['ignored'] == {
        'link': ['linked', 'train/README', 'train/ant/link.png', *bee],
        'no image': ['labels.csv', 'train/ant/notes.txt'],
        'no file': ['train/ant/pipe.png'],
    }


HIDDEN = {
    '.DS_Store': b'x',
    '.Trash-1000/files/ant/0.png': png(90),
    '__MACOSX/train/ant/._0.png': b'x',
    '$RECYCLE.BIN/0.png': png(91),
    'System Volume Information/x': b'x',
    'lost+found/0.png': png(91),
    'train/.ipynb_checkpoints/0-checkpoint.png': png(92),
    'train/@eaDir/0.png/thumb.png': png(93),
    'train/ant/._0.png': b'x',
    'train/ant/.cache/deep/0.png': png(94),
    'train/bee/Thumbs.db': b'x',
    'test/bee/desktop.ini': b'x',
}


@pytest.mark.parametrize('kind', ['folder', 'tar', 'zip'])
def test_hidden_and_system_files_are_ignored_and_counted(tmp_path, capsys, kind):
    source = tmp_path / f'source.{kind}'
    files = HIDDEN | BOTH
    if kind == 'folder':
        write_folder(source, files)
    else:
        source.write_bytes({'tar': tar_bytes, 'zip': zip_bytes}[kind](files.items()))
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    check_both(splits)
    tops = ['.Trash-1000', '__MACOSX', '$RECYCLE.BIN', 'System Volume Information', 'lost+found']
    tops += ['train/.ipynb_checkpoints', 'train/@eaDir', 'train/ant/.cache']
    files = ['.DS_Store', 'train/ant/._0.png', 'train/bee/Thumbs.db', 'test/bee/desktop.ini']
    assert report['ignored'] == {'hidden or system': sorted(tops + files)}
    assert 'not used: 12 hidden or system, for example $RECYCLE.BIN' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('extra', 'reason'),
    [
        ({'train/cow': None}, 'cow (empty)'),
        ({'train/cow': None, 'test/cow/0.png': png(0)}, 'cow (only in test)'),
        ({'test/cow': None}, 'cow (empty)'),
        ({'train/aa/0.heic': b'', 'train/aa/1.heic': b''}, 'aa (only 2 .heic)'),
        ({'train/aa/0.png': '/nothing'}, 'aa (only 1 link)'),
        ({'train/aa/.0.png': png(0)}, 'aa (only 1 hidden or system)'),
        ({'train/aa': '/nothing'}, '--follow_links'),
        ({'train/a': None, 'train/b': None, 'train/c/x.csv': b''}, 'a (empty), b (empty), c (only'),
    ],
)
@pytest.mark.parametrize('kind', ['folder', 'tar'])
def test_a_class_without_training_images(tmp_path, capsys, kind, extra, reason):
    source = tmp_path / 'source'
    write_folder(source, BOTH)
    for name, data in extra.items():
        path = source / name
        path.parent.mkdir(exist_ok=True)
        if data is None:
            path.mkdir()
        elif isinstance(data, str):
            path.symlink_to(data)
        else:
            path.write_bytes(data)
    if kind == 'tar':
        packed = tmp_path / 'source.tar'
        subprocess.run(['tar', '-cf', packed, '-C', source, '.'], check=True)
        source = packed
    refused(capsys, source, tmp_path, f'{source} has no training images of', reason, '--skip_empty')
    assert run(source, tmp_path, '--skip_empty') == 0
    splits, report = read(tmp_path)
    check_both(splits)
    assert report['settings']['skip_empty'] is True
    left_out = {name for names in report['ignored'].values() for name in names}
    assert left_out == {name for name in extra} | {'/'.join(n.split('/')[:2]) for n in extra}


def test_classes_are_printed_and_reported_before_anything_is_decoded(tmp_path, capsys):
    files = BOTH | {'train/cow/0.png': png(1), 'test/cow/0.txt': b'', 'train/ant/9.png': b'broken'}
    source = write_folder(tmp_path / 'source', files)
    assert run(source, tmp_path) == 2
    output, errors = capsys.readouterr()
    assert '1 images cannot be used' in errors
    assert output.splitlines() == [
        '3 classes: ant (train 4, test 3), bee (train 3, test 3), cow (train 1, test 0)',
        '1 of them without test images: cow',
    ]
    report = json.loads((tmp_path / 'own/1.0.0/report.json').read_text())
    assert report['images_by_class'] == {
        'ant': {'train': 4, 'test': 3},
        'bee': {'train': 3, 'test': 3},
        'cow': {'train': 1, 'test': 0},
    }
    many = write_folder(tmp_path / 'many', tree((), classes='abcdefghij', count=1))
    assert run(many, tmp_path / 'other', '--eval_fraction=0') == 0
    line = ', '.join(f'{name} (train 1)' for name in 'abcde')
    assert capsys.readouterr().out.splitlines()[0] == (
        f'10 classes: {line}, ..., i (train 1), j (train 1)'
    )


def test_a_class_whose_images_are_all_broken(tmp_path, capsys):
    files = BOTH | {'train/cow/0.png': b'x', 'train/cow/1.png': b'y', 'train/ant/9.png': b'z'}
    source = write_folder(tmp_path / 'source', files)
    refused(
        capsys, source, tmp_path, 'no training image of cow can be used', flags=['--skip_broken']
    )
    assert not list((tmp_path / 'refused').rglob('features.json'))
    (source / 'train/cow/2.png').write_bytes(png(1))
    assert run(source, tmp_path, '--skip_broken') == 0
    assert [name for name, _ in read(tmp_path)[0]['train']] == ['ant'] * 3 + ['bee'] * 3 + ['cow']


@pytest.mark.parametrize('name', ['train/ant/0.txt', 'ant/0.heic', 'ant'])
def test_folders_without_images_beside_a_stray_image(tmp_path, capsys, name):
    """The class would be `outer`, and what its folders were meant to be would be lost."""
    source = write_folder(tmp_path / 'source', {'outer/stray.png': png(0)})
    if '.' in name:
        write_folder(source, {f'outer/{name}': b''})
    else:
        (source / 'outer' / name).mkdir()
    flags, top = ['--eval_fraction=0'], f'outer/{name.split("/")[0]}'
    refused(capsys, source, tmp_path, f'such as {top};', '--skip_empty', flags=flags)
    assert run(source, tmp_path, '--skip_empty', *flags) == 0
    assert read(tmp_path)[1]['ignored']['folder without images'] == [top]


def test_a_folder_without_images_beside_an_outer_one(tmp_path, capsys):
    """The class would be `deeper`."""
    source = write_folder(tmp_path / 'source', {'ant/deeper/0.png': png(0), 'bee/0.heic': b''})
    flags = ['--eval_fraction=0']
    refused(capsys, source, tmp_path, 'such as bee;', '--skip_empty', flags=flags)
    assert run(source, tmp_path, '--skip_empty', *flags) == 0
    assert read(tmp_path)[1]['ignored']['folder without images'] == ['bee']


def test_no_class_loses_all_its_images_to_the_test_split(tmp_path, capsys):
    source = write_folder(tmp_path / 'source', tree((), count=4) | {'cow/0.png': png(1)})
    flags = ['--eval_fraction=0.6']
    refused(capsys, source, tmp_path, 'leaves no training image of cow', flags=flags)


def test_a_link_within_the_source_is_followed(tmp_path):
    source = write_folder(tmp_path / 'source', BOTH)
    (source / 'train/bee/3.png').symlink_to(source / 'train/ant/0.png')
    assert run(source, tmp_path) == 0
    label, image = read(tmp_path)[0]['train'][-1]
    assert label == 'bee'
    np.testing.assert_array_equal(image, pixels(BOTH['train/ant/0.png']))


def test_links_out_of_the_source_are_followed_on_request(tmp_path, capsys):
    outside = write_folder(tmp_path / 'outside', {'cow/0.png': png(99), '1.png': png(98)})
    source = write_folder(tmp_path / 'source', BOTH)
    (source / 'train/cow').symlink_to(outside / 'cow')
    (source / 'train/bee/9.png').symlink_to(outside / '1.png')
    refused(capsys, source, tmp_path, 'cow (only 1 link)', '--follow_links')
    (source / 'train/ant/loop').symlink_to(source)
    (source / 'test/other').symlink_to(source / 'train')  # a class of that name would be too deep
    refused(capsys, source, tmp_path, 'test/other/', flags=['--follow_links'])
    (source / 'test/other').unlink()
    assert run(source, tmp_path, '--follow_links') == 0
    splits, report = read(tmp_path)
    train = [(name.split('/')[1], data) for name, data in BOTH.items() if name.startswith('train')]
    check(splits['train'], [*train, ('bee', png(98)), ('cow', png(99))])
    assert report['ignored'] == {'link': ['train/ant/loop']}


def unpacked(archive, folder):
    """Return a folder into which `tar` has unpacked an archive."""
    folder.mkdir()
    subprocess.run(['tar', '-xf', archive, '-C', folder], check=True)
    return folder


def test_links_and_repeated_members_are_what_tar_makes_of_them(tmp_path):
    source = tmp_path / 'source.tar'
    members = [
        ('train/ant/first.png', b'', {'type': tarfile.SYMTYPE, 'linkname': '../bee/0.png'}),
        *((name, data, {}) for name, data in BOTH.items()),
        ('train/ant/hard.png', b'', {'type': tarfile.LNKTYPE, 'linkname': './train/bee/0.png'}),
        ('train/ant/soft.png', b'', {'type': tarfile.SYMTYPE, 'linkname': '../../by/0.png'}),
        ('train/ant/linked.png', b'', {'type': tarfile.LNKTYPE, 'linkname': 'train/ant/soft.png'}),
        ('by', b'', {'type': tarfile.SYMTYPE, 'linkname': 'train/bee'}),
        ('./train//bee/./0.png', png(70), {}),  # replaces the first one, except for the hard link
        ('test/ant/0.png', png(71), {}),
    ]
    with tarfile.open(source, 'w') as tar:
        for name, data, fields in members:
            photographs.add(tar, name, data, **fields)
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    assert report['ignored'] == {
        'link': ['by'],
        'replaced by a later member': ['test/ant/0.png', 'train/bee/0.png'],
    }
    assert run(unpacked(source, tmp_path / 'unpacked'), tmp_path / 'again') == 0
    expected = read(tmp_path / 'again')[0]
    for split, found in splits.items():
        assert [name for name, _ in found] == [name for name, _ in expected[split]]
        for (_, image), (_, other) in zip(found, expected[split], strict=True):
            np.testing.assert_array_equal(image, other, strict=True)
    counts = [sum(np.array_equal(image, pixels(png(70))) for _, image in splits['train'])]
    assert counts == [4]  # itself and what is linked softly, but not hard.png


def test_links_in_a_tar_that_lead_nowhere(tmp_path, capsys):
    source = tmp_path / 'source.tar'
    targets = {'lost': 'gone.png', 'out': '/etc/passwd', 'up': '../../../x.png', 'me': 'me.png'}
    with tarfile.open(source, 'w') as tar:
        for name, data in BOTH.items():
            photographs.add(tar, name, data)
        for name, target in targets.items():
            fields = {'type': tarfile.SYMTYPE, 'linkname': target}
            photographs.add(tar, f'train/ant/{name}.png', b'', **fields)
    refused(capsys, source, tmp_path, '2 images cannot be used')
    assert run(source, tmp_path, '--skip_broken') == 0
    splits, report = read(tmp_path)
    check_both(splits)
    assert report['ignored'] == {'link': ['train/ant/out.png', 'train/ant/up.png']}
    assert report['names']['train']['broken'] == [
        "train/ant/lost.png: a link to 'gone.png', which is not in the archive",
        "train/ant/me.png: a link to 'me.png', which is not in the archive",
    ]


def test_a_member_below_a_link_is_refused(tmp_path, capsys):
    source = tmp_path / 'source.tar'
    with tarfile.open(source, 'w') as tar:
        for name, data in BOTH.items():
            photographs.add(tar, name, data)
        photographs.add(tar, 'train/cow', b'', type=tarfile.SYMTYPE, linkname='/tmp')
        photographs.add(tar, 'train/cow/0.png', png(0))
    refused(capsys, source, tmp_path, "'train/cow' both as a folder and as a file or a link")


COW = tar_bytes({'train/cow/0.png': png(80), 'test/cow/0.png': png(81)}.items())


@pytest.mark.parametrize(
    ('name', 'data', 'words'),
    [
        ('a.tar', lambda tar: tar + COW, 'continues at byte'),
        ('a.tar', lambda tar: tar + bytes(5120) + b'x', 'continues at byte'),
        ('a.tar.gz', lambda tar: gzip.compress(tar + COW), 'continues at byte'),
        ('a.tar.gz', lambda tar: gzip.compress(tar) + gzip.compress(COW), 'continues at byte'),
        ('a.tar.gz', lambda tar: gzip.compress(tar) + COW, 'cannot decompress'),
        ('a.tar.xz', lambda tar: lzma.compress(tar) + lzma.compress(COW), 'continues at byte'),
        ('a.tar.xz', lambda tar: lzma.compress(tar) + COW, 'cannot decompress'),
        ('a.tar.bz2', lambda tar: bz2.compress(tar) + bz2.compress(COW), 'continues at byte'),
        ('a.tar.bz2', lambda tar: bz2.compress(tar) + gzip.compress(COW), 'cannot decompress'),
        ('a.tar.gz', lambda tar: gzip.compress(gzip.compress(tar)), 'is no tar'),
    ],
)
def test_an_archive_that_continues_behind_its_end(tmp_path, capsys, name, data, words):
    source = write(tmp_path / name, data(tar_bytes(BOTH.items())))
    refused(capsys, source, tmp_path, words, source)
    assert not list((tmp_path / 'refused').rglob('source_*'))


@pytest.mark.parametrize('compress', [gzip.compress, lzma.compress, bz2.compress])
def test_several_streams_of_one_tar_with_zeros_between(tmp_path, compress):
    tar = tar_bytes(BOTH.items())
    parts = [compress(tar[:5000]), compress(tar[5000:5001]), compress(tar[5001:])]
    source = write(tmp_path / 'source', b''.join(part + bytes(8) for part in parts))
    assert run(source, tmp_path) == 0
    check_both(read(tmp_path)[0])


@pytest.mark.parametrize(
    ('name', 'pack'),
    [
        ('a.tar', lambda files: gzip.compress(tar_bytes(files))),
        ('a.tar.gz', tar_bytes),
        ('a.tgz', lambda files: lzma.compress(tar_bytes(files))),
        ('a.zip', lambda files: bz2.compress(tar_bytes(files))),
        ('a.tar', zip_bytes),
    ],
)
def test_what_packs_the_source_is_known_by_its_content(tmp_path, name, pack):
    assert run(write(tmp_path / name, pack(BOTH.items())), tmp_path) == 0
    check_both(read(tmp_path)[0])


def test_names_that_are_not_utf_8_or_not_printable(tmp_path, capsys):
    names = ['train/ant/\udce9.png', 'train/ant/a\nb"\'.png', 'train/ant/\x1b[31m.txt']
    source = write_folder(tmp_path / 'source', BOTH | {name: png(60) for name in names})
    packed = tmp_path / 'source.tar'
    subprocess.run(['tar', '-cf', packed, '-C', source, '.'], check=True)
    for kind in source, packed:
        assert run(kind, tmp_path / f'of{kind.suffix}') == 0
        report = read(tmp_path / f'of{kind.suffix}')[1]
        assert report['images'] == {'train': 8, 'test': 6}
        assert report['ignored'] == {'no image': [names[2]]}
        assert r'1 no image, for example train/ant/\x1b[31m.txt' in capsys.readouterr().out
    write_folder(source, {'train/b\udce9\n/0.png': png(1)})
    refused(capsys, source, tmp_path, r'the name b\udce9\n of a class is not UTF-8')


@pytest.mark.parametrize(
    ('folders', 'splits'),
    [
        (('Train', 'Test'), ('train', 'test')),
        (('TRAIN', 'Validation'), ('train', 'validation')),
        (('train', 'valid'), ('train', 'validation')),
        (('training', 'testing'), ('train', 'test')),
        (('train', 'Val'), ('train', 'val')),
    ],
)
def test_other_names_of_the_folders_of_splits(tmp_path, folders, splits):
    source = write_folder(tmp_path / 'source', tree(*((folder,) for folder in folders)))
    assert run(f'{source}//./', tmp_path) == 0
    found, report = read(tmp_path)
    assert report['images'] == dict.fromkeys(splits, 6)
    for folder, split in zip(folders, splits, strict=True):
        files = tree(*((f,) for f in folders)).items()
        check(found[split], [(n.split('/')[1], d) for n, d in files if n.startswith(f'{folder}/')])


def tiny():
    """Return (name -> JPEG, test images) like tiny-imagenet-200: the class is in the pixels."""
    top = 'tiny-imagenet-200'
    files, lines = {f'{top}/wnids.txt': b'n02\nn01\n', f'{top}/words.txt': b'n01\tant\n'}, []
    for label, name in enumerate(('n01', 'n02')):
        files[f'{top}/train/{name}/{name}_boxes.txt'] = b''
        for i in range(3):
            image = photographs.piece(10 * label + i, (8, 8))
            files[f'{top}/train/{name}/images/{name}_{i}.JPEG'] = image
            number = 2 * i + 1 - label  # alternating classes
            files[f'{top}/val/images/val_{number}.JPEG'] = image
            lines.append(f'val_{number}.JPEG\t{name}\t0\t0\t7\t7\n')
    files[f'{top}/val/val_annotations.txt'] = ''.join(lines).encode()
    return files | {
        f'{top}/test/images/test_{i}.JPEG': photographs.piece(i, (8, 8)) for i in (0, 1)
    }


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_tiny_imagenet(tmp_path, capsys, kind):
    files = tiny()
    if kind == 'folder':
        source = write_folder(tmp_path / 'source', files)
    else:
        pack = {'tar': tar_bytes, 'zip': zip_bytes}[kind]
        source = write(tmp_path / f'source.{kind}', pack(files.items()))
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    expected = [
        (name, photographs.piece(10 * label + i, (8, 8)))
        for label, name in enumerate(('n01', 'n02'))
        for i in range(3)
    ]
    assert set(splits) == {'train', 'val'}
    check(splits['train'], expected)
    check(splits['val'], expected)
    assert len(report['ignored']['without a label']) == 2
    assert [name.rpartition('/')[2] for name in report['ignored']['no image']] == [
        *('n01_boxes.txt', 'n02_boxes.txt', 'wnids.txt', 'words.txt')
    ]
    if kind == 'folder':
        labels = source / 'tiny-imagenet-200/val/val_annotations.txt'
        whole = labels.read_text()
        labels.write_text(whole.partition('\n')[2])
        refused(capsys, source, tmp_path, 'val_1.JPEG has no line in val_annotations.txt')
        labels.write_text(f'{whole}val_7.JPEG n01\n')
        refused(capsys, source, tmp_path, 'line 7 of', 'val_annotations.txt')
        labels.write_bytes(b'\xff')
        refused(capsys, source, tmp_path, 'val_annotations.txt', 'as UTF-8 text')
        labels.unlink()
        labels.symlink_to('gone.txt')
        tar = tmp_path / 'source.tar'
        subprocess.run(['tar', '-cf', tar, '-C', source, '.'], check=True)
        refused(capsys, tar, tmp_path, 'val_annotations.txt', "a link to 'gone.txt'")


def test_an_unpacked_imagenet_tree(tmp_path):
    files = tree(('ILSVRC', 'train'), ('ILSVRC', 'val'), classes=('n01440764', 'n01443537'))
    others = {'LOC_synset_mapping.txt': b'', 'ILSVRC/ImageSets/val.txt': b'', 'README': b''}
    source = write_folder(tmp_path / 'source', files | others)
    assert run(source, tmp_path) == 0
    splits, report = read(tmp_path)
    for split, found in splits.items():
        check(found, [(n.split('/')[2], d) for n, d in files.items() if f'/{split}/' in n])
    assert report['ignored'] == {'no image': sorted(others)}


def test_sorting_takes_time_in_proportion_to_the_images():
    """15,000 classes take 2 s; to search a list of them for each image took 26 s."""
    names = [f'{number:05}/{i}.png' for number in range(15_000) for i in range(2)]
    files = {name: archives.Entry(name, 0, 1) for name in names}
    found = listing.Listing('source', False, files, {name[:5] for name in names}, [])
    start = time.process_time()
    result = layout.arrange('source', found, eval_fraction=0.5, seed=0, skip_empty=False)
    assert time.process_time() - start < 10
    assert [item.label for item in result.splits['train']] == list(range(15_000))
    assert [item.label for item in result.splits['test']] == list(range(15_000))


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
        ({'train/ant/a.txt': b'', 'b.tar': b''}, (), ['contains no image, only 1 .tar, 1 .txt']),
        (tree((), count=2), (), ['--eval_fraction=0.1']),
        (tree((), count=2), ('--eval_fraction=0.1',), ['leaves one split empty']),
        (tree(('train',)), (), ['--eval_fraction=0.1']),
        (tree(('test',)), (), ['no train folder']),
        (tree(('test',)) | {'Train/a/0.heic': b''}, (), ['contains test but no image in Train']),
        (BOTH, ('--eval_fraction=0.1',), ['leave out --eval_fraction']),
        (BOTH | {'test/cow/1.png': png(0)}, (), ['no training images of cow']),
        (BOTH | {'train/0.png': png(0)}, (), ['train/0.png, which is in no folder of a class']),
        (BOTH | {'train/ant/deep/0.png': png(0)}, (), ['train/ant/deep/0.png']),
        (BOTH | {'zoo/ant/0.png': png(0)}, (), ['zoo/ant/0.png', 'in none of']),
        (BOTH | tree(('Train',)), (), ['has Train and train for one split']),
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


def test_sources_that_are_not_there(tmp_path, capsys):
    write_folder(tmp_path / 'photographs', {'train/ant/0.png': png(0)})
    for name, words in (
        ('fotographs', f'/fotographs does not exist; did you mean {tmp_path}/photographs?'),
        ('Photographs/train', f'does not exist; did you mean {tmp_path}/photographs?'),
        ('photographs/tain', f'does not exist; did you mean {tmp_path}/photographs/train?'),
        ('zzz', f'{tmp_path}/zzz does not exist; {tmp_path} has no zzz'),
    ):
        refused(capsys, tmp_path / name, tmp_path, words)
    refused(capsys, 'gs://bucket/x', tmp_path, '--source: gs://bucket/x is not a path')


def test_a_folder_that_cannot_be_listed(tmp_path, capsys, monkeypatch):
    source = write_folder(tmp_path / 'source', BOTH)
    real = os.scandir

    def scandir(path):  # root may list everything
        if path == f'{source}/train/bee':
            raise PermissionError(13, 'Permission denied', path)
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    refused(capsys, source, tmp_path, f'cannot list {source}/train/bee (Permission denied)')


def test_archives_that_cannot_be_read(tmp_path, capsys):
    for kind in ('tar', 'tar.xz', 'tar.gz', 'zip', 'rar'):
        source = write(tmp_path / f'source.{kind}', b'not this' * 100)
        refused(capsys, source, tmp_path, source, 'is neither a folder, nor a tar, plain or')
    refused(capsys, write(tmp_path / 'a.tar', b''), tmp_path, 'a.tar is an empty file')
    for compress in (gzip.compress, lzma.compress, bz2.compress):
        whole = compress(tar_bytes(BOTH.items()))
        for cut in (20, len(whole) // 2, len(whole) - 4):
            source = write(tmp_path / 'cut.tar', whole[:cut])
            refused(capsys, source, tmp_path, 'cannot decompress', source)
    assert not list((tmp_path / 'refused').rglob('source_*'))
