"""Write photographs as records of one size, with a report of unusual and broken images."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image, features

from alexnet_jax import __version__
from alexnet_jax.preparation import archives, images, records, shard_files
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

REPORT = 'report.json'
LEFT_OUT = ('broken', 'too large')  # the kinds of images.Unreadable

_SHARD_BYTES = 256e6
_MIN_SHARDS = 16  # so that several workers have work; but a shard has at least as many images
_JPEG_BYTES = 0.25  # estimated bytes of a JPEG of quality 95 per byte of pixels

Decode = Callable[[bytes, str], tuple[Image.Image, list[str]]]  # see `images.decode`


class Photograph(Protocol):
    """The location of a photograph in a source; it must be picklable, and its `repr` unique."""

    @property
    def name(self) -> str:
        """The name of the photograph in the report."""
        ...

    def read(self, source: str) -> tuple[str, bytes, int]:
        """Return the name, the bytes of the file and the label.

        Raises images.Unreadable if it is too large, and UserError if the source has changed.
        """
        ...


class Item(NamedTuple):
    """A `Photograph` that is a file or a part of one."""

    file: str  # path below the source; '' if the source itself is the file, a tar
    entry: archives.Entry
    label: int

    @property
    def name(self) -> str:
        """The name of the archive's member, or the path below the source."""
        return self.entry.name

    def read(self, source: str) -> tuple[str, bytes, int]:
        """Return the name, the bytes of the file and the label."""
        if self.entry.size > images.MAX_BYTES:
            raise images.Unreadable('too large', f'{self.entry.size} bytes')
        path = os.path.join(source, self.file) if self.file else source
        return self.name, archives.read_entry(path, self.entry), self.label


def write_photographs(
    data_dir: epath.PathLike,
    source: str | os.PathLike,
    *,
    name: str,
    version: str,
    description: str,
    size: int,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Photograph]],
    settings: Mapping[str, Any],
    ignored: Sequence[tuple[str, str]] = (),
    formats: Sequence[str] = ('JPEG', 'PNG'),
    turn: bool = False,
    encoding: str = 'raw',
    workers: int = 1,
    skip_broken: bool = False,
    findings: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, shard_files.Review]], None] | None = None,
) -> epath.Path:
    """Write the photographs with `records.write_dataset`, and a `report.json` beside them.

    Args:
      data_dir, name, version, description, class_names, splits, workers: see
        `records.write_dataset`.
      source: the folder of the items' files, or the tar that holds all of them.
      size: side of the squares (see `images.resize_and_crop`), or 0 to keep the images, which must
        then all have the same size.
      settings: how the data set was made, for the report.
      ignored: (kind, name) of the files of the source that are not used, for the report.
      formats, turn: see `images.decode`. The description names the turning, so that a data set made
        without it is not taken for this one.
      encoding: 'raw' for pixels, or 'jpeg' for JPEG of quality 95, which takes a fifth of the space
        and changes the pixels slightly.
      skip_broken: whether to leave out images that cannot be read; otherwise they are an error, and
        the good shards are kept for the next run.
      findings: more for the report.
      check: called with a Review of each split before the data set becomes complete.

    Raises UserError as `records.write_dataset` does, for broken images, naming the report, and if
    with `size=0` an image has another size than the first one.
    """
    decode = functools.partial(images.decode, formats=tuple(formats), turn=turn)
    edge = size or _first_size(source, splits, decode)
    shape = (size, size, 3) if size else (*edge, 3)  # pyright: ignore[reportGeneralTypeIssues]
    pixels = int(np.prod(shape)) * (_JPEG_BYTES if encoding == 'jpeg' else 1)
    crop = f'shorter side to {size}, bilinear with antialiasing, centre crop' if size else 'as is'
    turned = ' Turned by EXIF orientation.' if turn else ''
    stored = 'JPEG of quality 95, 4:4:4' if encoding == 'jpeg' else 'raw pixels'
    report = {'data_set': f'{name}/{version}', 'classes': len(class_names), **(findings or {})}

    def review(directory: epath.Path, reviews: Mapping[str, shard_files.Review]) -> None:
        _write_report(directory, report | _findings(reviews, ignored, {**settings, 'turn': turn}))
        left_out = sum(split.left_out for split in reviews.values())
        where = f'{directory / REPORT} lists them'
        if left_out and not skip_broken:
            raise UserError(
                f'{left_out} images cannot be used ({where}); repair them in the source, or run '
                f'again with --skip_broken to leave them out'
            )
        for split, found in reviews.items():
            if not found.written:
                raise UserError(
                    f'no image of {split} can be used ({where}); repair them in the source'
                )
        if check:
            check(reviews)

    return records.write_dataset(
        data_dir,
        name=name,
        version=version,
        description=f'{description} Size: {crop}.{turned} Stored as {stored}.',
        image_shape=shape,
        class_names=class_names,
        splits=splits,
        shards={split: _num_shards(len(items), pixels) for split, items in splits.items()},
        read_example=functools.partial(read_photograph, os.fspath(source), size, shape, decode),
        workers=workers,
        encode_jpeg=images.encode_jpeg if encoding == 'jpeg' else None,
        keep_left_out=skip_broken,
        review=review,
    )


