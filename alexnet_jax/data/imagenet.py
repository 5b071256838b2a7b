"""ImageNet, ILSVRC-2012, from its original archives, which are read where they lie."""

import itertools
import os
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds
import tqdm
from etils import epath

from alexnet_jax.config import UserError
from alexnet_jax.data import archives
from alexnet_jax.data.photographs import Item, write_photographs

NAME = 'imagenet2012'
# The classes, labels and splits are those of 5.1 of tfds, the images another thing: 256 pixels.
VERSION = '5.1.256'
SIZE = 256  # Paper 2

_TRAIN, _VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
_BYTES = {_TRAIN: 147_897_477_120, _VALIDATION: 6_744_924_160}  # of the originals
_TRAIN_IMAGES, _VALIDATION_IMAGES = 1_281_167, 50_000


def prepare_imagenet(
    data_dir: epath.PathLike,
    source: str | os.PathLike,
    *,
    encoding: str = 'raw',
    workers: int = 1,
    skip_broken: bool = False,
    allow_subset: bool = False,
) -> epath.Path:
    """Write the data set `imagenet2012` from the two archives in `source`; return its directory.

    Nothing is extracted: an index of the archives says where each JPEG lies. Classes are the 1,000
    synsets, sorted, and the order of the examples is that of the names; training shuffles.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: the folder with `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.
      allow_subset: accept archives with fewer images.

    Raises UserError for a missing or damaged archive, a name that does not belong there, a wrong
    number of files, and as `photographs.write_photographs` does.
    """
    for archive in (_TRAIN, _VALIDATION):
        if not os.path.isfile(os.path.join(source, archive)):
            raise UserError(
                f'{os.path.join(source, archive)} is missing; download {_TRAIN} and {_VALIDATION} '
                f'from https://image-net.org (ILSVRC 2012) and name their folder with --source'
            )
    synsets = _lines('labels.txt')
    train, validation = _train(source, synsets), _validation(source, synsets)
    for archive, what, found, expected in (
        (_TRAIN, 'synsets', len({item.label for item in train}), len(synsets)),
        (_TRAIN, 'images', len(train), _TRAIN_IMAGES),
        (_VALIDATION, 'images', len(validation), _VALIDATION_IMAGES),
    ):
        if found > expected or (found < expected and not (allow_subset and found)):
            path = os.path.join(source, archive)
            raise UserError(
                f'{path} has {found} {what}, not {expected} (it has {os.path.getsize(path)} bytes, '
                f'the original {_BYTES[archive]}); download it again, or accept fewer with '
                f'--allow_subset'
            )
    return write_photographs(
        data_dir,
        source,
        name=NAME,
        version=VERSION,
        description='ILSVRC-2012 with the labels and splits of tfds imagenet2012 5.1.0.',
        size=SIZE,
        class_names=synsets,
        splits={'train': train, 'validation': validation},
        settings={'source': os.fspath(source), 'size': SIZE, 'encoding': encoding},
        encoding=encoding,
        workers=workers,
        skip_broken=skip_broken,
    )


def _lines(file: str) -> list[str]:
    """Return the lines of a file that tfds packages with its imagenet2012."""
    return tfds.core.tfds_path(f'datasets/imagenet2012/{file}').read_text().split()


def _train(source: str | os.PathLike, synsets: Sequence[str]) -> list[Item]:
    """Return the photographs of the tar of tars, sorted by synset and name."""
    path = os.path.join(source, _TRAIN)
    labels = {f'{synset}.tar': label for label, synset in enumerate(synsets)}
    items, found = [], set()
    inners = archives.tar_entries(path)
    for inner in tqdm.tqdm(inners, _TRAIN, len(labels), unit=' synsets', disable=None):
        if inner.name not in labels:
            raise _foreign(path, inner.name, 'the tar of a synset of ILSVRC-2012')
        if inner.name in found:
            raise _foreign(path, inner.name, 'there once only')
        found.add(inner.name)
        label = labels[inner.name]
        for entry in archives.tar_entries(path, inner.offset, inner.size):
            if not re.fullmatch(rf'{synsets[label]}_\w+\.JPEG', entry.name):
                raise _foreign(path, f'{inner.name}/{entry.name}', 'an image of that synset')
            items.append(Item(_TRAIN, entry, label))
    return _sorted(path, items)


def _validation(source: str | os.PathLike, synsets: Sequence[str]) -> list[Item]:
    """Return the photographs for validation, sorted; the n-th has the n-th label."""
    path = os.path.join(source, _VALIDATION)
    answers = [synsets.index(synset) for synset in _lines('validation_labels.txt')]
    items = []
    for entry in archives.tar_entries(path):
        match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', entry.name)
        if not match or not 0 < int(match[1]) <= len(answers):
            raise _foreign(path, entry.name, 'an image for validation')
        items.append(Item(_VALIDATION, entry, answers[int(match[1]) - 1]))
    return _sorted(path, items)


def _sorted(path: str, items: list[Item]) -> list[Item]:
    items.sort(key=lambda item: item.entry.name)
    for before, item in itertools.pairwise(items):
        if before.entry.name == item.entry.name:
            raise _foreign(path, item.entry.name, 'there once only')
    return items


def _foreign(path: str, member: str, expected: str) -> UserError:
    return UserError(f'{path}: its member {member!r} is not {expected}; download it again')
