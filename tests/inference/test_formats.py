"""Which format a file is taken for; files that are no weights: one line, and nothing written."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import stat
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from alexnet_jax import convert
from alexnet_jax.checkpoint import weights
from alexnet_jax.inference import formats, pytorch
from tests.inference import caffe_files, networks

SMALL = (16, 12, 20, 16, 12, 24, 20)


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """Run the command, which must end with exit code 2 and one line; return it."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    return error


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return the content of a whole file of each format."""
    folder = tmp_path_factory.mktemp('whole')
    ours, theirs = folder / 'ours.safetensors', folder / 'theirs.safetensors'
    weights.write(epath.Path(ours), networks.draw(networks.small()))
    assert run(ours, theirs, '--to=pytorch') == 0
    layers = caffe_files.fill(caffe_files.caffenet('norm', SMALL, 7), seed=1)
    return {
        'ours.safetensors': ours.read_bytes(),
        'theirs.safetensors': theirs.read_bytes(),
        'new.caffemodel': caffe_files.caffemodel(layers),
        'old.caffemodel': caffe_files.caffemodel(layers, 'layers'),
    }


FILES = ('ours.safetensors', 'theirs.safetensors', 'new.caffemodel', 'old.caffemodel')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('share', [0.001, 0.3, 0.9, 0.9999])
def test_a_file_that_was_cut(tmp_path, capsys, whole, name, share):
    source = tmp_path / name
    source.write_bytes(whole[name][: int(share * len(whole[name]))])
    error = refused(capsys, source, tmp_path / 'out.safetensors')
    assert name in error
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('name', [*FILES, 'noise', 'noise.pb'])
@pytest.mark.parametrize('seed', range(5))
def test_random_bytes(tmp_path, capsys, name, seed):
    source = tmp_path / name
    source.write_bytes(np.random.default_rng(seed).bytes(10_000))
    assert name in refused(capsys, source, tmp_path / 'out.safetensors')
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('seed', range(12))
def test_bytes_that_changed(tmp_path, capsys, whole, name, seed):
    """Ten bytes of the first thousand: the file is refused, or what is read is a network."""
    content = bytearray(whole[name])
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, 1000, 10):
        content[place] = rng.integers(256)
    source = tmp_path / name
    source.write_bytes(content)
    code = run(source, tmp_path / 'out.safetensors')
    error = capsys.readouterr().err
    assert (code, error.count('\n')) in ((0, 0), (2, 1)), error


@pytest.mark.parametrize('name', [*FILES, 'empty'])
def test_an_empty_file(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b'')
    assert f'{name} is empty' in refused(capsys, tmp_path / name, tmp_path / 'out.safetensors')


@pytest.mark.parametrize('options', [(), ('--from=pytorch',), ('--from=caffe',)])
def test_no_file(tmp_path, capsys, options):
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'pipe')
    for name in ('folder', 'missing', 'missing.caffemodel', 'pipe'):
        words = f'{name} (is not a file|does not exist)|no checkpoint in .*{name}'
        out = tmp_path / 'out.safetensors'
        assert re.search(words, refused(capsys, tmp_path / name, out, *options))
        assert not out.exists()


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors', 'weights'])
@pytest.mark.parametrize('zipped', [False, True])
def test_a_pickle(tmp_path, capsys, name, zipped):
    """PyTorch's files are pickles, since version 1.6 within a zip; nothing in them is run."""
    source = tmp_path / name

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    content = pickle.dumps(Harmful())
    source.write_bytes(content)
    if zipped:
        with zipfile.ZipFile(source, 'w') as archive:
            archive.writestr('archive/data.pkl', content)
    error = refused(capsys, source, tmp_path / 'out.safetensors')
    assert f'{name} is a pickle (not a known file)' in error
    assert f"torch.load('{name}', weights_only=True)" in error
    assert "safetensors.torch.save_file(weights, 'weights.safetensors')" in error
    assert os.listdir(tmp_path) == [name]


