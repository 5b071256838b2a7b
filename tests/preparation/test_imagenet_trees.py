"""`prepare imagenet` from unpacked folders: the records are those of the archives."""

import json
import shutil
from typing import Any

import pytest
import tensorflow_datasets as tfds

from alexnet_jax import prepare
from alexnet_jax.input import sources
from tests import photographs
from tests.photographs import SYNSETS, tar_bytes

DIRECTORY = ('imagenet2012', '5.1.256')
ARCHIVES = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')
KAGGLE = 'ILSVRC/Data/CLS-LOC'
ANSWERS = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text().split()
FIRST, SECOND = SYNSETS[:2]  # validation images of the second come before those of the first


def train():
    """Return name -> photograph, two synsets with two each, in another order than that of names."""
    (_, a), (_, b), (_, c), (_, d), *_ = photographs.sample(5)
    return {
        f'{SECOND}_9.JPEG': c,
        f'{FIRST}_9.JPEG': a,
        f'{FIRST}_10.JPEG': b[: len(b) // 2],  # broken
        f'{SECOND}_10.JPEG': d,
    }


def validation():
    """Return name -> photograph of an image of the second synset and of one of the first."""
    (_, b), (_, c) = photographs.sample(6)[3:5]
    return {image(SECOND): b, image(FIRST): c}


def image(synset):
    return f'ILSVRC2012_val_{ANSWERS.index(synset) + 1:08d}.JPEG'


def synset_of(name):
    return ANSWERS[int(name[15:23]) - 1]


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def archives(folder):
    files = train().items()
    inner = [(f'{s}.tar', tar_bytes([f for f in files if f[0][:9] == s])) for s in (SECOND, FIRST)]
    both = tar_bytes(inner), tar_bytes(validation().items())
    return write(folder, dict(zip(ARCHIVES, both, strict=True)))


def tree(folder, *, flat=False, train_name='train', validation_name='val'):
    names = {f'{train_name}/{name[:9]}/{name}': name for name in train()}
    for name in validation():
        names[f'{validation_name}/{"" if flat else synset_of(name)}/{name}'] = name
    files = train() | validation()
    return write(folder, {path: files[name] for path, name in names.items()})


def unpacked(folder):
    """Write what valprep.sh makes: 1,000 folders for validation, here most of them empty."""
    tree(folder)
    for synset in SYNSETS:
        (folder / 'val' / synset).mkdir(exist_ok=True)
    return folder


def kaggle(folder, changes=None):
    """Write Kaggle's folders; `changes` are lines of its table, by image, None for no line."""
    tree(folder / KAGGLE, flat=True)
    lines = {name[:23]: f'{name[:23]},{synset_of(name)} 85 1 499 272 ' for name in validation()}
    lines |= changes or {}
    text = '\r\n'.join(['ImageId,PredictionString', *filter(None, lines.values())])
    beside = {
        'LOC_val_solution.csv': text.encode(errors='surrogateescape'),
        'LOC_synset_mapping.txt': f'{FIRST} tench, Tinca tinca'.encode(),
        f'ILSVRC/Annotations/CLS-LOC/train/{FIRST}/{FIRST}_9.xml': b'<annotation/>',
        'ILSVRC/ImageSets/CLS-LOC/val.txt': b'ILSVRC2012_val_00000001 1',
        f'{KAGGLE}/test/ILSVRC2012_test_00000001.JPEG': b'',
    }
    return write(folder, beside)


def tree_and_archive(folder):
    tree(folder)
    archives(folder).joinpath(ARCHIVES[0]).unlink()
    shutil.rmtree(folder / 'val')
    return folder


def archive_and_tree(folder):
    tree(folder)
    archives(folder).joinpath(ARCHIVES[1]).unlink()
    shutil.rmtree(folder / 'train')
    return folder


def linked(folder):
    """Write folders of which one split and the synsets of the other are links to another disk."""
    disk = tree(folder / 'disk' / 'elsewhere')
    (folder / 'source' / 'train').mkdir(parents=True)
    (folder / 'source' / 'val').symlink_to(disk / 'val')
    for path in (disk / 'train').iterdir():
        (folder / 'source' / 'train' / path.name).symlink_to(path)
    return folder / 'source'


def outer(folder):
    tree(folder / 'ILSVRC2012', flat=True, train_name='Train', validation_name='validation')
    return folder


def run(source, data_dir, *flags):
    command = ['imagenet', f'--source={source}', f'--data_dir={data_dir}', '--workers=1']
    return prepare.main([*command, '--allow_subset', *flags])


def read(data_dir):
    """Return the files of records, the fingerprint with which runs compare data, and the report."""
    directory = data_dir.joinpath(*DIRECTORY)
    config = sources.DataConfig.as_stored(
        'imagenet2012', str(data_dir), eval_split='validation', read_threads=1
    )
    found = sources.open_dataset(config)
    records = {path.name: path.read_bytes() for path in directory.glob('*.array_record*')}
    return records, found.fingerprint(), json.loads((directory / 'report.json').read_text())


@pytest.fixture(scope='module')
def of_archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp('archives')
    assert run(archives(folder / 'source'), folder, '--skip_broken') == 0
    builder: Any = tfds.builder_from_directory(folder.joinpath(*DIRECTORY))
    labels = [record['label'] for record in builder.as_data_source('train')]
    assert labels == [0, 1, 1]
    return read(folder)


@pytest.mark.parametrize(
    ('write_source', 'below'),
    [
        (tree, ''),
        (unpacked, ''),
        (outer, ''),
        (outer, 'ILSVRC2012'),
        (kaggle, ''),
        (kaggle, 'ILSVRC'),
        (kaggle, KAGGLE),
        (tree_and_archive, ''),
        (archive_and_tree, ''),
        (linked, ''),
    ],
)
def test_records_are_those_of_the_archives(of_archives, tmp_path, write_source, below):
    source = write_source(tmp_path / 'source') / below
    assert run(source, tmp_path, '--skip_broken') == 0
    records, fingerprint, report = read(tmp_path)
    assert records == of_archives[0]
    assert fingerprint == of_archives[1]
    for key in report.keys() - {'ignored', 'settings'}:
        assert report[key] == of_archives[2][key]


def test_what_is_no_image_is_left_out_and_reported(of_archives, tmp_path, capsys):
    source = kaggle(tmp_path / 'source')
    junk = {
        f'{KAGGLE}/.DS_Store': 'hidden or system',
        f'{KAGGLE}/train/._{FIRST}': 'hidden or system',
        f'{KAGGLE}/train/{FIRST}/._{FIRST}_9.JPEG': 'hidden or system',
        f'{KAGGLE}/train/{FIRST}/Thumbs.db': 'hidden or system',
        f'{KAGGLE}/train/{FIRST}/notes.txt': 'no image',
        f'{KAGGLE}/val/valprep.sh': 'no image',
    }
    write(source, dict.fromkeys(junk, b''))
    write(source, {f'{KAGGLE}/val/@eaDir/{image(FIRST)}': b''})
    (source / KAGGLE / 'train' / SYNSETS[7]).mkdir()
    (source / KAGGLE / 'val' / image(SYNSETS[4])).symlink_to(tmp_path / 'gone')
    junk |= {
        f'{KAGGLE}/val/@eaDir': 'hidden or system',
        f'{KAGGLE}/train/{SYNSETS[7]}': 'folder without images',
        f'{KAGGLE}/val/{image(SYNSETS[4])}': 'link',
        f'{KAGGLE}/test/ILSVRC2012_test_00000001.JPEG': 'without a label',
    }
    assert run(source, tmp_path, '--skip_broken') == 0
    records, _, report = read(tmp_path)
    assert records == of_archives[0]
    assert {n: kind for kind, names in report['ignored'].items() for n in names} == junk
    assert 'not used: 5 hidden or system, for example ' in capsys.readouterr().out


def refused(capsys, source, tmp_path, *words, flags=('--allow_subset',)):
    command = ['imagenet', f'--source={source}', f'--data_dir={tmp_path / "data"}', '--workers=1']
    assert prepare.main([*command, *flags]) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    for word in words:
        assert str(word) in errors, errors
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        (f'train/{FIRST}/{SECOND}_7.JPEG', (f'train/{FIRST}/{SECOND}_7.JPEG is not an image of',)),
        (f'train/{FIRST}/{FIRST}_7.jpg', (f'{FIRST}_7.jpg is not an image of that synset',)),
        (f'train/{FIRST}_7.JPEG', (f'train/{FIRST}_7.JPEG is in no folder of a synset',)),
        ('train/n00000001/n00000001_1.JPEG', ('train/n00000001 is not the folder of a synset',)),
        (f'train/{FIRST}/images/{FIRST}_1.JPEG', (f'{FIRST}/images is not the folder of',)),
        ('train/dog/notes.txt', ('train/dog is not the folder of a synset', 'prepare folder')),
        (f'val/{FIRST}/{FIRST}_1.JPEG', (f'{FIRST}_1.JPEG is not an image ILSVRC2012_val_N',)),
        ('val/ILSVRC2012_val_00050001.JPEG', ('val_00050001.JPEG is not', 'up to 50000')),
        ('val/ILSVRC2012_val_00000000.JPEG', ('val_00000000.JPEG is not',)),
        (f'val/{FIRST}/{image(SYNSETS[4])}', (image(SYNSETS[4]), f'is an image of {SYNSETS[4]}')),
        (f'val/{image(FIRST)}', (f'val/{image(FIRST)} occurs twice',)),
        ('validation/x', ('has val and validation for one split',)),
    ],
)
def test_files_that_do_not_belong(tmp_path, capsys, name, words):
    source = write(tree(tmp_path / 'source'), {name: b''})
    refused(capsys, source, tmp_path, *words)


