"""`prepare imagenet` from a tfds `imagenet2012` of JPEG files, as tfds writes one itself."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alexnet_jax import prepare
from tests import photographs
from tests.photographs import SYNSETS, encoded, expected


def originals():
    """Return split -> file name -> photograph."""
    sample = photographs.sample(12)
    train = {f'{synset}_{i}.JPEG': data for i, (synset, data) in enumerate(sample)}
    train[f'{sample[0][0]}_77.JPEG'] = encoded(sample[0][1], 'JPEG', 'CMYK')
    train[f'{sample[1][0]}_88.JPEG'] = sample[1][1][:-5000]
    validation = {f'ILSVRC2012_val_{i + 1:08d}.JPEG': sample[i][1] for i in range(3)}
    unlabelled = {'ILSVRC2012_test_00000001.JPEG': sample[4][1]}
    return {'train': train, 'validation': validation, 'test': unlabelled}


def build(data_dir, name='imagenet2012', names=SYNSETS, keep=('train', 'validation', 'test')):
    """Write a data set with the features, hashing and file format of tfds imagenet2012 5.1.0."""
    synset_of = {data: synset for synset, data in photographs.sample(12)}
    splits = {split: files for split, files in originals().items() if split in keep}

    class Twin(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('5.1.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(encoding_format='jpeg'),
                'label': tfds.features.ClassLabel(names=names),
                'file_name': tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for file_name, data in splits[split].items():
                synset = file_name[:9] if split == 'train' else synset_of[data]
                label = -1 if split == 'test' else names.index(synset)
                yield file_name, {'image': data, 'label': label, 'file_name': file_name}

    Twin.name = name
    builder: Any = Twin(data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare()
    return data_dir / name / '5.1.0'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return build(tmp_path_factory.mktemp('tfds'))


def run(source, data_dir, *flags):
    command = ['imagenet', f'--source={source}', f'--data_dir={data_dir}', '--workers=1']
    return prepare.main([*command, *flags])


def test_order_labels_and_pixels_are_those_of_the_source(source, tmp_path):
    assert run(source, tmp_path, '--allow_subset', '--skip_broken') == 0
    ours: Any = tfds.builder_from_directory(tmp_path / 'imagenet2012' / '5.1.256')
    theirs: Any = tfds.builder_from_directory(source)
    assert ours.info.features['label'].names == SYNSETS
    assert set(ours.info.splits) == {'train', 'validation'}
    raw = {'image': tfds.decode.SkipDecoding()}
    broken = f'{photographs.sample(2)[1][0]}_88.JPEG'
    for split in ours.info.splits:
        stored = [
            record
            for record in theirs.as_data_source(split, decoders=raw)
            if record['file_name'].decode() != broken
        ]
        records = ours.as_data_source(split)
        assert len(records) == len(originals()[split]) - (split == 'train')
        for record, original in zip(records, stored, strict=True):
            assert record['label'] == original['label']
            np.testing.assert_array_equal(record['image'], expected(original['image']), strict=True)
    report = json.loads((tmp_path / 'imagenet2012' / '5.1.256' / 'report.json').read_text())
    assert report['names']['train']['CMYK'] == [f'{photographs.sample(1)[0][0]}_77.JPEG']
    assert report['names']['train']['broken'][0].startswith(f'{broken}: image file is truncated')
    assert report['ignored'] == {'split': ['test']}


def refused(capsys, source, tmp_path, *words, flags=('--allow_subset',)):
    capsys.readouterr()  # what tfds printed while it built the source
    assert run(source, tmp_path / 'data', *flags) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    for word in words:
        assert str(word) in errors, errors
    assert not (tmp_path / 'data').exists()


def copy(source, tmp_path, **changes):
    """Return a copy with some fields of its dataset_info.json changed."""
    folder = tmp_path / 'copy'
    shutil.copytree(source, folder)
    path = folder / 'dataset_info.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_wrong_number_of_images(source, tmp_path, capsys):
    refused(capsys, source, tmp_path, source, 'has 14 images, not 1281167', flags=())


def test_tfrecord_is_refused_with_what_to_do(source, tmp_path, capsys):
    folder = copy(source, tmp_path, fileFormat='tfrecord')
    command = f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record'
    refused(capsys, folder, tmp_path, 'is stored as tfrecord', command)


def test_other_data_sets(source, tmp_path, capsys):
    other = build(tmp_path / 'other', name='imagenet2013')
    refused(capsys, other, tmp_path, 'is imagenet2013/5.1.0, not imagenet2012')
    half = build(tmp_path / 'half', keep=('train',))
    refused(capsys, half, tmp_path, 'has no split validation', 'tfds build')
    other = build(tmp_path / 'classes', names=SYNSETS[::-1])
    refused(capsys, other, tmp_path, 'has other classes')
    assert run(source, tmp_path / 'own', '--allow_subset', '--skip_broken') == 0
    own = tmp_path / 'own' / 'imagenet2012' / '5.1.256'
    refused(capsys, own, tmp_path, 'has no JPEG files', 'tfds build')
    refused(capsys, source, tmp_path, 'has only 2012', flags=('--year=2010',))


@pytest.mark.parametrize('cut', [0, 5000])
def test_a_file_that_is_missing_or_cut(source, tmp_path, capsys, cut):
    folder = copy(source, tmp_path)
    (path,) = folder.glob('*-train.array_record-*')
    path.write_bytes(path.read_bytes()[:cut]) if cut else path.unlink()
    refused(capsys, folder, tmp_path, path, 'is missing or damaged', 'of 14')


def test_a_record_that_cannot_be_read(source, tmp_path, capsys):
    folder = copy(source, tmp_path)
    (path,) = folder.glob('*-train.array_record-*')
    data = bytearray(path.read_bytes())
    data[300_000] ^= 0xFF
    path.write_bytes(data)
    assert run(folder, tmp_path / 'data', '--allow_subset', '--skip_broken') == 2
    errors = capsys.readouterr().err
    assert errors.count('\n') == 1
    assert f'{path}[' in errors
    assert 'cannot be read' in errors
