"""Prepare ImageNet, ILSVRC-2012 or ILSVRC-2010, from its archives or from unpacked folders."""

import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
import tqdm
from etils import epath

from alexnet_jax.preparation import archives, devkit, imagenet_trees, tfds_imagenet
from alexnet_jax.preparation.photographs import Item, Photograph, write_photographs
from alexnet_jax.runtime import storage
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

    2012 is made from two archives, from the folders that are unpacked from them, from Kaggle's
    folders, or from a tfds `imagenet2012` that is stored as ArrayRecord. The order of the latter is
    kept; tfds encodes the data set's one PNG and its 22 CMYK files again. Otherwise the records are
    the same. Hidden files and those that are no images are left out, and the report names them.

    2010 (Paper Table 1) is made from three archives, the development kit and the answers of the
    test set. If `patch_images.tar` is beside them, its images replace those that are blank in the
    archives. The names, numbers and counts are those of the kit (readme.txt, meta.mat); the gzipped
    image and the patch are known from the converter in github.com/mila-iqia/fuel. The archives
    themselves were not available when this was written, so the folders inside them are ignored.

    Args:
      data_dir, encoding, workers, skip_broken: as in `photographs.write_photographs`.
      source: the folder of the archives or folders, or the directory of the tfds data set.
      year: a key of `EDITIONS`.
      allow_subset: whether to accept fewer images.

    Raises UserError for a missing or damaged archive, an unexpected name or number of files, a
    label that differs from the packaged one, and as `photographs.write_photographs` does.
    """
    edition = EDITIONS[year]
    settings: dict[str, Any] = {'source': os.fspath(source), 'size': SIZE, 'encoding': encoding}
    source = os.fspath(storage.resolve(source, '--source'))
    if not os.path.exists(source):
        raise UserError(f'--source: {source} does not exist; name another folder')
    if not os.path.isdir(source):
        is_original = os.path.basename(source) in {a.file for a in edition.archives.values()}
        remedy = 'name its folder' if is_original else 'unpack it and name the folder of its files'
        raise UserError(f'--source: {source} is not a folder; {remedy}')
    splits: Mapping[str, Sequence[Photograph]]
    if tfds_imagenet.is_dataset(source):
        if year != 2012:
            raise UserError(
                f'{os.fspath(source)} is a data set of tfds, which has only 2012; name the folder '
                'of the archives with --source'
            )
        synsets = synsets_of_2012()
        splits, others = tfds_imagenet.find_records(source, list(edition.archives), synsets)
        ignored = [('split', name) for name in others]
        places = dict.fromkeys(splits, source)
    else:
        found = _find(source, year)
        ignored = found.ignored
        synsets, splits = _photographs(source, found, year, allow_subset)
        places = {split: os.path.join(source, file) for split, file in found.splits.items()}
        patch = os.path.join(source, _PATCH)
        if year == 2010 and os.path.isfile(patch):
            settings['patched'], unused = _patch(patch, splits)
            ignored += [('patch without its image', name) for name in unused]
    for split, archive in edition.archives.items():
        count, expected = len(splits[split]), archive.images
        _check_count(places[split], archive, 'images', count, expected, allow_subset)
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


def _find(source: str, year: int) -> imagenet_trees.Found:
    """Return the archive or folder of each split; raise UserError for one that is missing."""
    edition = EDITIONS[year]
    archives_of = {split: archive.file for split, archive in edition.archives.items()}
    if year == 2012:
        return imagenet_trees.find(source, archives_of)
    files = [*archives_of.values(), *edition.others]
    for file in files:
        if not os.path.isfile(os.path.join(source, file)):
            raise UserError(
                f'{os.path.join(source, file)} is missing; download {", ".join(files)} from '
                f'https://image-net.org and name their folder with --source (unpacked images are '
                f'read for 2012 only, and not for {year})'
            )
    return imagenet_trees.Found(archives_of, [], [])


def _check_count(
    path: str, archive: Archive, what: str, found: int, expected: int, fewer: bool
) -> None:
    if expected == found or (fewer and 0 < found < expected):
        return
    sizes, again = '', 'restore what is missing'
    if os.path.isfile(path):
        again = 'download it again'
        if archive.size:
            size = os.path.getsize(path)
            sizes = f' (it has {size} bytes, and the original has {archive.size})'
    raise UserError(
        f'{path} has {found} {what}, not {expected}{sizes}; {again}, or accept fewer with '
        '--allow_subset'
    )


def _photographs(
    source: str, found: imagenet_trees.Found, year: int, allow_subset: bool
) -> tuple[list[str], dict[str, list[Item]]]:
    """Return the synsets, sorted, and the photographs of each split, sorted by name."""
    if year == 2012:
        synsets = synsets_of_2012()
        answers = {'validation': _lines('validation_labels.txt')}
    else:
        kit, test = (os.path.join(source, file) for file in (_DEVKIT, _TEST_ANSWERS))
        numbered, text = devkit.read_devkit(kit)
        answers = {
            'validation': devkit.parse_answers(text, kit, numbered),
            'test': devkit.parse_answers(epath.Path(test).read_text(), test, numbered),
        }
        synsets = sorted(numbered)
    labels = {synset: label for label, synset in enumerate(synsets)}
    originals = EDITIONS[year].archives
    file = found.splits['train']
    splits = {'train': _train(source, file, labels, found.ignored)}
    count = len({item.label for item in splits['train']})
    path = os.path.join(source, file)
    _check_count(path, originals['train'], 'synsets', count, len(synsets), allow_subset)
    for split, synset_of in answers.items():
        prefix = f'ILSVRC{year}_{"val" if split == "validation" else split}'
        if len(synset_of) != originals[split].images:
            raise UserError(
                f'{source} has {len(synset_of)} answers for {split}, not '
                f'{originals[split].images}; download {" and ".join(EDITIONS[year].others)} again'
            )
        file = found.splits[split]
        items = _numbered(source, file, prefix, synset_of, labels, found.ignored)
        for table in found.answers:
            names = [item.name.removesuffix('.JPEG') for item in items]
            expected = {f'{prefix}_{i:08d}': synset for i, synset in enumerate(synset_of, 1)}
            imagenet_trees.check_answers(os.path.join(source, table), names, expected)
        splits[split] = items
    return synsets, splits


def synsets_of_2012() -> list[str]:
    """Return the 1,000 synsets of ILSVRC-2012, sorted: their places are the labels."""
    return _lines('labels.txt')


def _lines(file: str) -> list[str]:
    """Return the lines of a file that tfds packages with its imagenet2012."""
    return tfds.core.tfds_path(f'datasets/imagenet2012/{file}').read_text().split()


def _train(
    source: str, file: str, labels: Mapping[str, int], ignored: list[tuple[str, str]]
) -> list[Item]:
    """Return the photographs of a tar of tars or of a folder, sorted by synset and name."""
    path = os.path.join(source, file)
    if os.path.isdir(path):
        found = imagenet_trees.images(source, file, labels, ignored)
    else:
        found = _in_inner_tars(source, file, labels)
    items = []
    for inner, at, entry in found:
        synset = inner.removesuffix('.tar')
        if not synset or not re.fullmatch(rf'{synset}_\w+\.JPEG', entry.name):
            problem = 'is not an image of that synset' if synset else 'is in no folder of a synset'
            raise _unexpected(path, os.path.join(inner, entry.name), problem)
        items.append(Item(at, entry, labels[synset]))
    return _sorted(path, items)


def _in_inner_tars(
    source: str, file: str, synsets: Collection[str]
) -> Iterator[tuple[str, str, archives.Entry]]:
    """Yield (SYNSET.tar, `file`, entry named without folders) of each file in a tar of tars."""
    path = os.path.join(source, file)
    names = {f'{synset}.tar' for synset in synsets}
    inners = archives.tar_entries(path)
    bar = tqdm.tqdm(inners, os.path.basename(file), len(names), unit=' synsets', disable=None)
    found = set()
    for inner in bar:
        name = _base(inner.name)
        if name not in names:
            raise _unexpected(path, inner.name, 'is not the tar of a synset')
        if name in found:
            raise _unexpected(path, inner.name, 'occurs twice')
        found.add(name)
        for entry in archives.tar_entries(path, inner.offset, inner.size):
            yield name, file, entry._replace(name=_base(entry.name))


def _numbered(
    source: str,
    file: str,
    prefix: str,
    answers: Sequence[str],
    labels: Mapping[str, int],
    ignored: list[tuple[str, str]],
) -> list[Item]:
    """Return the photographs PREFIX_NNNNNNNN.JPEG, sorted; the n-th is of the n-th synset."""
    path = os.path.join(source, file)
    if os.path.isdir(path):
        found = imagenet_trees.images(source, file, labels, ignored)
    else:
        entries = archives.tar_entries(path)
        found = (('', file, entry._replace(name=_base(entry.name))) for entry in entries)
    items = []
    for folder, at, entry in found:
        match = re.fullmatch(rf'{prefix}_(\d{{8}})\.JPEG', entry.name)
        name = os.path.join(folder, entry.name)
        if not match or not 0 < int(match[1]) <= len(answers):
            problem = f'is not an image {prefix}_N.JPEG with N up to {len(answers)}'
            raise _unexpected(path, name, problem)
        synset = answers[int(match[1]) - 1]
        if folder not in ('', synset):
            raise _unexpected(path, name, f'is an image of {synset}')
        items.append(Item(at, entry, labels[synset]))
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


def _unexpected(path: str, name: str, problem: str) -> UserError:
    if os.path.isdir(path):
        again = 'move it to where it belongs, or unpack its archive again'
        return UserError(f'{os.path.join(path, name)} {problem}; {again}')
    return UserError(f'{path}: its member {name!r} {problem}; download it again')
