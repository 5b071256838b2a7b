"""Write images of one size as a data set of ArrayRecord shards that tensorflow-datasets reads.

The writing can be killed at any moment: a shard gets its name only when it is complete, a rerun
keeps the complete shards, and the metadata is written last, so that a directory with
`features.json` is complete.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import shlex
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from alexnet_jax.input.sources import RECIPE, digest_of_each
from alexnet_jax.preparation import shard_files
from alexnet_jax.runtime import locks, storage
from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)

_UNFINISHED = '.tmp'  # what a killed process leaves ends in this
_LAST_FILE = 'features.json'  # written last, so its presence marks a complete data set


def write_dataset(
    data_dir: epath.PathLike,
    *,
    name: str,
    version: str,
    description: str,
    image_shape: tuple[int, ...],
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Any]],
    shards: Mapping[str, int],
    read_example: Callable[[Any], tuple[Any, ...]],
    workers: int = 1,
    encode_jpeg: Callable[[np.ndarray], bytes] | None = None,
    keep_left_out: bool = True,
    review: Callable[[epath.Path, Mapping[str, shard_files.Review]], None] | None = None,
) -> epath.Path:
    """Write the data set to DATA_DIR/NAME/VERSION and return that directory; a rerun continues.

    The bytes depend neither on `workers` nor on how often the writing was killed.

    Args:
      data_dir: the directory of all data sets; `~` is expanded.
      name, version, description: as tfds shows them. The description says how the pixels were made;
        shards with another description are refused.
      image_shape: (height, width, channels) of every image.
      class_names: a label is an index into them. They are stored one a line; see
        `check_class_names`.
      splits: split -> the items to write, in order. An item is a small object that describes an
        example, and its `repr` must identify it.
      shards: split -> number of files.
      read_example: item -> (image uint8 [H, W, C], label). With several workers, this function and
        the items must be picklable, and the program's main module needs a
        `__name__ == '__main__'` guard. It may return notes, each a (kind, text), after the label,
        and None as the image of an example to leave out.
      workers: number of processes; with 1, this process does the work.
      encode_jpeg: image -> the JPEG file that is stored instead of the pixels.
      keep_left_out: whether a rerun keeps shards that left out images; False writes them again.
      review: called with the directory and a Review of each split when all shards are written; if
        it raises an error, the data set does not become complete.

    Raises UserError if the directory holds another data set or cannot be written, for class names
    that cannot be stored, and if an example is not an image of that shape with one of the labels.
    """
    check_class_names(class_names)
    directory = epath.Path(data_dir).expanduser() / name / version
    recipe = _recipe(name, version, description, image_shape, class_names, splits, shards)
    if (directory / _LAST_FILE).exists():  # perhaps on a read-only disk
        _check_recipe(directory, recipe)
        return directory
    if encode_jpeg:
        image = tfds.features.Image(shape=image_shape, dtype=np.uint8, encoding_format='jpeg')
    else:
        image = tfds.features.Tensor(
            shape=image_shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
    label = tfds.features.ClassLabel(names=list(class_names))
    features = tfds.features.FeaturesDict({'image': image, 'label': label})
    with _hold(directory, recipe):
        if not (directory / _LAST_FILE).exists():  # otherwise another process was faster
            _remove(directory, _UNFINISHED)
            layout = _layout(directory, name, splits, shards)
            write = functools.partial(
                shard_files.write_shard, read_example, image_shape, len(class_names), encode_jpeg
            )
            try:
                shard_files.write_shards(layout, splits, write, workers, keep_left_out)
                if review:
                    found = {
                        split: shard_files.review_split(info) for split, info in layout.items()
                    }
                    review(directory, found)
                with storage.writing(directory):
                    _write_metadata(directory, name, version, description, features, layout)
            except BaseException:
                with contextlib.suppress(OSError):  # on a full disk nobody else can write either
                    _remove(directory, _UNFINISHED)
                raise
        _remove(directory, shard_files.NOTES)
    return directory


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise UserError for class names that cannot be stored, or that print alike.

    tfds stores a name a line and drops the blanks around it and empty lines. Names that Unicode
    calls canonically equivalent, such as an e with an acute accent as one character or as two, are
    the same for every reader.
    """
    seen: dict[str, str] = {}  # canonical form -> name
    for name in class_names:
        twin = seen.get(canonical := unicodedata.normalize('NFC', name))
        if not name.strip():
            problem = 'is blank'
        elif name != name.strip():
            problem = 'begins or ends with a blank'
        elif '\n' in name or '\r' in name:
            problem = 'has a line break'
        elif any('\ud800' <= character <= '\udfff' for character in name):
            problem = 'is not UTF-8'
        elif twin is not None:
            problem = f'is the same text as that of the class {twin!a}'
        else:
            seen[canonical] = name
            continue
        raise UserError(
            f'the class {name!a} cannot be stored: its name {problem}; rename its folder'
        )


