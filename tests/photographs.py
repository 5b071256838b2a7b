"""Real photographs for tests, odd ones made from them, and what Pillow alone makes of each."""

import functools
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'


def shared_file(name):
    """Return a file of the data shared beside the checkout, or skip the test."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'needs {name} in ../shared/data, which is not in the repository')
    return path


@functools.cache
def sample(count):
    """Return `count` photographs of ImageNet, one a synset, as (synset, bytes), sorted."""
    with tarfile.open(shared_file('imagenet_sample.tar')) as tar:
        members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)[:count]
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
