"""`load`: predictions are those of the evaluation; images of all kinds; batches of any length."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from alexnet_jax.inference import Network, Prediction, Unreadable, load
from alexnet_jax.inference.trained import read
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.evaluate import errors_of
from tests import photographs
from tests.inference.trained_runs import save_run, save_run_on_photographs


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A network on photographs: (root, experiment, paths of val)."""
    root = tmp_path_factory.mktemp('photos')
    return root, *save_run_on_photographs(root)


@pytest.fixture(scope='module')
def net(photos):
    return load(photos[0] / 'run', devices=jax.devices()[:1])


def _evaluated(root, experiment, views):
    """Return what `--mode=evaluate` computes for each example, in the order of the split."""
    state = read(epath.Path(root / 'run'))
    network = jax.device_put(dict(state.network), experiment.state_shardings.network)
    step = experiment.probability_step(views)
    outputs, labels = experiment.collect(step, network, experiment.dataset.eval)
    return outputs['_10_views' if views == 10 else ''], labels


@pytest.mark.parametrize('views', [1, 10])
def test_photographs_of_the_data_get_the_probabilities_of_the_evaluation(photos, net, views):
    root, experiment, paths = photos
    want, labels = _evaluated(root, experiment, views)
    got = net.probabilities(paths, views=views)
    assert got.shape == (len(paths), 2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)
    errors = errors_of({'': np.argsort(-got, axis=1, kind='stable')}, labels)
    assert errors['eval/top1_error'] == np.mean(want.argmax(1) != labels)
    with pytest.raises(AssertionError):  # the photographs differ, so their order matters
        np.testing.assert_allclose(got[::-1], want, rtol=0, atol=2e-7)


def test_data_stored_as_jpeg_are_matched_too(tmp_path):
    experiment, paths = save_run_on_photographs(tmp_path, encoding='jpeg')
    want, _ = _evaluated(tmp_path, experiment, 1)
    net = load(tmp_path / 'run', devices=jax.devices()[:1])
    np.testing.assert_allclose(net.probabilities(paths), want, rtol=0, atol=2e-7)


def test_predictions_are_ranked_and_named(photos, net):
    path = photos[2][3]
    outputs = net.probabilities([path])[0]
    [found] = net.predict([path])
    assert [p.label for p in found] == list(np.argsort(-outputs))
    assert [p.probability for p in found] == sorted(map(float, outputs), reverse=True)
    assert {p.name for p in found} == {'tench', 'English springer'}
    assert net.class_names == ('n01440764', 'n02102040')
    assert net.predict(str(path), top=1) == [[found[0]]]  # one image, not its characters
    assert isinstance(found[0], Prediction)


def _opened(paths, exif):
    """Return the first photograph in colour that has EXIF or has none, and its path."""
    for path in paths:
        with Image.open(path) as image:
            if image.mode == 'RGB' and bool(image.getexif()) == exif:
                image.load()
                return image, path
    raise AssertionError


def test_an_image_may_come_in_many_forms(photos, net):
    image, path = _opened(photos[2], exif=False)
    array = np.asarray(image)
    want = net.probabilities([path])
    rgba = np.concatenate([array, np.full((*array.shape[:2], 1), 7, np.uint8)], axis=-1)
    forms = [str(path), image, array, rgba, image.convert('RGBA')]
    got = net.probabilities(forms)
    np.testing.assert_allclose(got, np.repeat(want, 5, axis=0), rtol=0, atol=2e-7)
    gray = np.asarray(image.convert('L'))
    forms = [gray, gray[..., None], np.stack([gray] * 3, axis=-1), image.convert('L')]
    outputs = net.probabilities(forms)
    np.testing.assert_array_equal(outputs, np.repeat(outputs[:1], 4, axis=0))


