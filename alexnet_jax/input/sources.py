"""Open a prepared tensorflow-datasets data set by name, check it, and read its examples."""

import bisect
import contextlib
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath

from alexnet_jax.input.examples import Decoder
from alexnet_jax.runtime.config import (
    PLACE,
    Section,
    field,
    integer,
    is_integer,
    nonempty,
    text,
    tuple_of,
)
from alexnet_jax.runtime.errors import UserError, first_line, system_errors
from alexnet_jax.runtime.storage import path_field

_HELP = 'python -m alexnet_jax.prepare --help'
_EVAL_SPLITS = ('test', 'validation', 'val')  # the names that data.eval_split = '' tries
_METADATA = 'features.json'  # tfds writes it last, so its presence marks a complete data set
RECIPE = 'recipe.json'  # of a data set that `records.write_dataset` wrote: what it was made of
_ONE_SIZE = (
    'all images must have the same size; resize them with '
    'python -m alexnet_jax.prepare folder, or alexnet_jax.preparation.records.write_dataset'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The section `data`. `dir` is the resolved data directory once the program has started."""

    name: str = field(nonempty)
    dir: str = field(path_field, role=PLACE)
    train_split: str = field(nonempty)
    eval_split: str = field(text, resume=True)
    image_shape: tuple[int, ...] = field(
        tuple_of(lambda v: is_integer(v) and v > 0, 0, 3, words='(height, width, channels) or ()'),
        role=PLACE,
    )
    train_examples: int = field(integer(0), resume=True)
    eval_examples: int = field(integer(0), resume=True)
    read_threads: int = field(integer(1), role=PLACE)
    prefetch_batches: int = field(integer(1), role=PLACE)

    @classmethod
    def as_stored(
        cls, name: str, dir: str, *, eval_split: str = 'train', read_threads: int = 1
    ) -> 'DataConfig':
        """Return the section for a prepared data set whose sizes are whatever the data say."""
        return cls(
            name=name,
            dir=dir,
            train_split='train',
            eval_split=eval_split,
            image_shape=(),
            train_examples=0,
            eval_examples=0,
            read_threads=read_threads,
            prefetch_batches=1,
        )


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to the examples of one split; safe to read from several threads."""

    full_name: str  # 'digits/1.0.0'
    name: str  # 'train', 'train[:90%]'
    image_shape: tuple[int, ...]  # height, width, channels
    num_classes: int
    records: Sequence[bytes]
    decode: Decoder
    shards: tuple[tuple[int, int, int], ...]  # (skipped, taken, all) examples of each file
    files: tuple[str, ...]  # the names of these files
    states: tuple[tuple[int, int], ...]  # size and time of modification of each, when it was opened

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | np.int32]:
        """Return `image` uint8 [H, W, C] and `label` int32.

        Raises UserError, naming the file, the split and the index, for a record that cannot be read
        and for a file that has changed since the split was opened; naming the split and the index,
        for an image of another dtype or shape and for a label outside the classes.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'{self.full_name} {self.name} has no example {index}')
        where = f'example {index} of {self.full_name} {self.name}'
        number = bisect.bisect_right(self._ends, index)
        file = self.files[number]
        try:
            # Files that are open can be read after they were deleted, but the others cannot; and
            # what was copied over a file may be images of another data set.
            if _state(file) != self.states[number]:
                raise ValueError('it was removed or changed after it was opened')
            image, label = self.decode(self.records[index])
        except Exception as error:  # of ArrayRecord, of the protocol buffer or of an image decoder
            reason = getattr(error, 'strerror', None) or first_line(error)
            raise UserError(
                f'{file}: {where} cannot be read ({reason}); copy or prepare the data set again, '
                'then run the same command again'
            ) from error
        if image.dtype != np.uint8 or image.shape != self.image_shape:
            raise UserError(
                f'{where} is {image.dtype} {_times(image.shape)}, not uint8 '
                f'{_times(self.image_shape)}; {_ONE_SIZE}'
            )
        if not 0 <= label < self.num_classes:
            raise UserError(
                f'{where} has label {label}, but labels must be 0 to {self.num_classes - 1}; '
                f'choose a split that has labels'
            )
        return {'image': image, 'label': np.int32(label)}

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of examples up to the end of each file."""
        return list(itertools.accumulate(taken for _, taken, _ in self.shards))

    def overlaps(self, other: 'Split') -> bool:
        """Say whether the two splits share an example."""
        return any(
            mine == theirs and skip < there + taken and there < skip + take
            for mine, (skip, take, _) in zip(self.files, self.shards, strict=True)
            for theirs, (there, taken, _) in zip(other.files, other.shards, strict=True)
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Return a summary that identifies the examples and their order, with three raw records."""
        sample = sorted({0, len(self) // 2, len(self) - 1})
        return {
            'name': self.full_name,
            'split': self.name,
            'examples': len(self),
            'shards': _digest(repr(self.shards).encode()),
            'sample': _digest(*(self.records[index] for index in sample)),
        }


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its training split and its evaluation split."""

    full_name: str  # 'digits/1.0.0'
    directory: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]  # height, width, channels
    train: Split
    eval: Split
    read_threads: int
    prefetch_batches: int

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    def fingerprint(self) -> dict[str, str | int]:
        """Return a flat summary of the data, so that a resumed run can name what has changed."""
        splits = {'train': self.train, 'eval': self.eval}
        return {
            'image_shape': _times(self.image_shape),
            'classes': self.num_classes,
            'class_names': class_names_digest(self.class_names),
            **{
                f'{k}_{f}': v for k, split in splits.items() for f, v in split.fingerprint().items()
            },
        }


