"""Decoding: formats, odd and damaged files, limits; the resize against slow NumPy."""

import collections
import gzip
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.preparation import images
from tests import photographs


@pytest.fixture(scope='module')
def jpeg():
    """Return a photograph-like JPEG of 300 x 200: smooth, with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((300, 200), Image.Resampling.BICUBIC))
    noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, 'JPEG', quality=90)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


@pytest.mark.parametrize(
    ('format', 'mode', 'name', 'kinds'),
    [
        ('JPEG', 'RGB', 'a.JPEG', []),
        ('JPEG', 'RGB', 'a', []),
        ('PNG', 'RGB', 'a.png', []),
        ('PNG', 'RGB', 'n02105855_2933.JPEG', ['PNG named JPEG']),
        ('JPEG', 'RGB', 'a.png', ['JPEG named PNG']),
        ('JPEG', 'CMYK', 'a.jpg', ['CMYK']),
        ('JPEG', 'L', 'a.jpg', ['grayscale']),
        ('PNG', 'L', 'a.jpg', ['PNG named JPEG', 'grayscale']),
        ('PNG', '1', 'a.png', ['grayscale']),
        ('PNG', 'P', 'a.png', ['palette']),
        ('PNG', 'RGBA', 'a.png', ['transparency']),
        ('PNG', 'LA', 'a.png', ['transparency']),
    ],
)
def test_formats_and_modes(jpeg, format, mode, name, kinds):
    data = photographs.encoded(jpeg, format, mode)
    image, odd = images.decode(data, name)
    assert (image.mode, odd) == ('RGB', kinds)
    np.testing.assert_array_equal(np.asarray(image), pixels(data), strict=True)


def test_a_palette_with_transparency_warns_of_nothing(jpeg):
    data = photographs.encoded(jpeg, 'PNG', 'P', transparency=bytes(range(256)))
    image, odd = images.decode(data)
    assert odd == ['palette']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        np.testing.assert_array_equal(np.asarray(image), pixels(data))


def test_the_exif_orientation_is_ignored(jpeg):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = photographs.encoded(jpeg, 'JPEG', exif=exif)
    image, odd = images.decode(data)
    assert (image.size, odd) == ((300, 200), [])


@pytest.mark.parametrize('cut', [0, 1, 10, 100, 1000, -2000, -300])
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_truncated(jpeg, format, cut):
    with pytest.raises(images.Unreadable) as caught:
        images.decode(photographs.encoded(jpeg, format)[:cut])
    assert caught.value.kind == 'broken'
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('format', ['GIF', 'BMP', 'TIFF', 'WEBP'])
def test_other_formats(jpeg, format):
    with pytest.raises(images.Unreadable, match='neither JPEG nor PNG'):
        images.decode(photographs.encoded(jpeg, format))


def test_sixteen_bits_are_not_clipped_in_silence():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, 'PNG')
    with pytest.raises(images.Unreadable, match='8 bits') as caught:
        images.decode(buffer.getvalue())
    assert caught.value.kind == 'broken'


def test_too_large(jpeg):
    for data, limits in [
        (photographs.huge(), {}),  # decoding it would need 4.8 GB
        (jpeg, {'max_pixels': 300 * 200 - 1}),
        (jpeg, {'max_bytes': len(jpeg) - 1}),
    ]:
        with pytest.raises(images.Unreadable) as caught:
            images.decode(data, **limits)
        assert caught.value.kind == 'too large'
    images.decode(jpeg, max_pixels=300 * 200, max_bytes=len(jpeg))


def test_a_strip_does_not_grow_beyond_what_is_opened():
    """1 x 40,000 pixels would become 256 x 10,240,000: 7.9 GB."""
    with pytest.raises(images.Unreadable, match='1x40000 pixels become 256x10240000') as caught:
        images.resize_and_crop(Image.new('RGB', (1, 40_000)), 256)
    assert caught.value.kind == 'too large'


def test_a_file_within_gzip(jpeg):
    image, odd = images.decode(gzip.compress(jpeg), 'n02487347_1956.JPEG')
    assert odd == ['gzip']
    np.testing.assert_array_equal(np.asarray(image), pixels(jpeg), strict=True)
    with pytest.raises(images.Unreadable, match='gzip') as caught:
        images.decode(gzip.compress(jpeg)[:-100])
    assert caught.value.kind == 'broken'
    bomb = gzip.compress(bytes(10_000_000))
    with pytest.raises(images.Unreadable, match='1000001 bytes') as caught:
        images.decode(bomb, max_bytes=1_000_000)
    assert caught.value.kind == 'too large'


def triangle(length, target):
    """Return the matrix of an antialiased linear resize, from the triangle filter's formula."""
    scale = length / target
    support = max(scale, 1.0)
    weights = np.zeros((target, length))
    for i in range(target):
        centre = (i + 0.5) * scale
        weights[i] = np.maximum(0, 1 - np.abs((np.arange(length) + 0.5 - centre) / support))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize('shape', [(37, 61), (61, 37), (90, 40), (40, 40), (20, 31), (32, 50)])
def test_resize_and_crop_is_the_triangle_filter(shape):
    rng, size = np.random.default_rng(1), 32
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = images.resize_and_crop(Image.fromarray(image), size)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    height, width = (round(side * size / min(shape)) for side in shape)
    down = np.einsum('yh,hwc->ywc', triangle(shape[0], height), image.astype(np.float64))
    whole = np.einsum('xw,ywc->yxc', triangle(shape[1], width), down)
    top, left = (height - size) // 2, (width - size) // 2
    # Pillow rounds after each of the two passes.
    assert np.abs(found - whole[top : top + size, left : left + size]).max() < 1.02


def check_photographs(sample):
    """Hold each photograph against Pillow alone; return how many were odd in which way."""
    found = collections.Counter()
    for _, data in sample:
        image, odd = images.decode(data, 'a.JPEG')
        found.update(odd)
        np.testing.assert_array_equal(
            images.resize_and_crop(image), photographs.expected(data), strict=True
        )
    return found


def test_photographs_as_pillow_resizes_them():
    sample = photographs.sample(24)
    assert check_photographs(sample) == {'grayscale': 3}
    # The sample has what it promises: each kind of file that the decoder has to deal with.
    files = [Image.open(io.BytesIO(data)) for _, data in sample]
    assert {file.mode for file in files} == {'RGB', 'L'}
    assert {file.layer[0][1:3] for file in files} == {(1, 1), (2, 1), (2, 2)}  # chroma
    assert {'progressive', 'icc_profile', 'photoshop', 'exif', 'comment'} <= {
        key for file in files for key in file.info
    }
    assert min(min(file.size) for file in files) < 100
    assert max(min(file.size) for file in files) > 500
    assert any(file.width > file.height for file in files)
    assert any(file.width < file.height for file in files)


@pytest.mark.photographs
def test_imagenets_photographs_as_pillow_resizes_them():
    assert check_photographs(photographs.imagenet_sample()) == {'grayscale': 4}


def test_encode_jpeg(jpeg):
    image = pixels(jpeg)
    data = images.encode_jpeg(image)
    decoded = Image.open(io.BytesIO(data))
    assert (decoded.format, decoded.mode) == ('JPEG', 'RGB')
    assert [part[1:3] for part in decoded.layer] == [(1, 1)] * 3  # colour at full resolution
    assert np.abs(np.asarray(decoded).astype(int) - image).mean() < 2
