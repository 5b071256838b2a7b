"""Sort the images of a source into splits and classes by the folders that they are in."""

import collections
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from alexnet_jax.preparation.archives import add_parents
from alexnet_jax.preparation.listing import LINK, OTHER, Listing, is_image
from alexnet_jax.preparation.photographs import Item
from alexnet_jax.runtime.errors import UserError, escaped

_MUST = (
    'it must contain train/CLASS/* and test/CLASS/* (or validation, valid, val), or CLASS/*, of '
    'images'
)

# The names of the folders of splits, in any case, and the order of the splits.
_SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test'}
_SPLITS |= {'validation': 'validation', 'valid': 'validation', 'val': 'val'}
_ORDER = ('train', 'test', 'validation', 'val')

# tiny-imagenet-200 has train/CLASS/images/*, val/images/* with this file, and test/images/*.
_INNER, _ANNOTATIONS = 'images', 'val_annotations.txt'

_NAMED = 5  # classes that an error names

Names = dict[str, dict[str, list[str]]]  # split -> class -> names of the images
Labels = dict[str, dict[str, str]]  # annotated folder -> name of an image in it -> class


class Layout(NamedTuple):
    """The examples of a source."""

    splits: dict[str, list[Item]]
    counts: dict[str, dict[str, int]]  # class -> split -> number of images, sorted by class
    ignored: list[tuple[str, str]]  # (kind, name), with those of the listing


def arrange(
    source: str,
    listing: Listing,
    *,
    eval_fraction: float | None,
    seed: int,
    skip_empty: bool,
) -> Layout:
    """Return the examples of a listing, in the order of splits, classes and names.

    `source` is how errors call it; the other arguments are those of `folder.prepare_folder`.

    Raises UserError if the images are not in such folders, for a class without training images
    (unless `skip_empty`) and for an `eval_fraction` that does not fit.
    """
    images = [name for name in listing.files if is_image(name)]
    texts = [name for name in listing.files if not is_image(name)]
    if not images:
        kinds = _kinds(listing.ignored + [(OTHER, name) for name in texts])
        raise UserError(f'{source} contains no image{kinds and f", only {kinds}"}; {_MUST}')
    outer = _outer_folders(images)
    folders = _split_folders(source, outer, images)
    annotated = {folder: f'{outer}{folder}/{_ANNOTATIONS}' for folder in folders}
    labels = {
        folder: _read_labels(source, listing, name)
        for folder, name in annotated.items()
        if name in listing.files
    }
    names, unlabelled = _sort(source, outer, images, folders, labels)
    ignored = listing.ignored + [('without a label', name) for name in unlabelled]
    ignored += [(OTHER, name) for name in texts if name not in annotated.values()]
    ignored += [
        ('label without its image', image)
        for folder, of_image in labels.items()
        for image in of_image
        if f'{outer}{folder}/{_INNER}/{image}' not in listing.files
    ]
    if 'train' not in names:
        empty = [name for name in listing.folders if _split_of(name, outer) == 'train']
        missing = f'no image in {escaped(empty[0])}' if empty else 'no train folder'
        raise UserError(f'{source} contains {", ".join(folders)} but {missing}; {_MUST}')
    candidates = _class_folders(listing, outer, folders, labels)
    classes = {*candidates, *itertools.chain(*names.values())}
    _check_utf8(source, classes)
    empty = sorted(classes - names['train'].keys())
    if empty and not skip_empty:
        why = _why_empty(empty, candidates, ignored, names)
        raise UserError(
            f'{source} has no {"training " if folders else ""}images of {why}; add some, or leave '
            'out such classes with --skip_empty'
        )
    barren = _barren(listing, images, outer, folders)
    if barren and not skip_empty:
        raise UserError(
            f'{source} has folders without images beside or inside those with images, such as '
            f'{escaped(barren[0])}; {_MUST}; leave out such folders with --skip_empty'
        )
    ignored += [('folder without images', name) for name in barren]
    for name in empty:
        ignored += [('class without training images', path) for path in candidates.get(name, [])]
        for of_class in names.values():
            unused = of_class.pop(name, [])
            ignored += [('of a class without training images', image) for image in unused]
    names = {split: of_class for split, of_class in names.items() if of_class}
    names = _with_test_split(source, names, list(folders), eval_fraction, seed)
    return _to_layout(listing, names, ignored)