@system_errors()
def open_dataset(config: DataConfig) -> Dataset:
    """Open a data set that was prepared as ArrayRecord; this downloads and writes nothing.

    The name is `NAME` or `NAME/CONFIG`, with or without `:VERSION`; without it the highest version
    is opened. The splits are those of tfds, including slices such as `train[:90%]`. An `eval_split`
    of '' means the first of 'test', 'validation' and 'val' that exists. An `image_shape` of () and
    numbers of examples of 0 are taken from the data; other values must agree with the data.

    Raises UserError if the data set is missing or incomplete, cannot be read, is stored in another
    format, does not consist of images with labels, or does not agree with the configuration.
    """
    root = epath.Path(config.dir)
    path = _find(config.name, root)
    again = _again(path, _remedy(config.name, root))
    builder = _open_builder(path, again)
    shape = _image_shape(builder.info, config.image_shape)
    eval_split = config.eval_split or _find_eval_split(builder.info)
    return Dataset(
        full_name=builder.info.full_name,
        directory=os.fspath(path),
        class_names=tuple(builder.info.features['label'].names),
        image_shape=shape,
        train=_open_split(
            builder, config.train_split, shape, 'train', config.train_examples, again
        ),
        eval=_open_split(builder, eval_split, shape, 'eval', config.eval_examples, again),
        read_threads=config.read_threads,
        prefetch_batches=config.prefetch_batches,
    )


def _find_eval_split(info: Any) -> str:
    """Return the name of the evaluation split; raise UserError if no split has a usual name."""
    found = [split for split in _EVAL_SPLITS if split in info.splits]
    if not found:
        raise UserError(
            f"config.data.eval_split = '' looks for {', '.join(_EVAL_SPLITS)}, but "
            f'{info.full_name} has {", ".join(info.splits)}; choose one of these splits'
        )
    return found[0]


def is_prepared(name: str, dir: epath.PathLike) -> bool:
    """Say whether a data directory holds a complete version of the data set."""
    return bool(_versions(name, epath.Path(dir)))