def test_shapes_that_the_file_does_not_hold(tmp_path, capsys, whole):
    """Ten gigabytes in the header of a file of some bytes."""
    claimed = {'dtype': 'F32', 'shape': [50_000, 50_000], 'data_offsets': [0, 10**10]}
    header = json.dumps({'conv1.weight': claimed}).encode()
    source, out = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'
    source.write_bytes(struct.pack('<Q', len(header)) + header + bytes(100))
    assert 'is not a safetensors file that can be read' in refused(capsys, source, out)
    shape = caffe_files._bytes(1, caffe_files._number(50_000) * 2)
    claimed = caffe_files._bytes(7, shape) + caffe_files._bytes(5, bytes(100))
    for old in (False, True):
        layers = caffe_files.fill(caffe_files.caffenet('norm', SMALL, 7), seed=1)
        content = caffe_files.caffemodel(layers, 'layers' if old else 'layer')
        kernel = caffe_files.blob(layers[-1]['blobs'][0], old)
        source = tmp_path / 'in.caffemodel'
        cut = kernel[:-100]  # shorter, and other lengths before it are wrong, too
        source.write_bytes(content.replace(kernel, cut))
        refused(capsys, source, out)
    mean = tmp_path / 'mean.binaryproto'
    mean.write_bytes(claimed)
    source.write_bytes(whole['new.caffemodel'])
    assert 'and has (50000, 50000)' in refused(capsys, source, out, f'--mean={mean}')
    shape = caffe_files._bytes(1, caffe_files._number(3) + caffe_files._number(50_000) * 2)
    mean.write_bytes(caffe_files._bytes(7, shape) + caffe_files._bytes(5, bytes(100)))
    error = refused(capsys, source, out, f'--mean={mean}')
    assert 'should have 30000000000 bytes of numbers, and has 100' in error


def test_wrong_keys_and_shapes(tmp_path, capsys):
    source, out = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'

    def save(change, metadata=None):
        tensors = dict(state)
        change(tensors)
        safetensors.numpy.save_file(tensors, source, metadata)
        return refused(capsys, source, out)

    weights.write(epath.Path(source), networks.draw(networks.small()))
    assert run(source, source.with_name('a.safetensors'), '--to=pytorch') == 0
    state, metadata = weights.open_safetensors(epath.Path(tmp_path / 'a.safetensors'))
    error = save(lambda tensors: tensors.pop('conv3.bias'), metadata)
    assert 'has no conv3.bias, which should be (20,)' in error
    error = save(lambda tensors: tensors.update({'conv3.more': np.zeros(3)}), metadata)
    assert 'has conv3.more, which this network does not have' in error
    error = save(lambda tensors: tensors.update({'more': np.zeros(3)}), metadata)
    assert 'has more, which this network does not have' in error
    error = save(lambda tensors: tensors.update({'fc6.weight': np.zeros((24, 5))}), metadata)
    assert 'fc6.weight should be (24, 48), and is (24, 5)' in error
    error = save(lambda tensors: tensors.update({'fc8.bias': np.zeros(7, int)}), metadata)
    assert 'fc8.bias should be floating-point numbers, not int64' in error
    error = save(lambda tensors: tensors.update({'mean': np.zeros((3, 9, 9))}), metadata)
    assert 'mean should be finite, (channels, height, width), and at least 96' in error
    nan = np.full(7, np.nan)
    assert 'fc8.bias has numbers that are not finite' in save(
        lambda tensors: tensors.update({'fc8.bias': nan}), metadata
    )
    error = save(only_the_first_of_torchvision)
    assert 'has no features.0.bias, which should be (64,)' in error
    error = save(lambda tensors: tensors.clear())
    assert 'has neither conv1.weight nor features.0.weight, but nothing' in error
    for damage in ('{', '{}', '[]', '1', '{"format": 2, "version": "9"}', _damaged(metadata)):
        error = save(lambda tensors: None, {pytorch.KEY: damage})
        assert 'in.safetensors' in error
    assert not out.exists()


def only_the_first_of_torchvision(tensors):
    tensors.clear()
    tensors['features.0.weight'] = np.zeros((64, 3, 11, 11))


def _damaged(metadata):
    said = json.loads(metadata[pytorch.KEY])
    return json.dumps({**said, 'eigenvectors': [1, 2], 'class_names': ['one']})


def test_the_source_is_never_overwritten(tmp_path, capsys, whole):
    source = tmp_path / 'in.safetensors'
    source.write_bytes(whole['ours.safetensors'])
    (tmp_path / 'link.safetensors').symlink_to(source)
    os.link(source, tmp_path / 'hard.safetensors')
    os.link(source, tmp_path / 'x.safetensors.tmp')
    for name in ('in', 'link', 'hard', 'x', '../' + tmp_path.name + '/in'):
        out = f'{tmp_path}/{name}.safetensors'
        assert 'would overwrite' in refused(capsys, source, out)
    assert source.read_bytes() == whole['ours.safetensors']


def test_where_the_output_may_be(tmp_path, capsys, whole):
    source = tmp_path / 'in.safetensors'
    source.write_bytes(whole['ours.safetensors'])
    (tmp_path / 'folder.safetensors').mkdir()
    assert 'is a folder' in refused(capsys, source, tmp_path / 'folder.safetensors')
    assert 'must end in .safetensors' in refused(capsys, source, tmp_path / 'out.pth')
    assert 'cannot write' in refused(capsys, source, source / 'out.safetensors')
    out = tmp_path / 'new' / 'folder' / 'out.safetensors'
    assert run(source, out) == 0
    assert out.read_bytes() == source.read_bytes()
    out.write_bytes(b'an old file')
    before = out.stat().st_ino
    assert run(source, out) == 0
    assert out.stat().st_ino != before  # replaced in one piece
    assert stat.S_ISREG(out.stat().st_mode)
    assert os.listdir(out.parent) == ['out.safetensors']


