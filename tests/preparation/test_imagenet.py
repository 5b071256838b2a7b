"""`prepare imagenet` on photographs in archives of ILSVRC's shape, odd ones among them."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax import prepare
from alexnet_jax.input.sources import DataConfig
from alexnet_jax.training import dataset
from tests import photographs
from tests.photographs import SYNSETS, encoded, expected, tar_bytes

ROOT = Path(__file__).resolve().parents[2]
VERSION = '5.1.256'
ANSWERS = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text().split()


@functools.cache
def train():
    """Return name -> photograph: 24 as they are, two odd ones, two that cannot be used."""
    files = {f'{synset}_{i}.JPEG': data for i, (synset, data) in enumerate(photographs.sample(24))}
    synset, data = photographs.sample(24)[0]
    files[f'{synset}_1001.JPEG'] = encoded(data, 'PNG')
    files[f'{synset}_1002.JPEG'] = encoded(data, 'JPEG', 'CMYK')
    files[f'{synset}_1003.JPEG'] = data[: len(data) // 2]
    files[f'{synset}_1004.JPEG'] = photographs.huge()
    return files


BROKEN = ('1003', '1004')


def validation(sample):
    """Return name -> photograph: the numbers are those of images of the same synset."""
    chosen = sample[::5]
    return {f'ILSVRC2012_val_{ANSWERS.index(synset) + 1:08d}.JPEG': data for synset, data in chosen}


def write_archives(folder, train_files, validation_files):
    folder.mkdir(exist_ok=True)
    synsets = sorted({name[:9] for name in train_files}, reverse=True)  # the order must not matter
    inner = [
        (f'{s}.tar', tar_bytes([(n, d) for n, d in train_files.items() if n[:9] == s]))
        for s in synsets
    ]
    (folder / 'ILSVRC2012_img_train.tar').write_bytes(tar_bytes(inner))
    (folder / 'ILSVRC2012_img_val.tar').write_bytes(tar_bytes(validation_files.items()))
    return folder


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('archives')
    return write_archives(folder, train(), validation(photographs.sample(24)))


def run(source, data_dir, *flags):
    command = ['imagenet', f'--source={source}', f'--data_dir={data_dir}', '--workers=1']
    return prepare.main([*command, '--allow_subset', *flags])


@pytest.fixture(scope='module')
def prepared(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('prepared')
    assert run(source, data_dir, '--skip_broken') == 0
    return data_dir


def files(data_dir):
    directory = data_dir / 'imagenet2012' / VERSION
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def good():
    return {n: d for n, d in sorted(train().items()) if not any(b in n for b in BROKEN)}


def grayscale(files):
    return [n for n, data in sorted(files.items()) if Image.open(io.BytesIO(data)).mode == 'L']


def check_records(data_dir, sample, train_files):
    """Hold every record against what Pillow makes of its photograph."""
    builder: Any = tfds.builder_from_directory(data_dir / 'imagenet2012' / VERSION)
    assert builder.info.features['label'].names == SYNSETS
    validation_files = validation(sample)
    for split, originals in ('train', train_files), ('validation', validation_files):
        records = builder.as_data_source(split)
        assert len(records) == len(originals)
        for (name, data), record in zip(sorted(originals.items()), records, strict=True):
            np.testing.assert_array_equal(record['image'], expected(data), strict=True)
            number = name.rpartition('_')[2].removesuffix('.JPEG')
            synset = name[:9] if split == 'train' else ANSWERS[int(number) - 1]
            assert record['label'] == SYNSETS.index(synset)
            if split == 'validation':  # and the photograph is one of that synset
                assert dict(sample)[synset] == data


def test_every_record_is_what_pillow_makes_of_its_photograph(prepared):
    check_records(prepared, photographs.sample(24), good())


@pytest.mark.photographs
def test_imagenets_own_photographs(tmp_path):
    sample = photographs.imagenet_sample()
    files = {f'{synset}_{i}.JPEG': data for i, (synset, data) in enumerate(sample)}
    source = write_archives(tmp_path / 'source', files, validation(sample))
    assert run(source, tmp_path) == 0
    check_records(tmp_path, sample, files)
    report = json.loads((tmp_path / 'imagenet2012' / VERSION / 'report.json').read_text())
    assert report['names'] == {'train': {'grayscale': grayscale(files)}, 'validation': {}}


def test_the_report(prepared):
    found = files(prepared)
    assert not [name for name in found if 'notes' in name or 'tmp' in name]
    report = json.loads(found['report.json'])
    synset = photographs.sample(1)[0][0]
    assert report['data_set'] == f'imagenet2012/{VERSION}'
    assert report['images'] == {'train': 26, 'validation': 5}
    assert report['left_out'] == {'train': 2, 'validation': 0}
    names = report['names']['train']
    assert names['PNG named JPEG'] == [f'{synset}_1001.JPEG']
    assert names['CMYK'] == [f'{synset}_1002.JPEG']
    assert names['grayscale'] == grayscale(good())
    assert len(names['grayscale']) == 3
    assert len(names['broken']) == 1
    assert names['broken'][0].startswith(f'{synset}_1003.JPEG: image file is truncated')
    assert names['too large'][0].startswith(f'{synset}_1004.JPEG: ')
    assert report['counts']['train'] == {kind: len(found) for kind, found in names.items()}
    assert report['settings']['size'] == 256
    assert report['versions']['pillow']


def test_the_statistics_are_numpys_and_training_finds_them(prepared, monkeypatch):
    images = np.stack([expected(data) for data in good().values()]).astype(np.float64)
    covariance = np.cov(images.reshape(-1, 3), rowvar=False, bias=True)
    values, _ = np.linalg.eigh(covariance)
    monkeypatch.setattr('alexnet_jax.input.stats.compute_statistics', pytest.fail)
    config = DataConfig(
        name='imagenet2012',
        dir=str(prepared),
        train_split='train',
        eval_split='validation',
        image_shape=(256, 256, 3),
        train_examples=26,
        eval_examples=5,
        read_threads=1,
        prefetch_batches=1,
    )
    _, statistics = dataset.load(config)
    np.testing.assert_allclose(statistics.mean_image, images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, np.sqrt(values), rtol=1e-5)
    report = json.loads(files(prepared)['report.json'])['statistics']
    np.testing.assert_allclose(report['mean'], images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(report['covariance'], covariance, rtol=1e-5)
    np.testing.assert_allclose(report['standard_deviations'], np.sqrt(values), rtol=1e-5)


def test_broken_images_end_in_one_line_and_are_left_out_on_request(source, prepared, tmp_path):
    def attempt(*flags):
        command = [sys.executable, '-m', 'alexnet_jax.prepare', 'imagenet', '--workers=2', *flags]
        command += [f'--source={source}', f'--data_dir={tmp_path}', '--allow_subset']
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    report = tmp_path / 'imagenet2012' / VERSION / 'report.json'
    done = attempt()
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith('error: 2 images cannot be used (')
    assert str(report) in done.stderr
    assert '--skip_broken' in done.stderr
    assert set(json.loads(report.read_text())['names']['train']) >= {'broken', 'too large'}
    assert not (report.parent / 'features.json').exists()

    done = attempt('--skip_broken', '--json')
    assert (done.returncode, done.stderr) == (0, '')
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(report.read_text())
    assert files(tmp_path) == files(prepared)  # of one worker


def test_a_mended_archive_is_read_again(tmp_path):
    """The same bytes in other places would be another recipe; a mended download has its places."""
    name, data = next(iter(train().items()))
    damaged = data[:100] + bytes(len(data) - 100)
    validation_files = validation(photographs.sample(24))
    source = write_archives(tmp_path / 'source', {name: damaged}, validation_files)
    assert run(source, tmp_path) == 2
    write_archives(source, {name: data}, validation_files)
    assert run(source, tmp_path) == 0
    builder: Any = tfds.builder_from_directory(tmp_path / 'imagenet2012' / VERSION)
    np.testing.assert_array_equal(builder.as_data_source('train')[0]['image'], expected(data))


@pytest.mark.fault
def test_killed_halfway_and_run_again(source, prepared, tmp_path):
    script = (
        'import sys, time\n'
        'from alexnet_jax import prepare\n'
        'from alexnet_jax.preparation import images\n'
        'decode = images.decode\n'
        'images.decode = lambda *a, **k: time.sleep(0.1) or decode(*a, **k)\n'
        'prepare.main(sys.argv[1:])\n'
    )
    flags = ['--workers=1', '--allow_subset', '--skip_broken', f'--source={source}']
    process = subprocess.Popen(
        [sys.executable, '-c', script, 'imagenet', *flags, f'--data_dir={tmp_path}'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    directory = tmp_path / 'imagenet2012' / VERSION
    while not list(directory.glob('*-train.array_record-*-of-*[0-9]')):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first, *others = directory.glob('*-train.array_record-*-of-*[0-9]')
    written = first.stat().st_mtime_ns
    assert not others
    assert run(source, tmp_path, '--skip_broken') == 0
    assert first.stat().st_mtime_ns == written
    assert files(tmp_path) == files(prepared)


def test_the_jpeg_store(source, tmp_path):
    assert run(source, tmp_path, '--skip_broken', '--encoding=jpeg') == 0
    builder: Any = tfds.builder_from_directory(tmp_path / 'imagenet2012' / VERSION)
    assert builder.info.features['image'].shape == (256, 256, 3)
    for data, record in zip(good().values(), builder.as_data_source('train'), strict=True):
        assert np.abs(record['image'].astype(int) - expected(data)).mean() < 4
    sizes = {name: len(data) for name, data in files(tmp_path).items()}
    assert json.loads(files(tmp_path)['report.json'])['settings']['encoding'] == 'jpeg'
    assert sum(sizes.values()) < 26 * 256 * 256 * 3


def one_line(capsys, *words):
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    for word in words:
        assert str(word) in errors, errors


@pytest.mark.parametrize('missing', ['ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'])
def test_a_missing_archive(source, tmp_path, capsys, missing):
    for path in source.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    assert run(tmp_path, tmp_path / 'data') == 2
    one_line(capsys, tmp_path / missing, 'is missing', 'image-net.org', '--source')
    assert not (tmp_path / 'data').exists()


def test_a_wrong_number_of_files(source, tmp_path, capsys):
    assert prepare.main(['imagenet', f'--source={source}', f'--data_dir={tmp_path}']) == 2
    one_line(capsys, 'has 24 synsets, not 1000', '--allow_subset', '147897477120')


@pytest.mark.parametrize(
    ('train_names', 'validation_names', 'words'),
    [
        (['n00000001_1.JPEG'], ['ILSVRC2012_val_00000001.JPEG'], ("'n00000001.tar'",)),
        (['n01440764_1.png'], ['ILSVRC2012_val_00000001.JPEG'], ('n01440764_1.png',)),
        (['n01440764_1.JPEG'] * 2, ['ILSVRC2012_val_00000001.JPEG'], ('occurs twice',)),
        (['n01440764_1.JPEG'], ['ILSVRC2012_val_00050001.JPEG'], ('val_00050001',)),
        (['n01440764_1.JPEG'], ['ILSVRC2012_val_00000000.JPEG'], ('val_00000000',)),
        (['n01440764_1.JPEG'], ['n01440764_1.JPEG'], ("'n01440764_1.JPEG' is not",)),
        (['n01440764_1.JPEG'], [], ('has 0 images, not 50000',)),
    ],
)
def test_files_that_do_not_belong(tmp_path, capsys, train_names, validation_names, words):
    inner = tar_bytes([(name, b'x') for name in train_names])
    outer = tar_bytes([(f'{train_names[0][:9]}.tar', inner)])
    (tmp_path / 'ILSVRC2012_img_train.tar').write_bytes(outer)
    (tmp_path / 'ILSVRC2012_img_val.tar').write_bytes(
        tar_bytes([(n, b'x') for n in validation_names])
    )
    assert run(tmp_path, tmp_path / 'data') == 2
    one_line(capsys, *words)
    assert not (tmp_path / 'data').exists()
