"""Compare the preparation of photographs with only decoding and resizing them."""

import itertools
import os
import resource
import tempfile
from typing import Any

from alexnet_jax.benchmarks import timing
from alexnet_jax.input import sources, stats
from alexnet_jax.preparation import folder, images, photographs
from alexnet_jax.runtime.errors import UserError

_IMAGES = 5000  # per round; a source with fewer images is used several times
_DISTINCT = 1000  # images of the source, which are kept in memory
_SIZE = 256


def measure(source: str, *, count: int = _IMAGES, rounds: int = 7) -> dict[str, Any]:
    """Return images per second, and per second of processor time, for the parts of `prepare`.

    'decode_resize' is a loop over files in memory. 'records_1' and 'records_2' are
    `photographs.write_photographs` with one and two workers, from `source` to the directory for
    temporary files. They include the start of the workers, which takes a second longer than in
    `prepare`, because here each worker imports JAX. 'statistics' computes the mean image and the
    covariance from those records, as `prepare` does at its end. "Per core" means per second of
    processor time of all threads and processes; the ratios `..._to_decode_resize` compare these
    numbers within each round.

    Args:
      source: a folder or a tar of JPEG or PNG files, as for `prepare folder`.
      count, rounds: number of images and of repetitions of each part.
    """
    if not os.path.exists(source):
        raise UserError(
            f'--source={source!r} does not exist; name a folder or a tar of photographs'
        )
    found, _ = folder.find(source)
    if not found:
        raise UserError(f'{source} contains no JPEG or PNG files; name another --source')
    once = [photographs.Item(file, entry, 0) for file, entry in found[:_DISTINCT]]
    items = list(itertools.islice(itertools.cycle(once), count))
    files = {item: item.read(source)[1] for item in once}

    def decode_and_resize() -> None:
        for item in items:
            images.resize_and_crop(images.decode(files[item], item.name)[0], _SIZE)

    def records(workers: int) -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as data_dir:
            _write(data_dir, source, items, workers)

    with tempfile.TemporaryDirectory() as scratch:
        _write(scratch, source, items, 1)
        cores: dict[str, list[float]] = {}
        cases = {
            'decode_resize': decode_and_resize,
            'records_1': lambda: records(1),
            'records_2': lambda: records(2),
            'statistics': lambda: _compute_statistics(scratch),
        }
        counted = {
            name: _counting(case, cores.setdefault(name, [])) for name, case in cases.items()
        }
        seconds = timing.interleaved(counted, rounds=rounds, warmup=0)
    result: dict[str, Any] = {'images': count}
    for name in cases:
        result |= timing.rates(f'{name}_per_second', count, seconds[name])
        result |= timing.rates(f'{name}_per_second_per_core', count, cores[name])
    alone = cores['decode_resize']
    for name in ('records_1', 'records_2'):
        result |= timing.paired_ratio(f'{name}_to_decode_resize', alone, cores[name])
    both = [a + b for a, b in zip(cores['records_1'], cores['statistics'], strict=True)]
    result |= timing.paired_ratio('with_statistics_to_decode_resize', alone, both)
    two, one = seconds['records_2'], seconds['records_1']
    return result | timing.paired_ratio('speedup_of_2_workers', one, two)


def _counting(case: Any, processor_seconds: list[float]) -> Any:
    """Wrap a case so that it records the processor time of this process and its children."""

    def call() -> None:
        began = _processor_time()
        case()
        processor_seconds.append(_processor_time() - began)

    return call


def _processor_time() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _write(data_dir: str, source: str, items: list[photographs.Item], workers: int) -> None:
    photographs.write_photographs(
        data_dir,
        source,
        name='benchmark',
        version='1.0.0',
        description='Photographs.',
        size=_SIZE,
        class_names=['photograph'],
        splits={'train': items},
        settings={},
        workers=workers,
        skip_broken=True,
    )


def _compute_statistics(data_dir: str) -> None:
    data = sources.DataConfig.as_stored('benchmark', data_dir)
    stats.compute_statistics(sources.open_dataset(data).train)