def test_arrays_of_the_data_s_shape_are_taken_as_they_are(net):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    want = net.probabilities(list(images))
    np.testing.assert_allclose(net.probabilities(images), want, rtol=0, atol=2e-7)
    assert net.probabilities(images[0]).shape == (1, 2)
    crop = images[:, 2:30, 2:30].astype(np.float32)  # conv1 by hand, for one position of one kernel
    statistics = net.trained.statistics
    x = (crop - statistics.mean_image[2:30, 2:30]) / net.config.augment.pixel_divisor
    conv1, layer = net.params['conv1'], net.config.model.conv1
    begin = 3 * layer.stride - layer.padding[0]
    patch = x[:, begin : begin + layer.kernel, begin : begin + layer.kernel]
    want = np.tensordot(patch, conv1['kernel'][..., 5], 3) + conv1['bias'][5]
    got = net.activations(images, 'conv1')[:, 3, 3, 5]
    np.testing.assert_allclose(got, np.maximum(want, 0), rtol=1e-4, atol=1e-5)


def test_a_photograph_is_turned_by_its_exif_orientation(photos, net):
    image, path = _opened(photos[2], exif=True)
    np.testing.assert_array_equal(net.probabilities([image]), net.probabilities([path]))


@pytest.mark.parametrize('devices', [1, 3, 8])
def test_batches_of_any_length_on_any_devices(photos, net, devices):
    paths = photos[2]
    want = net.probabilities(paths)
    other = load(photos[0] / 'run', devices=jax.devices()[:devices], batch_size=7)
    for count in (0, 1, 2, 6, 7, 8, len(paths)):
        got = other.probabilities(paths[:count])
        np.testing.assert_allclose(got, want[:count], rtol=0, atol=5e-7)


def test_few_compilations_serve_all_lengths(photos, net, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), np.uint8)
    sizes = set()
    real = net._step('', 1)
    monkeypatch.setattr(
        net, '_step', lambda *a: lambda n, b, s: (sizes.add(len(b.images)), real(n, b, s))[1]
    )
    for count in range(1, 65):
        assert len(net.probabilities(images[:count])) == count
    assert sizes == {1, 2, 4, 8, 16, 32, 64}


def test_activations_are_named_in_the_order_of_the_network(net):
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    names = net.activation_names
    assert names[0] == 'conv1'
    assert names[-3:] == ('fc6', 'fc7', 'fc8')
    assert net.activations(images, 'fc7').shape == (3, 16)
    logits = net.activations(images, 'fc8')
    np.testing.assert_allclose(jax.nn.softmax(logits), net.probabilities(images), atol=1e-6)
    assert net.activations([], 'conv2').shape[1:] == net.activations(images, 'conv2').shape[1:]
    with pytest.raises(UserError, match='conv9 is not an activation of this network; it has conv1'):
        net.activations(images, 'conv9')


def test_unreadable_images_are_named_or_returned(net, tmp_path):
    good, bad = tmp_path / 'good.jpg', tmp_path / 'bad.jpg'
    good.write_bytes(photographs.sample(1)[0][1])
    bad.write_bytes(good.read_bytes()[:1000])
    huge = tmp_path / 'huge.png'
    huge.write_bytes(photographs.huge())
    for path, words in [
        (bad, 'bad.jpg: '),
        (tmp_path / 'no.jpg', 'no.jpg: No such file'),
        (huge, 'huge.png: '),
        (tmp_path, 'Is a directory'),
    ]:
        with pytest.raises(Unreadable, match=words):
            net.predict([good, path])
        first, second, third = net.predict([good, path, good], unreadable='return')
        assert first == third
        assert isinstance(second, Unreadable)
    deep = Image.fromarray(np.zeros((40, 40), np.uint16))
    with pytest.raises(Unreadable, match='image 1: an image of mode I;16'):
        net.predict([good, deep])


