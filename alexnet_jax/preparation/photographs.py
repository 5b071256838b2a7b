"""Write photographs as records of one size, with a report of all that was odd or broken."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
import tensorflow_datasets as tfds
from etils import epath
from PIL import features

from alexnet_jax import __version__
from alexnet_jax.preparation import archives, images, records, shard_files
from alexnet_jax.runtime.errors import UserError

REPORT = 'report.json'

_SHARD_BYTES = 256e6
_MIN_SHARDS = 16  # of as many images each at least, so that several workers have work
_JPEG_BYTES = 0.25  # of quality 95, per byte of pixels, roughly


class Photograph(Protocol):
    """One photograph of a source, light: where it lies. Its `repr` says that, and it pickles."""

    @property
    def name(self) -> str:
        """The name by which the report calls it."""
        ...

    def read(self, source: str) -> tuple[str, bytes, int]:
        """Return the name, the bytes of the file and the label.

        Raises images.Unreadable for what is too large, UserError when the source has changed.
        """
        ...


class Item(NamedTuple):
    """A `Photograph` that is a file, or a stretch of one."""

    file: str  # below the source; '': the source itself, a tar
    entry: archives.Entry
    label: int

    @property
    def name(self) -> str:
        """The name of the member of the archive, or the path below the source."""
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
    encoding: str = 'raw',
    workers: int = 1,
    skip_broken: bool = False,
) -> epath.Path:
    """Write the photographs with `records.write_dataset` and `report.json` beside them.

    Args:
      data_dir, name, version, description, class_names, splits, workers: as there.
      source: what the items' files are below of, or the one tar that holds all.
      size: of the squares (`images.resize_and_crop`), or 0 to keep the one size that all have.
      settings: what the report says of how it was made.
      ignored: (kind, name) of files of the source that are not used, for the report.
      encoding: 'raw', pixels, or 'jpeg', quality 95: a fifth of the space, not the same pixels.
      skip_broken: leave out what cannot be read; otherwise that ends in an error, the good shards
        kept for the next run.

    Raises UserError as `records.write_dataset` does, for broken images naming the report, and when
    with `size=0` an image has another size than the first.
    """
    edge = size or _first_size(source, splits)
    shape = (size, size, 3) if size else (*edge, 3)  # pyright: ignore[reportGeneralTypeIssues]
    pixels = int(np.prod(shape)) * (_JPEG_BYTES if encoding == 'jpeg' else 1)
    crop = f'shorter side to {size}, bilinear with antialiasing, centre crop' if size else 'as is'
    stored = 'JPEG of quality 95, 4:4:4' if encoding == 'jpeg' else 'raw pixels'
    report = {'data_set': f'{name}/{version}', 'classes': len(class_names)}

    def review(directory: epath.Path, reviews: Mapping[str, shard_files.Review]) -> None:
        _write_report(directory, report | _findings(reviews, ignored, settings))
        left_out = sum(split.left_out for split in reviews.values())
        where = f'{directory / REPORT} lists them'
        if left_out and not skip_broken:
            raise UserError(
                f'{left_out} images cannot be used, {where}; mend the source, or run again with '
                f'--skip_broken to leave them out'
            )
        for split, found in reviews.items():
            if not found.written:
                raise UserError(f'no image of {split} can be used, {where}; mend the source')

    return records.write_dataset(
        data_dir,
        name=name,
        version=version,
        description=f'{description} Size: {crop}. Stored as {stored}.',
        image_shape=shape,
        class_names=class_names,
        splits=splits,
        shards={split: _num_shards(len(items), pixels) for split, items in splits.items()},
        read_example=functools.partial(read_photograph, os.fspath(source), size, shape),
        workers=workers,
        encode_jpeg=images.encode_jpeg if encoding == 'jpeg' else None,
        keep_left_out=skip_broken,
        review=review,
    )


def read_photograph(
    source: str, size: int, shape: tuple[int, ...], item: Photograph
) -> tuple[Any, ...]:
    """Return (image, label, notes...) as `records.write_dataset` takes it; image None if broken."""
    name = item.name
    try:
        name, data, label = item.read(source)
        image, odd = images.decode(data, name)
        pixels = images.resize_and_crop(image, size) if size else np.asarray(image)
    except images.Unreadable as error:
        return None, 0, (error.kind, f'{name}: {error}')
    if not size and pixels.shape != shape:
        raise UserError(
            f'{name} has {image.width}x{image.height} pixels and the first image '
            f'{shape[1]}x{shape[0]}; bring all to one size with --size=256'
        )
    return pixels, label, *((kind, name) for kind in odd)


def _first_size(
    source: str | os.PathLike, splits: Mapping[str, Sequence[Photograph]]
) -> tuple[int, int]:
    """Return (height, width) of the first image that can be read."""
    for item in (item for items in splits.values() for item in items):
        try:
            name, data, _ = item.read(os.fspath(source))
            image, _ = images.decode(data, name)
        except images.Unreadable:
            continue
        return image.height, image.width
    raise UserError(f'{os.fspath(source)} holds no image that can be read')


def _num_shards(examples: int, example_bytes: float) -> int:
    """Return how many files: of about 256 MB, and some more where that leaves workers idle."""
    by_size = -(-examples * example_bytes // _SHARD_BYTES)
    return int(max(by_size, min(_MIN_SHARDS, -(-examples // _MIN_SHARDS))))


def _findings(
    reviews: Mapping[str, shard_files.Review],
    ignored: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report's fields of what was found, without times: the same for the same source."""
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
    temporary.write_text(json.dumps(report, indent=1))
    temporary.replace(directory / REPORT)


def read_settings(directory: epath.PathLike) -> dict[str, Any] | None:
    """Return the settings that a data set was prepared with, None where no report has them."""
    try:
        return json.loads((epath.Path(directory) / REPORT).read_text())['settings']
    except (OSError, ValueError, KeyError, TypeError):  # of another program, or damaged
        return None


def add_statistics(directory: epath.PathLike, statistics: Any) -> dict[str, Any]:
    """Return the report with the statistics in it, and write that where it is not there yet.

    `statistics` is an `input.batch.Statistics`: mean of each channel, covariance of the channels,
    eigenvectors (columns) and standard deviations along them; the mean image stays in its file.
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
