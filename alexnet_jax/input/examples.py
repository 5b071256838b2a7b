"""Read the image and the label of a serialized tf.train.Example without copying the pixels.

The Python library of protocol buffers copies the bytes twice, and tfds's own parser once more.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
_JPEG = b'\xff\xd8\xff'  # the first bytes of a JPEG file


class Decoder:
    """Decodes the records of a data set whose tfds features include an image and a label."""

    def __init__(self, features: Any) -> None:
        self._features, self._image = features, features['image']
        self._shape: Any = self._image.shape
        self._is_file = isinstance(self._image, tfds.features.Image)
        self._is_raw = (
            type(self._image) is tfds.features.Tensor
            and self._image.to_json_content().encoding == tfds.features.Encoding.BYTES.value
            and all(self._shape)  # no dimension varies
        )

    def __call__(self, record: bytes) -> tuple[np.ndarray, int]:
        """Return the image, which may be a read-only view of the record, and the label.

        Raises an exception, mostly a ValueError, for a damaged record. JPEG data that libjpeg would
        repair with a warning counts as damaged.
        """
        if not (self._is_file or self._is_raw):
            example = self._features.deserialize_example_np(record)
            return example['image'], example['label']
        stored, label = parse(record)
        if self._is_raw:
            return np.frombuffer(stored, self._image.np_dtype).reshape(self._shape), label
        if stored[:3] == _JPEG and self._shape[-1] == 3:
            return simplejpeg.decode_jpeg(stored, 'RGB'), label  # the same pixels as Pillow, faster
        return self._image.decode_example_np(bytes(stored)), label


def parse(record: bytes) -> tuple[memoryview, int]:
    """Return the bytes of the feature `image`, not copied, and the integer of the feature `label`.

    Raises ValueError for a record that is not an Example with one of each.
    """
    features = {}
    for body in _values(memoryview(record), 1):  # Example.features
        for entry in _values(body, 1):  # Features.feature, a map
            pair = dict(_fields(entry))
            features[bytes(pair[1])] = pair[2]
    try:
        [images] = _values(features[b'image'], 1)  # Feature.bytes_list
        [image] = _values(images, 1)  # BytesList.value
        [labels] = _values(features[b'label'], 3)  # Feature.int64_list
        [label] = _values(labels, 1)  # Int64List.value
    except KeyError as error:
        raise ValueError(f'no feature {error}') from error
    if isinstance(label, memoryview):  # packed, as usual
        label, _ = _varint(label, 0)
    return image, label - 2**64 if label >= 2**63 else label


def _values(message: memoryview, number: int) -> list[Any]:
    return [value for found, value in _fields(message) if found == number]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a message: a memoryview, or an int for a varint."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        else:
            if wire_type == _BYTES:
                size, at = _varint(message, at)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}[wire_type]
            value, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError('the record is truncated')
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the varint that begins at `at`, seven bits per byte, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
