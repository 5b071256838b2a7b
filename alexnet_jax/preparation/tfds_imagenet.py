"""Read photographs from an `imagenet2012` of JPEG files that tfds has prepared."""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.runtime.errors import UserError, first_line

_METADATA = ('features.json', 'dataset_info.json')


class Record(NamedTuple):
    """A `photographs.Photograph` that is a record of an ArrayRecord file."""

    file: str  # path below the directory of the data set
    index: int

    @property
    def name(self) -> str:
        """The position of the record, which holds the photograph's name in ImageNet."""
        return f'{self.file}[{self.index}]'

    def read(self, source: str) -> tuple[str, bytes, int]:
        """Return the name in ImageNet, the bytes of the JPEG file and the label."""
        try:
            (record,) = _reader(os.path.join(source, self.file)).read([self.index])
            example: Any = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            feature = example.features.feature
            name, image = (feature[key].bytes_list.value[0] for key in ('file_name', 'image'))
            return name.decode(), image, feature['label'].int64_list.value[0]
        except Exception as error:  # of ArrayRecord, of the protocol buffer, of a missing feature
            reason = first_line(error)
            raise UserError(
                f'{os.path.join(source, self.name)} cannot be read ({reason}); copy or prepare the '
                f'data set again'
            ) from error


@functools.lru_cache(maxsize=1)  # the records of a file come one after the other
def _reader(path: str) -> Any:
    return array_record_module.ArrayRecordReader(path, 'readahead_buffer_size:0')


def is_dataset(source: str | os.PathLike) -> bool:
    """Say whether a directory is a data set of tfds."""
    return any(os.path.isfile(os.path.join(source, file)) for file in _METADATA)


def find_records(
    source: str | os.PathLike, splits: Sequence[str], class_names: Sequence[str]
) -> tuple[dict[str, list[Record]], list[str]]:
    """Return the records of each split, in stored order, and the names of the other splits.

    Raises UserError if `source` is not an `imagenet2012` of tfds with these classes and splits,
    stored as ArrayRecord with JPEG files, or if a file is missing.
    """
    path = os.fspath(source)
    again = 'tfds build imagenet2012 --file_format=array_record (which needs TensorFlow)'
    try:
        info = tfds.builder_from_directory(path).info
    except Exception as error:  # of the file system, of JSON, of a feature that tfds does not know
        reason = first_line(error)
        raise UserError(
            f'{path} is not a complete data set ({reason}); prepare it again: {again}'
        ) from error
    if info.name != 'imagenet2012':
        raise UserError(f'{path} is {info.full_name}, not imagenet2012; name another --source')
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'{path} is stored as {info.file_format and info.file_format.value}, which only '
            f'TensorFlow reads; convert it to ArrayRecord: tfds convert_format '
            f'--dataset_version_dir={path} --out_file_format=array_record --out_dir=DIR'
        )
    features: Any = info.features
    expected = {'image': tfds.features.Image, 'file_name': tfds.features.Text}
    if not all(k in features and isinstance(features[k], kind) for k, kind in expected.items()):
        raise UserError(f'{path} has no JPEG files with their names; prepare it again: {again}')
    if features['label'].names != list(class_names):
        raise UserError(f'{path} has other classes than ILSVRC-2012; prepare it again: {again}')
    missing = [split for split in splits if split not in info.splits]
    if missing:
        raise UserError(
            f'{path} has no split {missing[0]}; prepare it again, with both archives: {again}'
        )
    found = {split: _records(path, info.splits[split], again) for split in splits}
    return found, [split for split in info.splits if split not in splits]


def _records(path: str, split: Any, again: str) -> list[Record]:
    records = []
    for file, length in zip(split.filepaths, split.shard_lengths, strict=True):
        found = _reader(os.fspath(file)).num_records()  # 0 for a missing or a truncated file
        if found != length:
            raise UserError(
                f'{os.fspath(file)} is missing or damaged: it has {found} of {length} records; '
                f'copy the file again, or prepare the data set again: {again}'
            )
        records += [Record(os.path.relpath(file, path), index) for index in range(length)]
    return records