def _outer_folders(images: Sequence[str]) -> str:
    """Return the path of the outer folders that contain all images, with a slash behind each."""
    depth = min(name.count('/') for name in images) - 1  # a class and a file stay
    shared = os.path.commonpath((min(images), max(images))).split('/')[: max(depth, 0)]
    outer = itertools.takewhile(lambda folder: folder and folder.lower() not in _SPLITS, shared)
    return ''.join(f'{folder}/' for folder in outer)


def _split_of(folder: str, outer: str) -> str | None:
    """Return the split of a folder by its path, or None if it is not that of a split."""
    return _SPLITS.get(folder.removeprefix(outer).lower()) if folder.startswith(outer) else None


def _split_folders(source: str, outer: str, images: Iterable[str]) -> dict[str, str]:
    """Return folder -> split for those that have images, or nothing for `CLASS/*`."""
    tops: dict[str, str] = {}  # first part of a path -> the first image with it
    deep = set()  # those with images in folders below
    for name in images:
        top, *below = name[len(outer) :].split('/')
        tops[top] = min(name, tops.get(top, name))
        if len(below) > 1:
            deep.add(top)
    known = sorted(top for top in tops if top.lower() in _SPLITS)
    if not known or (len(known) < len(tops) and deep.isdisjoint(known)):
        return {}
    for top in sorted(tops.keys() - known):
        raise UserError(
            f'{source} contains {escaped(tops[top])}, which is in none of its folders '
            f'{" and ".join(known)}; move it there, or away'
        )
    folders: dict[str, str] = {}
    for top in known:
        split = _SPLITS[top.lower()]
        if split in folders.values():
            same = [other for other in known if _SPLITS[other.lower()] == split]
            raise UserError(f'{source} has {" and ".join(same)} for one split; join these folders')
        folders[top] = split
    return folders


def _read_labels(source: str, listing: Listing, name: str) -> dict[str, str]:
    """Return image -> class of a file whose lines begin with both and a tab after each."""
    labels = {}
    for number, line in enumerate(listing.read_text(name).splitlines(), 1):
        image, _, rest = line.partition('\t')
        label = rest.partition('\t')[0]
        if not image or not label or '/' in label:
            raise UserError(
                f'{source}: line {number} of {escaped(name)} is not an image and its class with a '
                'tab between them; restore the file'
            )
        labels[image] = label
    return labels


def _sort(
    source: str,
    outer: str,
    images: Iterable[str],
    folders: Mapping[str, str],
    labels: Labels,
) -> tuple[Names, list[str]]:
    """Return the images of each split and class, in one pass, and those without a label."""
    names: Names = {}
    unlabelled, misplaced = [], []
    for name in tqdm.tqdm(images, desc='sorting', unit=' images', disable=None):
        *path, file = name[len(outer) :].split('/')
        folder = path.pop(0) if folders else ''
        split = folders.get(folder, 'train')
        if folders and len(path) == 2 and path[1] == _INNER:
            path.pop()
        if path == [_INNER] and folder in labels:
            path = [labels[folder].get(file, '')]
        elif path == [_INNER] and labels and split != 'train':
            unlabelled.append(name)
            continue
        if len(path) != 1:
            misplaced.append(name)
        else:
            names.setdefault(split, {}).setdefault(path[0], []).append(name)
    if misplaced:
        first = escaped(min(misplaced, key=lambda name: name.split('/')))
        raise UserError(f'{source} contains {first}, which is in no folder of a class; {_MUST}')
    for of_class in names.values():
        if '' in of_class:
            image = escaped(min(of_class['']))
            raise UserError(f'{source}: {image} has no line in {_ANNOTATIONS}; restore that file')
    return names, unlabelled


def _class_folders(
    listing: Listing, outer: str, folders: Mapping[str, str], labels: Labels
) -> dict[str, list[str]]:
    """Return the folders that are classes by their place, whatever is in them, by class."""
    found: dict[str, list[str]] = {}
    for folder in sorted(listing.folders):
        if not folder.startswith(outer):
            continue
        *above, name = folder[len(outer) :].split('/')
        split = _SPLITS.get(above[0].lower()) if len(above) == 1 else None
        if labels and name == _INNER and split != 'train':
            continue
        if split if folders else not above:
            found.setdefault(name, []).append(folder)
    return found