def test_options(tmp_path, capsys, whole):
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    ours, out = tmp_path / 'ours.safetensors', tmp_path / 'out.safetensors'
    caffe = tmp_path / 'new.caffemodel'
    names = tmp_path / 'names.txt'
    names.write_text('one\ntwo\n')
    assert '--names has 2 lines' in refused(capsys, caffe, out, f'--names={names}')
    names.write_text('one\n\nthree\n')
    assert 'the name of a class on each line' in refused(capsys, caffe, out, f'--names={names}')
    names.write_bytes(b'\xff\xfe')
    assert 'not a text file in UTF-8' in refused(capsys, caffe, out, f'--names={names}')
    assert 'is not a file' in refused(capsys, caffe, out, f'--names={tmp_path}')
    assert 'three numbers' in refused(capsys, caffe, out, '--mean=1,2')
    assert 'three numbers' in refused(capsys, caffe, out, '--mean=nan,1,2')
    assert 'mean.binaryproto is not a file' in refused(
        capsys, caffe, out, f'--mean={tmp_path}/mean.binaryproto'
    )
    assert '--mean is for a .caffemodel' in refused(capsys, ours, out, '--mean=1,2,3')
    config = '--config=configs/alexnet.py'
    assert '--config is for a PyTorch file' in refused(capsys, ours, out, config)
    theirs = tmp_path / 'theirs.safetensors'
    assert '--config is for a PyTorch file' in refused(capsys, theirs, out, config)
    with pytest.raises(SystemExit, match='2'):
        run(ours, out, '--to=caffe')
    capsys.readouterr()
    assert not out.exists()
    assert run(theirs, out, '--from=pytorch') == 0
    assert out.read_bytes() == whole['ours.safetensors']
    os.rename(caffe, tmp_path / 'renamed')
    assert run(tmp_path / 'renamed', out, '--from=caffe') == 0
    assert 'is not a safetensors file' in refused(capsys, tmp_path / 'renamed', out)


@pytest.mark.parametrize('shape', [(1, 1, 256, 256), (1, 3, 100, 100), (4,)])
def test_mean_images_that_do_not_fit(tmp_path, capsys, whole, shape):
    source, mean = tmp_path / 'in.caffemodel', tmp_path / 'mean.binaryproto'
    source.write_bytes(whole['new.caffemodel'])
    mean.write_bytes(caffe_files.blob(np.ones(shape, np.float32), old=False))
    refused(capsys, source, tmp_path / 'out.safetensors', f'--mean={mean}')
    mean.write_bytes(b'\xff\xff')
    refused(capsys, source, tmp_path / 'out.safetensors', f'--mean={mean}')


def test_weights_that_do_not_fit_their_configuration(tmp_path, capsys):
    trained = networks.draw(networks.small())
    config = networks.small(**{'model.fc7.features': 30})
    source = tmp_path / 'in.safetensors'
    weights.write(epath.Path(source), dataclasses.replace(trained, config=config))
    error = refused(capsys, source, tmp_path / 'out.safetensors')
    assert 'fc7.bias is float32[20] there, float32[30] in its configuration' in error


def test_known_files(tmp_path, monkeypatch):
    file = epath.Path(tmp_path / 'file')
    file.write_bytes(b'content')
    assert formats.recognise(file) == 'not a known file'
    for name in ('sha1', 'sha256'):
        digest = hashlib.new(name, b'content').hexdigest()[:8]
        monkeypatch.setattr(formats, 'KNOWN', (formats.Known(name, digest, 'this one'),))
        assert formats.recognise(file) == 'recognised: this one'
    source = tmp_path / 'x.pth'
    source.write_bytes(b'content')
    assert run(source, tmp_path / 'out.safetensors') == 2


@pytest.mark.parametrize('suffix', ['.onnx', '.stablehlo'])
def test_the_suffix_chooses_the_export(tmp_path, capsys, suffix):
    source, out = tmp_path / 'in.safetensors', tmp_path / f'out{suffix}'
    weights.write(epath.Path(source), networks.draw(networks.small()))
    assert run(source, out) == 0
    assert f'wrote {out}: {suffix[1:]}, ' in capsys.readouterr().out
    assert out.stat().st_size > 10_000
    words = 'must end in .safetensors, or in .stablehlo or .onnx'
    assert words in refused(capsys, source, out, '--to=alexnet_jax')
    words = f'out.safetensors must end in {suffix}'
    assert words in refused(capsys, source, tmp_path / 'out.safetensors', f'--to={suffix[1:]}')
    assert 'leave it out' in refused(capsys, source, out, '--dtype=float16')
