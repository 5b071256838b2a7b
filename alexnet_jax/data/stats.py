"""Mean image and covariance of the colour channels of a training set, cached beside the data."""

import hashlib
import io
import json
import logging
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np
import tqdm
from etils import epath

_logger = logging.getLogger(__name__)

_CHUNK = 16  # images summed at a time by a thread: of 256x256x3, 25 MB in float64


class Statistics(NamedTuple):
    """What the augmentation subtracts and adds, on the pixels' scale of 0 to 255 (Paper 4.1)."""

    mean_image: Any  # float32 [H, W, C]
    eigenvectors: Any  # float32 [C, C], columns, of the covariance of the channels
    std: Any  # float32 [C], square roots of its eigenvalues, ascending


def compute_statistics(
    split: grain.sources.RandomAccessDataSource, read_threads: int = 1
) -> Statistics:
    """Return the statistics of all images of a split, in one pass.

    `split[i]['image']` is uint8 [H, W, C]. The sums are exact integers: neither the order nor the
    number of threads matters. The covariance is that of the C channels over all pixels of all
    images ("the set of RGB pixel values throughout the ImageNet training set", Paper 4.1), divided
    by their number. The component of the largest magnitude of each eigenvector is positive.
    """
    height, width, channels = split[0]['image'].shape
    total = np.zeros((height, width, channels), np.int64)
    products = np.zeros((channels, channels), np.int64)
    sums = (
        grain.MapDataset.range(0, len(split), _CHUNK)
        .map(lambda start: _sums(split, start))
        .to_iter_dataset(grain.ReadOptions(read_threads, prefetch_buffer_size=2 * read_threads))
    )
    with tqdm.tqdm(total=len(split), desc='mean image', unit=' images', disable=None) as progress:
        for count, chunk_total, chunk_products in sums:
            total += chunk_total
            products += chunk_products
            progress.update(count)
    covariance = _covariance(total.sum((0, 1)), products, len(split) * height * width)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    largest = np.argmax(np.abs(eigenvectors), axis=0)
    eigenvectors *= np.sign(eigenvectors[largest, np.arange(channels)])
    return Statistics(
        mean_image=(total / len(split)).astype(np.float32),
        eigenvectors=eigenvectors.astype(np.float32),
        std=np.sqrt(np.maximum(eigenvalues, 0)).astype(np.float32),
    )


def _sums(split: Any, start: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of images of a chunk, their sum and the sum of their pixels' x x^T."""
    stop = min(start + _CHUNK, len(split))
    images = np.stack([split[index]['image'] for index in range(start, stop)])
    # Exact in float64: below 2^53 up to 10^11 pixels. Integer matrix products are slow.
    pixels = images.reshape(-1, images.shape[-1]).astype(np.float64)
    return stop - start, images.sum(0, dtype=np.int64), (pixels.T @ pixels).astype(np.int64)


def _covariance(sums: np.ndarray, products: np.ndarray, pixels: int) -> np.ndarray:
    """Return (E[x x^T] - E[x] E[x]^T) in float64, the difference taken in unbounded integers."""
    exact_sums, exact_products = sums.astype(object), products.astype(object)
    difference = pixels * exact_products - np.outer(exact_sums, exact_sums)
    return (difference / pixels**2).astype(np.float64)


def load_or_compute(
    split: grain.sources.RandomAccessDataSource,
    *,
    directory: epath.PathLike,
    fingerprint: Mapping[str, str | int],
    read_threads: int = 1,
) -> Statistics:
    """Return the statistics of a split from its file in `directory`, or compute and write them.

    The file is `statistics_HASH.npz`, the hash that of `fingerprint`, which identifies the
    examples. Where it cannot be written, one warning says so and the run goes on.
    """
    identity = json.dumps(dict(fingerprint), sort_keys=True).encode()
    name = f'statistics_{hashlib.sha256(identity).hexdigest()[:16]}.npz'
    path = epath.Path(directory) / name
    cached = _load(path)
    if cached is not None:
        return cached
    _logger.info('computing the mean image and the colour covariance of %d images', len(split))
    statistics = compute_statistics(split, read_threads)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **statistics._asdict())
    temporary = path.with_name(f'{name}.{uuid.uuid4().hex}.tmp')  # other machines write it, too
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    except OSError as error:
        _logger.warning('each run computes its statistics: cannot write %s (%s)', path, error)
    return statistics


def _load(path: epath.Path) -> Statistics | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return Statistics(**arrays)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        _logger.warning('computing the statistics again: cannot read %s (%s)', path, error)
        return None
