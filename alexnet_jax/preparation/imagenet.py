"""Prepare ImageNet, ILSVRC-2012 or ILSVRC-2010, from its archives without extracting them."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
import tqdm
from etils import epath

from alexnet_jax.preparation import archives, devkit, tfds_imagenet
from alexnet_jax.preparation.photographs import Item, Photograph, write_photographs
from alexnet_jax.runtime.errors import UserError

SIZE = 256  # Paper 2

_DEVKIT, _TEST_ANSWERS = 'ILSVRC2010_devkit-1.0.tar.gz', 'ILSVRC2010_test_ground_truth.txt'
_PATCH = 'patch_images.tar'  # of 2010, optional


class Archive(NamedTuple):
    """An original archive: its name and its contents."""

    file: str
    images: int
    size: int = 0  # in bytes; 0 if it is not known


class Edition(NamedTuple):
    """The files of one year's challenge, and the data set that is made from them."""

    # For 2012 this is 5.1, as in tfds, with its classes, labels and splits, and 256 for the size of
    # the images, which differs. tfds has no builder for 2010.
    version: str
    description: str
    archives: Mapping[str, Archive]  # of each split
    others: tuple[str, ...] = ()  # other files that are needed


EDITIONS = {
    2012: Edition(
        '5.1.256',
        'ILSVRC-2012 with the labels and splits of tfds imagenet2012 5.1.0.',
        {
            'train': Archive('ILSVRC2012_img_train.tar', 1_281_167, 147_897_477_120),
            'validation': Archive('ILSVRC2012_img_val.tar', 50_000, 6_744_924_160),
        },
    ),
    2010: Edition(
        '1.0.256',
        'ILSVRC-2010; a label is the place of the synset among the 1,000 sorted ones.',
        {
            'train': Archive('ILSVRC2010_images_train.tar', 1_261_406),
            'validation': Archive('ILSVRC2010_images_val.tar', 50_000),
            'test': Archive('ILSVRC2010_images_test.tar', 150_000),
        },
        (_DEVKIT, _TEST_ANSWERS),
    ),
}


def prepare_imagenet(
    data_dir: epath.PathLike,
    source: str | os.PathLike,
    *,
    year: int = 2012,
    encoding: str = 'raw',
    workers: int = 1,
    skip_broken: bool = False,
    allow_subset: bool = False,
) -> epath.Path:
    """Write the data set `imagenet2012` or `imagenet2010` from `source`; return its directory.

    Nothing is extracted: an index of the archives has the position of each JPEG. The classes are
    the 1,000 synsets, sorted, and the examples are sorted by name; training shuffles them.

    2012 is made from two archives, or from a tfds `imagenet2012` that is stored as ArrayRecord. The
    order of the latter is kept; tfds encodes the data set's one PNG and its 22 CMYK files again.

    2010 (Paper Table 1) is made from three archives, the development kit and the answers of the
    test set. If `patch_images.tar` is beside them, its images replace those that are blank in the
    archives. The names, numbers and counts are those of the kit (readme.txt, meta.mat); the gzipped
    image and the patch are known from the converter in github.com/mila-iqia/fuel. The archives
    themselves were not available when this was written, so the folders inside them are ignored.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: the folder of the archives, or the directory of the tfds data set.
      year: a key of `EDITIONS`.
      allow_subset: whether to accept archives with fewer images.

    Raises UserError for a missing or damaged archive, an unexpected name or number of files, and as
    `photographs.write_photographs` does.
    """
    edition = EDITIONS[year]
    settings: dict[str, Any] = {'source': os.fspath(source), 'size': SIZE, 'encoding': encoding}
    splits: Mapping[str, Sequence[Photograph]]
    ignored = []
    if tfds_imagenet.is_dataset(source):
        if year != 2012:
            raise UserError(
                f'{os.fspath(source)} is a data set of tfds, which has only 2012; name the folder '
                'of the archives with --source'
            )
        synsets = _lines('labels.txt')
        splits, others = tfds_imagenet.find_records(source, list(edition.archives), synsets)
        ignored = [('split', name) for name in others]
    else:
        _check_files(source, edition)
        synsets, splits = _in_archives(source, year, allow_subset)
        patch = os.path.join(source, _PATCH)
        if year == 2010 and os.path.isfile(patch):
            settings['patched'], unused = _patch(patch, splits)
            ignored = [('patch without its image', name) for name in unused]
    for split, archive in edition.archives.items():
        _check_count(source, archive, 'images', len(splits[split]), archive.images, allow_subset)
    return write_photographs(
        data_dir,
        source,
        name=f'imagenet{year}',
        version=edition.version,
        description=edition.description,
        size=SIZE,
        class_names=synsets,
        splits=splits,
        settings=settings,
        ignored=ignored,
        encoding=encoding,
        workers=workers,
        skip_broken=skip_broken,
    )


def _check_files(source: str | os.PathLike, edition: Edition) -> None:
    files = [archive.file for archive in edition.archives.values()] + [*edition.others]
    for file in files:
        if not os.path.isfile(os.path.join(source, file)):
            raise UserError(
                f'{os.path.join(source, file)} is missing; download {", ".join(files)} from '
                f'https://image-net.org and name their folder with --source'
            )


