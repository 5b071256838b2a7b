"""Find ILSVRC-2012 in a folder: its archives, what is unpacked from them, or Kaggle's folders."""

import csv
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from alexnet_jax.preparation import archives, listing
from alexnet_jax.runtime.errors import UserError

_FOLDERS = {  # of each split, in any case
    'train': ('train', 'ILSVRC2012_img_train'),
    'validation': ('val', 'validation', 'ILSVRC2012_img_val'),
}
_TEST = 'test'
_KAGGLE = ('Data/CLS-LOC', 'ILSVRC/Data/CLS-LOC')
_CSV, _HEADER = 'LOC_val_solution.csv', ['ImageId', 'PredictionString']
_PACKED = r'(imagenet|ILSVRC201\d_CLS-LOC).*\.(zip|tar|tgz|tar\.gz)'  # Kaggle's, and others' names

# Kinds of what is ignored, besides those of `listing`.
_UNLABELLED, _EMPTY = 'without a label', 'folder without images'


class Found(NamedTuple):
    """Where the splits are; all names are paths below the source."""

    splits: dict[str, str]  # split -> its archive or folder
    answers: list[str]  # Kaggle's tables with the answers for validation
    ignored: list[tuple[str, str]]  # (kind, name)


def find(source: str, files: Mapping[str, str]) -> Found:
    """Return the splits that are in `source`, in a folder in it, or in Kaggle's folders.

    `files` has the name of each split's archive. An archive is preferred to a folder.

    Raises UserError for a missing split, if two folders could be meant, and if something must be
    unpacked first.
    """
    folder = _outer_folder(source, files)
    splits = _splits(source, folder, files)
    for split, file in files.items():
        if split not in splits:
            raise UserError(
                f'{os.path.join(source, folder, file)} is missing, and there is no folder '
                f'{" or ".join(_FOLDERS[split])}; name with --source the folder of '
                f'{" and ".join(files.values())} of https://image-net.org, a folder with '
                "train/SYNSET/*.JPEG and val/*.JPEG or val/SYNSET/*.JPEG, Kaggle's folder with "
                'ILSVRC/Data/CLS-LOC, or a tfds imagenet2012'
            )
    return Found(splits, *_beside(source, folder))


def _outer_folder(source: str, files: Mapping[str, str]) -> str:
    """Return the folder that has splits; '' for the source itself, or if there is none."""
    if _splits(source, '', files):
        return ''
    names = sorted(os.listdir(source))
    tops = [name for name in names if _is_folder(source, name)]
    if any(re.fullmatch(r'n\d{8}', name) for name in tops):
        raise UserError(
            f'{source} has folders of synsets; name the folder above it, which has train and val'
        )
    inner = [os.path.join(*pair) for pair in itertools.product(['', *tops], _KAGGLE)]
    found = [name for name in dict.fromkeys(tops + inner) if _splits(source, name, files)]
    if len(found) > 1:
        raise UserError(
            f'{source} has splits in {" and in ".join(found)}; name one of these folders'
        )
    for name in names:
        if not found and re.fullmatch(_PACKED, name, re.IGNORECASE):
            raise UserError(
                f'{os.path.join(source, name)} is packed; unpack it, and name the folder of its '
                'files'
            )
    return ''.join(found)


def _is_folder(source: str, name: str) -> bool:
    return not listing.is_hidden(name) and os.path.isdir(os.path.join(source, name))


def _splits(source: str, folder: str, files: Mapping[str, str]) -> dict[str, str]:
    path = os.path.join(source, folder)
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    found = {}
    for split, file in files.items():
        known = [name.lower() for name in _FOLDERS[split]]
        folders = [name for name in names if name.lower() in known and _is_folder(path, name)]
        if os.path.isfile(os.path.join(path, file)):
            found[split] = os.path.join(folder, file)
        elif len(folders) > 1:
            raise UserError(f'{path} has {" and ".join(folders)} for one split; move one away')
        elif folders:
            found[split] = os.path.join(folder, folders[0])
    return found


def _beside(source: str, folder: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return Kaggle's tables beside and above the splits, and what is ignored beside them."""
    above = itertools.accumulate(['', *filter(None, folder.split('/'))], os.path.join)
    tables = [os.path.join(outer, _CSV) for outer in above]
    ignored = []
    test = os.path.join(folder, _TEST)
    for inner in [folder, test] if os.path.isdir(os.path.join(source, test)) else [folder]:
        for name in os.listdir(os.path.join(source, inner)):
            if listing.is_hidden(name):
                ignored.append((listing.HIDDEN, os.path.join(inner, name)))
            elif inner == test:
                ignored.append((_UNLABELLED, os.path.join(inner, name)))
    return [table for table in tables if os.path.isfile(os.path.join(source, table))], ignored


def images(
    source: str, folder: str, synsets: Collection[str], ignored: list[tuple[str, str]]
) -> Iterator[tuple[str, str, archives.Entry]]:
    """Yield the images below `folder`, unsorted; add all other files to `ignored`.

    An image is a synset, '' if it is in none of their folders, its path below the source, and the
    entry, which has its name without folders. Links are followed.

    Raises UserError for a folder that is not one of a synset, and if there is no image.
    """
    path = os.path.join(source, folder)
    found = listing.of_folder(path, follow_links=True)
    if wrong := found.folders.difference(synsets):
        raise UserError(
            f'{os.path.join(path, min(wrong))} is not the folder of a synset of ILSVRC-2012; move '
            'it away (other photographs are read by "prepare folder")'
        )
    names = [name for name in found.files if listing.is_image(name)]
    others = found.ignored + [
        (listing.OTHER, name) for name in found.files if not listing.is_image(name)
    ]
    if not names:
        only = f', only {others[0][1]}' if others else ''
        raise UserError(f'{path} has no images{only}; unpack the archive of the images there')
    others += [(_EMPTY, name) for name in found.folders.difference(map(os.path.dirname, names))]
    ignored += [(kind, os.path.join(folder, name)) for kind, name in others]
    for name in names:
        synset, base = os.path.split(name)
        yield synset, os.path.join(folder, name), found.files[name]._replace(name=base)


def check_answers(path: str, names: Iterable[str], answers: Mapping[str, str]) -> None:
    """Raise UserError unless Kaggle's table at `path` has the same answers.

    Args:
      path: a table of an image without suffix, and its synset and boxes.
      names: the images of which each must have a line.
      answers: image -> synset, for all images of the split.
    """
    again = 'download it again'
    seen = set()
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            rows = csv.reader(file)
            if next(rows, None) != _HEADER:
                raise UserError(f'{path} does not begin with {",".join(_HEADER)}; {again}')
            for row in filter(None, rows):
                _check_row(row, f'{path}, line {rows.line_num}:', answers)
                seen.add(row[0])
    except (OSError, UnicodeError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(f'cannot read {path} ({reason}); {again}') from error
    missing = sorted(set(names) - seen)
    if missing:
        raise UserError(f'{path} has no line for {missing[0]}; {again}')


def _check_row(row: Sequence[str], where: str, answers: Mapping[str, str]) -> None:
    image, *boxes = row
    synset = ' '.join(boxes).partition(' ')[0]
    if image not in answers:
        raise UserError(f'{where} {image} is not a validation image; download it again')
    if synset != answers[image]:
        raise UserError(
            f'{where} {image} is {synset or "without a synset"}, but ILSVRC-2012 says '
            f'{answers[image]}; download it again'
        )
