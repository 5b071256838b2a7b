"""Photographs for tests, odd ones made from them, and what Pillow alone makes of each."""

import functools
import io
import itertools
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps
from sklearn import datasets

SYNSETS = tfds.core.tfds_path('datasets/imagenet2012/labels.txt').read_text().split()

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'

_ROTATED = Image.Exif()
_ROTATED[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees

# Width and height: some smaller than the records, one a strip, odd ones without an exact centre.
_SIZES = (
    (375, 500),
    (640, 480),
    (256, 384),
    (128, 160),
    (845, 563),
    (301, 301),
    (97, 135),
    (900, 200),
)
_ENCODINGS = (
    {'quality': 95, 'subsampling': '4:4:4'},
    {'quality': 60, 'subsampling': '4:2:0'},
    {'progressive': True},
    {'mode': 'L'},
    {'subsampling': '4:2:2', 'optimize': True},
    {'restart_marker_blocks': 5, 'comment': b'with restart markers'},
    {'exif': _ROTATED.tobytes()},
)


@functools.cache
def _originals():
    """Return the two photographs that scikit-learn ships: JPEG files with ICC profiles."""
    return [Path(name).read_bytes() for name in datasets.load_sample_images().filenames]


@functools.cache
def piece(number, size, mode='RGB', **options):
    """Return a piece of an original, another one for each number, as a JPEG file.

    `size` is (width, height); `options` are those of Pillow for JPEG.
    """
    rng = np.random.default_rng(number)
    image = Image.open(io.BytesIO(_originals()[number % 2])).convert(mode)
    image = ImageOps.fit(image, size, bleed=rng.uniform(0, 0.25), centering=rng.random(2))
    if rng.integers(2):
        image = ImageOps.mirror(image)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def sample(count):
    """Return `count` photographs, one a synset of ILSVRC-2012, as (synset, bytes), sorted.

    The first two are scikit-learn's files as they are; the others are pieces of them, in sizes and
    encodings that recur together after 56.
    """
    sizes, encodings = itertools.cycle(_SIZES), itertools.cycle(_ENCODINGS)
    forms = itertools.islice(zip(sizes, encodings, strict=True), max(count - 2, 0))
    pieces = [piece(number, size, **options) for number, (size, options) in enumerate(forms)]
    return list(zip(SYNSETS[::4], [*_originals(), *pieces][:count], strict=False))


def shared_file(name):
    """Return a file of the data beside the checkout; without it the test fails in one line."""
    path = SHARED / name
    if not path.exists():
        pytest.fail(f'needs {path}, which is not in the repository', pytrace=False)
    return path


def imagenet_sample():
    """Return 250 photographs of ImageNet, one a synset, as (synset, bytes), sorted.

    For tests that are marked `photographs`.
    """
    with tarfile.open(shared_file('imagenet_sample.tar')) as tar:
        members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
        return [(Path(m.name).name[:9], tar.extractfile(m).read()) for m in members]


def encoded(data, format, mode='RGB', **options):
    """Return a photograph stored in another format or mode."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def huge():
    """Return a small PNG file whose header says 40,000 x 40,000 pixels."""
    header = struct.pack('>IIBBBBB', 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = (b'IHDR', header), (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def expected(data, size=256):
    """Return what a photograph must become: shorter side, centre, by Pillow's own words."""
    image = Image.open(io.BytesIO(data)).convert('RGB')
    width, height = image.size
    if width < height:
        image = image.resize((size, round(height * size / width)), Image.Resampling.BILINEAR)
    else:
        image = image.resize((round(width * size / height), size), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def add(tar, name, data, **fields):
    """Add a member to a tar that is being written."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def tar_bytes(files):
    """Return a tar of (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, data in files:
            add(tar, name, data)
    return buffer.getvalue()