def _check_count(
    source: str | os.PathLike, archive: Archive, what: str, found: int, expected: int, fewer: bool
) -> None:
    if expected == found or (fewer and 0 < found < expected):
        return
    path = os.path.join(source, archive.file)
    sizes = ''
    if os.path.exists(path) and archive.size:
        sizes = f' (it has {os.path.getsize(path)} bytes, and the original has {archive.size})'
    raise UserError(
        f'{path if os.path.exists(path) else source} has {found} {what}, not {expected}{sizes}; '
        f'download it again, or accept fewer with --allow_subset'
    )


def _in_archives(
    source: str | os.PathLike, year: int, allow_subset: bool
) -> tuple[list[str], dict[str, list[Item]]]:
    """Return the synsets, sorted, and the photographs of each split, sorted by name."""
    if year == 2012:
        synsets = _lines('labels.txt')
        answers = {'validation': _lines('validation_labels.txt')}
    else:
        kit, test = (os.path.join(source, file) for file in (_DEVKIT, _TEST_ANSWERS))
        numbered, text = devkit.read_devkit(kit)
        answers = {
            'validation': devkit.parse_answers(text, kit, numbered),
            'test': devkit.parse_answers(epath.Path(test).read_text(), test, numbered),
        }
        synsets = sorted(numbered)
    found = EDITIONS[year].archives
    splits = {'train': _train(source, found['train'], synsets)}
    count = len({item.label for item in splits['train']})
    _check_count(source, found['train'], 'synsets', count, len(synsets), allow_subset)
    labels = {synset: label for label, synset in enumerate(synsets)}
    for split, synset_of in answers.items():
        prefix = f'ILSVRC{year}_{"val" if split == "validation" else split}'
        if len(synset_of) != found[split].images:
            raise UserError(
                f'{os.fspath(source)} has {len(synset_of)} answers for {split}, not '
                f'{found[split].images}; download {" and ".join(EDITIONS[year].others)} again'
            )
        answered = [labels[synset] for synset in synset_of]
        splits[split] = _numbered(source, found[split], prefix, answered)
    return synsets, splits


def _lines(file: str) -> list[str]:
    """Return the lines of a file that tfds packages with its imagenet2012."""
    return tfds.core.tfds_path(f'datasets/imagenet2012/{file}').read_text().split()


def _train(source: str | os.PathLike, archive: Archive, synsets: Sequence[str]) -> list[Item]:
    """Return the photographs of the tar of tars, sorted by synset and name."""
    path = os.path.join(source, archive.file)
    labels = {f'{synset}.tar': label for label, synset in enumerate(synsets)}
    items, found = [], set()
    inners = archives.tar_entries(path)
    for inner in tqdm.tqdm(inners, archive.file, len(labels), unit=' synsets', disable=None):
        name = _base(inner.name)
        if name not in labels:
            raise _unexpected(path, inner.name, 'is not the tar of a synset')
        if name in found:
            raise _unexpected(path, inner.name, 'occurs twice')
        found.add(name)
        label = labels[name]
        for entry in archives.tar_entries(path, inner.offset, inner.size):
            entry = entry._replace(name=_base(entry.name))
            if not re.fullmatch(rf'{synsets[label]}_\w+\.JPEG', entry.name):
                raise _unexpected(
                    path, f'{inner.name}/{entry.name}', 'is not an image of that synset'
                )
            items.append(Item(archive.file, entry, label))
    return _sorted(path, items)


def _numbered(
    source: str | os.PathLike, archive: Archive, prefix: str, labels: Sequence[int]
) -> list[Item]:
    """Return the photographs PREFIX_NNNNNNNN.JPEG, sorted; the n-th has the n-th label."""
    path = os.path.join(source, archive.file)
    items = []
    for entry in archives.tar_entries(path):
        entry = entry._replace(name=_base(entry.name))
        match = re.fullmatch(rf'{prefix}_(\d{{8}})\.JPEG', entry.name)
        if not match or not 0 < int(match[1]) <= len(labels):
            raise _unexpected(
                path, entry.name, f'is not an image {prefix}_N.JPEG with N up to {len(labels)}'
            )
        items.append(Item(archive.file, entry, labels[int(match[1]) - 1]))
    return _sorted(path, items)


def _patch(path: str, splits: dict[str, list[Item]]) -> tuple[list[str], list[str]]:
    """Replace images by those of the same name in `patch_images.tar`.

    Returns the names of the images that were replaced, and of those in the patch that are not used.
    """
    entries = (e._replace(name=_base(e.name)) for e in archives.tar_entries(path))
    patch = {entry.name: entry for entry in entries if entry.name.endswith('.JPEG')}
    patched = []
    for items in splits.values():
        for i, item in enumerate(items):
            if item.name in patch:
                items[i] = Item(_PATCH, patch[item.name], item.label)
                patched.append(item.name)
    return patched, sorted(patch.keys() - set(patched))


def _base(name: str) -> str:
    return name.rpartition('/')[2]


def _sorted(path: str, items: list[Item]) -> list[Item]:
    items.sort(key=lambda item: item.entry.name)
    for before, item in itertools.pairwise(items):
        if before.entry.name == item.entry.name:
            raise _unexpected(path, item.entry.name, 'occurs twice')
    return items


def _unexpected(path: str, member: str, problem: str) -> UserError:
    return UserError(f'{path}: its member {member!r} {problem}; download it again')