def _versions(name: str, root: epath.Path) -> list[epath.Path]:
    """Return each complete ROOT/NAME[/CONFIG]/VERSION that matches the name, the highest last."""
    base, _, version = name.partition(':')
    found = _glob(f'{glob.escape(base)}/{glob.escape(version) or "*"}/{_METADATA}', root)
    found = [path.parent for path in found if tfds.core.Version.is_valid(path.parent.name)]
    return sorted(found, key=lambda path: tfds.core.Version(path.name))


def _glob(pattern: str, root: epath.Path) -> list[epath.Path]:
    """Return the paths below a root that match; the root itself may hold any character."""
    return [root / path for path in glob.glob(pattern, root_dir=os.fspath(root))]


def _find(name: str, root: epath.Path) -> epath.Path:
    if versions := _versions(name, root):
        return versions[-1]
    base, _, version = name.partition(':')
    for folder in (root, root / base):
        if folder.exists():
            os.listdir(folder)  # a folder that cannot be read is an error of its own
    for path in _glob(f'{glob.escape(base)}/{glob.escape(version) or "*"}', root):
        if tfds.core.Version.is_valid(path.name):
            raise UserError(
                f'{path} is incomplete: it has no {_METADATA}, which is written last; copy the '
                f'rest, or prepare it: {_remedy(name, root)}'
            )
    depths = (f'*/*/{_METADATA}', f'*/*/*/{_METADATA}')  # NAME/VERSION, NAME/CONFIG/VERSION
    there = {str(path.relative_to(root).parents[1]) for d in depths for path in _glob(d, root)}
    raise UserError(
        f'data set {name!r} is not in {root}, which has {", ".join(sorted(there)) or "none"}; '
        f'to prepare it: {_remedy(name, root)}'
    )


def _again(path: epath.Path, remedy: str) -> str:
    """Return how to prepare a data set again; remove the old one only if the command is known."""
    if remedy == _HELP:
        return f'move {path} away; {_HELP} shows how to prepare a data set'
    return f'rm -r {shlex.quote(str(path))} && {remedy}'


def _remedy(name: str, root: epath.Path) -> str:
    """Return the command that prepares a data set, or `_HELP` if it is not known."""
    base = name.partition(':')[0].partition('/')[0]
    data_dir = f'--data_dir={shlex.quote(str(root))}'
    if base == 'digits':
        return f'python -m alexnet_jax.prepare digits {data_dir}'
    if base in ('imagenet2010', 'imagenet2012'):
        year = ' --year=2010' if base == 'imagenet2010' else ''
        return f'python -m alexnet_jax.prepare imagenet{year} --source DIR {data_dir}'
    if base in tfds.list_builders(with_community_datasets=False):
        build = f'tfds build {name} --file_format=array_record {data_dir}'
        return f'pip install tensorflow && {build}'
    return _HELP


def _open_builder(path: epath.Path, again: str) -> Any:
    """Return the tfds builder of a directory that holds images with labels as ArrayRecord."""
    for file in (_METADATA, 'dataset_info.json'):
        _require_permission(path / file)
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # of the file system, of JSON, of a feature that tfds cannot restore
        raise UserError(
            f'{path} is not a complete data set ({first_line(error)}); to prepare it again: {again}'
        ) from error
    name, stored = builder.info.full_name, builder.info.file_format
    if stored is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'{name} in {path} is stored as {stored and stored.value}, but reading any example '
            f'without TensorFlow needs array_record; to prepare it again: {again}'
        )
    features: Any = builder.info.features
    has_both = {'image', 'label'} <= features.keys()
    if not has_both or not isinstance(features['label'], tfds.features.ClassLabel):
        raise UserError(
            f'{name} has the features {", ".join(sorted(features))}, but an image and a label, a '
            f'ClassLabel, are needed; choose another data.name'
        )
    damaged = _damaged_names(path, features['label'])
    if damaged:
        raise UserError(f'{damaged} is missing or damaged; to prepare the data set again: {again}')
    return builder