def test_a_wrong_number_of_files(tmp_path, capsys):
    source = tree(tmp_path / 'source')
    refused(capsys, source, tmp_path, source / 'train', 'has 2 synsets, not 1000', flags=())


def test_a_missing_split(tmp_path, capsys):
    source = tree(tmp_path / 'source')
    (source / 'val').rename(tmp_path / 'val')
    words = 'is missing', 'no folder val or validation', 'image-net.org'
    refused(capsys, source, tmp_path, source / ARCHIVES[1], *words)
    write(source / 'val', {ARCHIVES[1]: b'not unpacked'})
    refused(capsys, source, tmp_path, source / 'val', f'has no images, only {ARCHIVES[1]}')


def test_sources_without_imagenet(tmp_path, capsys):
    source = tree(tmp_path / 'source')
    accepted = *ARCHIVES, 'train/SYNSET/*.JPEG', 'val/SYNSET/*.JPEG', KAGGLE, 'a tfds imagenet2012'
    (tmp_path / 'empty').mkdir()
    refused(capsys, tmp_path / 'empty', tmp_path, tmp_path / 'empty', *accepted)
    refused(capsys, tmp_path / 'gone', tmp_path, tmp_path / 'gone', 'does not exist')
    original = write(tmp_path, {ARCHIVES[0]: b''}) / ARCHIVES[0]
    refused(capsys, original, tmp_path, original, 'is not a folder; name its folder')
    refused(capsys, source / 'train', tmp_path, 'has folders of synsets; name the folder above it')
    tree(source / 'a')
    tree(source / 'b').joinpath('train').rename(source / 'c')
    for name in 'train', 'val':
        shutil.rmtree(source / name)
    refused(capsys, source, tmp_path, source, 'has splits in a and in b; name one')
    refused(capsys, tree(tmp_path / 'other'), tmp_path, '2012 only', flags=('--year=2010',))