def _barren(
    listing: Listing, images: Iterable[str], outer: str, folders: Mapping[str, str]
) -> list[str]:
    """Return the folders without images that are not in the place of a class, but could be one.

    Those are in a class, which may be no class but have a stray image, or, unless there are folders
    of splits, beside an outer folder, which may be a class that is too deep.
    """
    fruitful = {''}
    for name in images:
        add_parents(fruitful, name)
    links = {name for kind, name in listing.ignored if kind == LINK}
    level = outer.count('/') + bool(folders)  # of the classes
    return sorted(
        name
        for name in listing.folders - fruitful - links
        if name.rpartition('/')[0] in fruitful
        and (name.count('/') > level or not (folders or name.startswith(outer)))
    )


def _check_utf8(source: str, classes: Iterable[str]) -> None:
    """Raise UserError for a class whose name cannot be stored, before any image is read."""
    for name in sorted(classes):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f'{source}: the name {escaped(name)} of a class is not UTF-8; rename its folder, '
                'for example with convmv'
            ) from error


def _why_empty(
    empty: Iterable[str],
    candidates: Mapping[str, list[str]],
    ignored: Iterable[tuple[str, str]],
    names: Names,
) -> str:
    """Return the classes without training images, each with what there is instead."""
    empty = list(empty)
    owners = {folder: name for name in empty for folder in candidates.get(name, [])}
    instead: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for kind, name in ignored:
        folder = name
        while folder and folder not in owners:
            folder = folder.rpartition('/')[0]
        instead[owners.get(folder, '')].append((kind, name))
    reasons = []
    for name in empty[:_NAMED]:
        splits = [split for split, of_class in names.items() if name in of_class]
        only = f'only in {" and ".join(splits)}' if splits else ''
        kinds = _kinds(instead[name])
        reasons.append(f'{escaped(name)} ({only or (kinds and f"only {kinds}") or "empty"})')
    more = [f'{len(empty) - _NAMED} more'] if len(empty) > _NAMED else []
    links = any(kind == LINK for name in empty for kind, _ in instead[name])
    return ', '.join(reasons + more) + ('; follow links with --follow_links' if links else '')


def _kinds(ignored: Iterable[tuple[str, str]]) -> str:
    """Return the most frequent kinds of what is ignored, with their numbers."""
    kinds = collections.Counter(
        sorted(
            (kind == OTHER and os.path.splitext(name)[1].lower()) or kind for kind, name in ignored
        )
    )
    return ', '.join(f'{count} {escaped(kind)}' for kind, count in kinds.most_common(3))


def _with_test_split(
    source: str, names: Names, folders: list[str], eval_fraction: float | None, seed: int
) -> Names:
    """Return the splits, after dividing the only one if that is asked for."""
    if len(names) > 1 and eval_fraction is not None:
        raise UserError(
            f'{source} has folders for {" and ".join(folders)}; leave out --eval_fraction'
        )
    if len(names) == 1 and eval_fraction is None:
        raise UserError(
            f'{source} has no test folder with images; say which fraction of the images to test '
            'on, for example --eval_fraction=0.1'
        )
    if len(names) == 1 and eval_fraction:
        return _divide(names['train'], eval_fraction, seed)
    return names


def _divide(of_class: Mapping[str, list[str]], eval_fraction: float, seed: int) -> Names:
    """Return the splits train and test; the fraction of each class is drawn at random."""
    splits: Names = {'train': {}, 'test': {}}
    for label, name in enumerate(sorted(of_class)):
        images = sorted(of_class[name])
        order = np.random.default_rng([seed, label]).permutation(len(images))
        chosen = set(order[: round(eval_fraction * len(images))].tolist())
        for i, image in enumerate(images):
            splits['test' if i in chosen else 'train'].setdefault(name, []).append(image)
    untrained = sorted(of_class.keys() - splits['train'].keys())
    if not splits['test'] or untrained:
        left = f'no training image of {escaped(untrained[0])}' if untrained else 'one split empty'
        raise UserError(
            f'--eval_fraction={eval_fraction} of {sum(map(len, of_class.values()))} images leaves '
            f'{left}; choose another fraction, or 0 for no test split'
        )
    return splits


def _to_layout(listing: Listing, names: Names, ignored: list[tuple[str, str]]) -> Layout:
    """Return the examples sorted; the label of a class is its place among those in `train`."""
    classes = sorted(names['train'])
    splits = {
        split: [
            Item(listing.file(name), listing.files[name], label)
            for label, of in enumerate(classes)
            for name in sorted(names[split].get(of, []))
        ]
        for split in sorted(names, key=_ORDER.index)
    }
    counts = {of: {split: len(names[split].get(of, [])) for split in splits} for of in classes}
    return Layout(splits, counts, ignored)