def _damaged_names(path: epath.Path, label: Any) -> epath.Path | None:
    """Return the file of the class names if it does not hold those that were written."""
    file, recipe = label.get_names_filepath(path, 'label'), path / RECIPE
    whole = len(set(label.names)) == label.num_classes and (not file.exists() or file.read_bytes())
    if recipe.exists():
        with contextlib.suppress(ValueError, TypeError):  # `prepare` says more about the recipe
            written = dict(json.loads(recipe.read_text())).get('class_names')
            whole = written in (None, digest_of_each(label.names))
    return None if whole else file


def _image_shape(info: Any, expected: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of all images; raise UserError if it varies or is not as expected."""
    stored = info.features['image'].shape
    if None in stored and not expected:
        raise UserError(
            f'{info.full_name} has images of varying size ({_times(stored)}); {_ONE_SIZE}'
        )
    if len(stored) != 3 or any(s not in (None, e) for s, e in zip(stored, expected, strict=False)):
        raise UserError(
            f'{info.full_name} has images of {_times(stored)}, not data.image_shape = {expected}; '
            f"set --config.data.image_shape='{stored}', or '()' for any"
        )
    return expected or stored


def _open_split(
    builder: Any,
    split: str,
    image_shape: tuple[int, ...],
    role: str,
    expected: int,
    again: str,
) -> Split:
    """Open a split, check the number of records in its files, and read one example."""
    info = builder.info
    try:
        files = info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise UserError(
            f'data.{role}_split = {split!r} is not in {info.full_name} ({first_line(error)}); '
            f'choose one of {", ".join(info.splits)}'
        ) from error
    count = sum(file.take for file in files)
    if count == 0 or expected not in (0, count):
        raise UserError(
            f'{info.full_name} {split} has {count} examples, but data.{role}_examples = {expected};'
            f' set --config.data.{role}_examples=0 for any number, or prepare the data set again: '
            f'{again}'
        )
    names = tuple(os.fspath(file.filename) for file in files)
    with futures.ThreadPoolExecutor(16) as pool:  # many small reads, perhaps over a network
        states = tuple(pool.map(_state, names))
        found = list(pool.map(_num_records, names))
    for file, records in zip(files, found, strict=True):
        if records != file.examples_in_shard:
            _require_permission(file.filename)
            raise UserError(
                f'{file.filename} is missing or damaged: it has {records} of '
                f'{file.examples_in_shard} records; copy the file again, or prepare the data set '
                f'again: {again}'
            )
    shards = tuple((file.skip, file.take, file.examples_in_shard) for file in files)
    num_classes = info.features['label'].num_classes
    records = builder.as_data_source(split).data_source  # bytes, as stored
    decode = Decoder(info.features)
    opened = Split(
        *(info.full_name, split, image_shape, num_classes, records, decode, shards, names, states)
    )
    opened[0]  # an image of another size is better noticed here than in the middle of a run
    return opened


def _require_permission(path: epath.PathLike) -> None:
    """Raise the system's own error for a file that is there and cannot be opened.

    Without this the remedy would be to prepare again what is only not readable.
    """
    with contextlib.suppress(FileNotFoundError), open(path, 'rb'):
        pass


def _num_records(path: str) -> int:
    """Return the number of records of a file, which is 0 for a missing or a truncated file."""
    # Without read-ahead, which would read megabytes only to count.
    return array_record_module.ArrayRecordReader(path, 'readahead_buffer_size:0').num_records()


def _state(path: str) -> tuple[int, int]:
    """Return the size and the time of modification of a file; -1 if it is missing."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _times(shape: Sequence[int | None]) -> str:
    return 'x'.join('?' if size is None else str(size) for size in shape)


def class_names_digest(class_names: Sequence[str]) -> str:
    """Return what identifies the names of the classes and their order."""
    return _digest('\n'.join(class_names).encode())


def digest_of_each(items: Iterable[Any]) -> str:
    """Return a digest of the `repr` of each item."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f'{item!r}\n'.encode())
    return digest.hexdigest()[:16]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