def _remove(directory: epath.Path, suffix: str) -> None:
    """Remove the files and folders of a directory whose names end in `suffix`."""
    for path in directory.iterdir():
        if path.name.endswith(suffix):
            path.rmtree()


def _recipe(name, version, description, image_shape, class_names, splits, shards) -> dict[str, Any]:
    """Return the inputs that determine the bytes, flat, so that an error can name a difference."""
    recipe = {
        'name': f'{name}/{version}',
        'description': description,
        'image_shape': list(image_shape),
        'classes': len(class_names),
        'class_names': digest_of_each(class_names),
    }
    for split, items in splits.items():
        recipe[f'{split} examples'] = len(items)
        recipe[f'{split} shards'] = shards[split]
        recipe[f'{split} items'] = digest_of_each(items)
    return recipe


def _check_recipe(directory: epath.Path, recipe: Mapping[str, Any]) -> None:
    """Raise UserError if the directory was written with another recipe, so that none are mixed."""
    path = directory / RECIPE
    try:
        found = dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):  # cut short, or of another program
        found = {}
    for key in {**recipe, **found}:
        if found.get(key) != recipe.get(key):
            raise UserError(
                f'{directory} was made with other settings: {key} is {found.get(key)!r} there and '
                f'{recipe.get(key)!r} here; remove it (rm -r {shlex.quote(str(directory))}) and '
                'run again'
            )


@contextlib.contextmanager
def _hold(directory: epath.Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Lock the directory for this process and this recipe; wait while another process holds it.

    The recipe file is also the lock.
    """
    path = directory / RECIPE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a')  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f'cannot write {directory} ({error.strerror}); choose another --data_dir'
        ) from error
    with file:
        locks.hold(file)
        if os.path.getsize(path) == 0 and all(entry == path for entry in directory.iterdir()):
            with storage.writing(path):
                try:
                    path.write_text(json.dumps(recipe, indent=2))
                except OSError:
                    os.truncate(path, 0)  # or the next run would find another recipe
                    raise
        _check_recipe(directory, recipe)
        yield


def _layout(directory, name, splits, shards) -> dict[str, Any]:
    """Return a tfds SplitInfo for each split: the files and how many examples each holds."""
    layout = {}
    for split, items in splits.items():
        count = shards[split]
        if not 0 < count <= len(items):
            raise ValueError(f'cannot divide {len(items)} examples of {split} into {count} shards')
        bounds = [len(items) * i // count for i in range(count + 1)]
        layout[split] = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[end - start for start, end in itertools.pairwise(bounds)],
            num_bytes=0,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=directory, dataset_name=name, split=split, filetype_suffix='array_record'
            ),
        )
    return layout


def _write_metadata(directory, name, version, description, features, layout) -> None:
    """Write tfds's own files; the file that marks the data set as complete comes last."""
    layout = [
        info.replace(
            num_bytes=sum(os.path.getsize(path) for path in info.filepaths),
            shard_lengths=[
                length - shard_files.read_notes(path).left_out
                for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
            ],
        )
        for info in layout.values()
    ]
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(version),
            data_dir=os.fspath(directory),
            module_name=__name__,
        ),
        description=description,
        features=features,
        supervised_keys=('image', 'label'),
        disable_shuffling=True,
        split_dict=tfds.core.SplitDict(layout),
    )
    info.set_file_format('array_record')
    staging = directory / 'metadata.tmp'
    staging.mkdir(exist_ok=True)
    info.write_to_directory(staging)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == _LAST_FILE):
        path.replace(directory / path.name)
    staging.rmdir()