@pytest.mark.parametrize(
    ('image', 'error', 'words'),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, 'must be uint8, from 0 to 255, not float32'),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r'not \[8, 8, 2\]'),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r'not \[0, 8, 3\]'),
        (3, TypeError, 'not int'),
        (None, TypeError, 'not NoneType'),
    ],
    ids=str,
)
def test_what_is_no_image_is_an_error(net, image, error, words):
    with pytest.raises(error, match=words):
        net.predict([image])


def test_float64_needs_no_setting(tmp_path, x64):
    save_run(tmp_path, model={'dtype': 'float64'})
    jax.config.update('jax_enable_x64', False)
    net = load(tmp_path / 'run')
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    outputs = net.probabilities(images)
    assert outputs.dtype == np.float64
    assert net.params['conv1']['kernel'].dtype == np.float64
    np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-14)


def test_the_gray_images_of_the_digits(tmp_path):
    experiment = save_run(tmp_path, model={'dtype': 'bfloat16'})
    net = load(tmp_path / 'run')
    image = experiment.dataset.eval[0]['image']
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(tmp_path / 'digit.png')
    Image.fromarray(image[..., 0]).save(file, 'PNG')
    forms = [image, image[..., 0], tmp_path / 'digit.png', Image.open(file)]
    outputs = net.probabilities(forms)
    np.testing.assert_array_equal(outputs, np.repeat(outputs[:1], 4, axis=0))
    assert net.activations([image], 'fc6').dtype == np.float32
    assert net.predict([image])[0][0].name in '0123456789'


def test_a_step_or_the_best_may_be_chosen(photos, net, tmp_path):
    run = photos[0] / 'run'
    same = load(run, 2)
    np.testing.assert_array_equal(same.params['fc8']['bias'], net.params['fc8']['bias'])
    assert load(run / 'checkpoints' / '2').trained.about['step'] == 2
    with pytest.raises(UserError, match='no checkpoint in'):
        load(run, 1)
    with pytest.raises(UserError, match='does not exist'):
        load(tmp_path / 'nothing')
    with pytest.raises(UserError, match='no checkpoint in'):
        load(tmp_path)


def _copy(photos, tmp_path):
    shutil.copytree(photos[0] / 'run', tmp_path / 'run')
    return tmp_path / 'run'


def test_files_that_are_missing_or_of_other_data_are_named(photos, tmp_path):
    run = _copy(photos, tmp_path)
    about = json.loads((run / 'data' / 'data.json').read_text())
    (run / 'data' / 'data.json').write_text(json.dumps(about | {'class_names': ['a', 'b']}))
    with pytest.raises(UserError, match='has the class names of other data than checkpoint 2'):
        load(run)
    (run / 'data' / 'data.json').write_text('{')
    with pytest.raises(UserError, match=r'is damaged .* start the training of that run once more'):
        load(run)
    (run / 'data' / 'data.json').unlink()
    with pytest.raises(UserError, match=r'data\.json is missing'):
        load(run)


def test_parts_that_do_not_fit_are_refused(net):
    def changed(**fields):
        return Network(dataclasses.replace(net.trained, **fields))

    with pytest.raises(UserError, match='1 names for 2 classes'):
        changed(class_names=('one',))
    network = {k: dict(v) for k, v in net.params.items()}
    network['conv3']['kernel'] = network['conv3']['kernel'][:2]
    with pytest.raises(UserError, match=r'conv3\.kernel is float32\[2, .* in its configuration'):
        changed(network=network)
    del network['conv3']
    with pytest.raises(UserError, match=r'conv3\.bias is absent'):
        changed(network=network)
    statistics = net.trained.statistics
    with pytest.raises(UserError, match=r'images \[8, 8, 3\] for crops of 28 pixels'):
        changed(statistics=statistics._replace(mean_image=np.zeros((8, 8, 3), np.float32)))
    with pytest.raises(UserError, match='colour statistics are of other images'):
        changed(statistics=statistics._replace(eigenvectors=np.zeros((1, 1), np.float32)))
