"""Records decoded without protocol buffers, tfds and Pillow, compared with all three."""

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.input import examples
from alexnet_jax.preparation import images

SHAPE = (33, 47, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
# Smooth colours, as in a photograph: chroma that is stored at half the resolution shows in them.
PHOTOGRAPH = np.asarray(
    PIL.Image.fromarray(PIXELS[:6, :6]).resize((47, 33), PIL.Image.Resampling.BICUBIC)
)


def example(image=b'pixels', label=3, **more) -> Any:
    message = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    feature = message.features.feature
    feature['image'].bytes_list.value.append(image)
    feature['label'].int64_list.value.append(label)
    for name, text in more.items():
        feature[name].bytes_list.value.append(text)
    return message


def decoder(image) -> examples.Decoder:
    label = tfds.features.ClassLabel(num_classes=10)
    return examples.Decoder(tfds.features.FeaturesDict({'image': image, 'label': label}))


RAW = decoder(tfds.features.Tensor(shape=SHAPE, dtype=np.uint8, encoding='bytes'))
FILE = decoder(tfds.features.Image(shape=SHAPE))


@pytest.mark.parametrize('label', [0, 1, 127, 128, 999, 2**31, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize('size', [0, 1, 127, 128, 20_000, 3_000_000])
def test_what_protocol_buffers_write(label, size):
    pixels = np.random.default_rng(size).bytes(size)
    record = example(pixels, label, id=b'a feature more').SerializeToString()
    image, found = examples.parse(record)
    assert (bytes(image), found) == (pixels, label)


def test_what_they_may_write_too():
    """An integer that is not packed, fields nobody knows, features in two parts."""
    unpacked = b'\x0a\x05label\x12\x04\x1a\x02\x08\x05'  # Int64List.value as a plain varint, 5
    unknown = b'\x48\x96\x01' + b'\x51' + bytes(8) + b'\x5d' + bytes(4) + b'\x62\x02no'
    image = example(b'pixels').features.feature['image'].SerializeToString()
    entry = b'\x0a\x05image\x12' + bytes([len(image)]) + image
    parts = [b'\x0a' + bytes([len(part)]) + part for part in (unpacked, entry)]
    record = unknown.join(b'\x0a' + bytes([len(part)]) + part for part in parts)
    theirs = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    assert theirs.features.feature['label'].int64_list.value == [5]
    found, label = examples.parse(record)
    assert (bytes(found), label) == (b'pixels', 5)


def test_what_is_no_example():
    two = example()
    two.features.feature['image'].bytes_list.value.append(b'another')
    missing = example()
    del missing.features.feature['label']
    for message, words in ((two, 'unpack'), (missing, "no feature b'label'")):
        with pytest.raises(ValueError, match=words):
            examples.parse(message.SerializeToString())
    record = example(bytes(300)).SerializeToString()
    for length in range(1, len(record)):  # cut anywhere
        with pytest.raises((ValueError, IndexError)):
            examples.parse(record[:length])


def test_raw_pixels_are_a_view_of_the_record():
    record = example(PIXELS.tobytes(), 7).SerializeToString()
    image, label = RAW(record)
    np.testing.assert_array_equal(image, PIXELS, strict=True)
    assert label == 7
    assert np.shares_memory(image, np.frombuffer(record, np.uint8))
    with pytest.raises(ValueError, match='reshape'):
        RAW(example(PIXELS.tobytes()[1:]).SerializeToString())


def jpeg(image, **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, 'JPEG', **options)
    return buffer.getvalue()


@pytest.mark.parametrize('subsampling', [0, 1, 2])  # 4:4:4, 4:2:2, 4:2:0
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'optimize': True}])
@pytest.mark.parametrize('quality', [30, 75, 95])
def test_jpeg_files_as_pillow_decodes_them(subsampling, options, quality):
    for pixels in (PIXELS, PHOTOGRAPH):
        stored = jpeg(pixels, quality=quality, subsampling=subsampling, **options)
        image, _ = FILE(example(stored).SerializeToString())
        want = np.asarray(PIL.Image.open(io.BytesIO(stored)))
        np.testing.assert_array_equal(image, want, strict=True)


def test_other_files_and_encodings():
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, 'PNG')
    image, label = FILE(example(buffer.getvalue(), 2).SerializeToString())
    np.testing.assert_array_equal(image, PIXELS, strict=True)
    assert label == 2
    zipped = tfds.features.Tensor(shape=SHAPE, dtype=np.uint8, encoding='zlib')
    numbers = tfds.features.Tensor(shape=SHAPE, dtype=np.uint8)
    for feature in (zipped, numbers):
        stored = example()
        stored.features.feature['image'].Clear()
        if feature is zipped:
            stored.features.feature['image'].bytes_list.value.append(feature.encode_example(PIXELS))
        else:
            stored.features.feature['image'].int64_list.value.extend(PIXELS.ravel().tolist())
        image, label = decoder(feature)(stored.SerializeToString())
        np.testing.assert_array_equal(image, PIXELS, strict=True)
        assert label == 3


def test_damaged_jpeg_files_are_refused():
    stored = images.encode_jpeg(PIXELS)
    damaged = [stored[:-40], stored[:200], stored[:3]]
    marker = stored.index(b'\xff\xda') + 30
    damaged.append(stored[:marker] + b'\xff\x41' + stored[marker + 2 :])  # Pillow is silent
    for data in damaged:
        with pytest.raises(ValueError, match=r'JPEG|marker|image'):
            FILE(example(data).SerializeToString())