@pytest.mark.parametrize(
    'name',
    [
        'imagenet-object-localization-challenge.zip',
        'imagenet-object-localization-challenge.tar.gz',
        'imagenet_object_localization_patched2019.tar.gz',
    ],
)
def test_kaggles_archive_must_be_unpacked(tmp_path, capsys, name):
    source = write(tmp_path / 'source', {name: b'', 'LOC_val_solution.csv': b''})
    refused(capsys, source, tmp_path, source / name, 'is packed; unpack it')
    refused(capsys, source / name, tmp_path, source / name, 'is not a folder; unpack it')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (f'{image(FIRST)[:23]},{SECOND} 1 2 3 4', (f'is {SECOND}, but', FIRST, 'line 3')),
        (image(FIRST)[:23], ('is without a synset, but',)),
        (None, (f'has no line for {image(FIRST)[:23]}',)),
        (f'ILSVRC2012_val_00050001,{FIRST} 1 2 3 4', ('00050001 is not a validation image',)),
        ('\udcff', ('cannot read', 'utf-8')),
    ],
)
def test_a_table_of_kaggle_that_disagrees(tmp_path, capsys, change, words):
    source = kaggle(tmp_path / 'source', {image(FIRST)[:23]: change})
    refused(capsys, source, tmp_path, source / 'LOC_val_solution.csv', *words)


def test_a_table_of_kaggle_that_is_another_file(tmp_path, capsys):
    source = write(kaggle(tmp_path / 'source'), {'LOC_val_solution.csv': b'<html>'})
    refused(capsys, source, tmp_path, 'does not begin with ImageId,PredictionString')