def read_photograph(
    source: str, size: int, shape: tuple[int, ...], decode: Decode, item: Photograph
) -> tuple[Any, ...]:
    """Return (image, label, notes...) for `records.write_dataset`; a broken image is None."""
    name = item.name
    try:
        name, data, label = item.read(source)
        image, odd = decode(data, name)
        pixels = images.resize_and_crop(image, size) if size else np.asarray(image)
    except images.Unreadable as error:
        return None, 0, (error.kind, f'{name}: {error}')
    if not size and pixels.shape != shape:
        raise UserError(
            f'{name} has {image.width}x{image.height} pixels, but the first image has '
            f'{shape[1]}x{shape[0]}; resize all of them, for example with --size=256'
        )
    return pixels, label, *((kind, name) for kind in odd)


def _first_size(
    source: str | os.PathLike, splits: Mapping[str, Sequence[Photograph]], decode: Decode
) -> tuple[int, int]:
    """Return (height, width) of the first image that can be read."""
    for item in (item for items in splits.values() for item in items):
        try:
            name, data, _ = item.read(os.fspath(source))
            image, _ = decode(data, name)
        except images.Unreadable:
            continue
        return image.height, image.width
    raise UserError(f'{os.fspath(source)} has no image that can be read; name another --source')


def _num_shards(examples: int, example_bytes: float) -> int:
    """Return the number of files: of about 256 MB, or smaller ones so that workers are not idle."""
    by_size = -(-examples * example_bytes // _SHARD_BYTES)
    return int(max(by_size, min(_MIN_SHARDS, -(-examples // _MIN_SHARDS))))


def _findings(
    reviews: Mapping[str, shard_files.Review],
    ignored: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the findings of the report; it has no times, so the same source gives the same one."""
    kinds = {split: _by_kind(found.notes) for split, found in reviews.items()}
    return {
        'images': {split: found.written for split, found in reviews.items()},
        'left_out': {split: found.left_out for split, found in reviews.items()},
        'counts': {
            split: {kind: len(names) for kind, names in found.items()}
            for split, found in kinds.items()
        },
        'names': kinds,
        'ignored': _by_kind(ignored),
        'settings': dict(settings),
        'versions': {
            'alexnet_jax': __version__,
            'pillow': PIL.__version__,
            'libjpeg': features.version('libjpeg_turbo') or features.version('jpg'),
            'tensorflow_datasets': tfds.__version__,
        },
    }


def _by_kind(notes: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, text in sorted(notes):
        found.setdefault(kind, []).append(text)
    return found


def _write_report(directory: epath.Path, report: Mapping[str, Any]) -> None:
    temporary = directory / f'{REPORT}.{os.getpid()}.tmp'
    with storage.writing(directory / REPORT):
        try:
            temporary.write_text(json.dumps(report, indent=1))
            temporary.replace(directory / REPORT)
        finally:
            temporary.unlink(missing_ok=True)


def read_settings(directory: epath.PathLike) -> dict[str, Any] | None:
    """Return the settings with which a data set was prepared, or None if no report has them."""
    try:
        return json.loads((epath.Path(directory) / REPORT).read_text())['settings']
    except (OSError, ValueError, KeyError, TypeError):  # of another program, or damaged
        return None


def add_statistics(directory: epath.PathLike, statistics: Any) -> dict[str, Any]:
    """Add the statistics to the report, write it if it has changed, and return it.

    `statistics` is an `input.batch.Statistics`. The report gets the mean of each channel, the
    covariance of the channels, its eigenvectors (in columns) and the standard deviations along
    them; the mean image stays in its own file.
    """
    directory = epath.Path(directory)
    report = json.loads((directory / REPORT).read_text())
    vectors = np.asarray(statistics.eigenvectors, np.float64)
    found = {
        'mean': np.mean(statistics.mean_image, (0, 1), np.float64).tolist(),
        'covariance': (vectors * np.asarray(statistics.std, np.float64) ** 2 @ vectors.T).tolist(),
        'eigenvectors': vectors.tolist(),
        'standard_deviations': np.asarray(statistics.std, np.float64).tolist(),
    }
    if report.get('statistics') != found:
        report['statistics'] = found
        _write_report(directory, report)
    return report
