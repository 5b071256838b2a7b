"""Open the data set of a run, with its statistics; the digits are prepared on first use."""

import logging

from alexnet_jax.input import sources, stats
from alexnet_jax.input.batch import Statistics
from alexnet_jax.input.sources import DataConfig, Dataset
from alexnet_jax.preparation import digits
from alexnet_jax.training import guard

_logger = logging.getLogger(__name__)


def load(config: DataConfig) -> tuple[Dataset, Statistics]:
    """Open the data set of a configuration, with the statistics of its training split.

    On first use the data set `digits` is prepared, and the statistics of any data set are computed
    by process 0 and kept beside the data. Raises UserError as `sources.open_dataset` does.
    """
    guard.expect('opening the data set', slow=True)
    if config.name == 'digits' and not sources.is_prepared('digits', config.dir):
        _logger.info('preparing the data set digits in %s', config.dir)
        digits.prepare_digits(config.dir)
    dataset = sources.open_dataset(config)
    statistics = stats.load_or_compute(
        dataset.train,
        directory=dataset.directory,
        fingerprint=dataset.train.fingerprint(),
        read_threads=config.read_threads,
        note_progress=_note_progress,
    )
    return dataset, statistics


def _note_progress() -> None:
    guard.expect('the next part of the statistics', slow=True)
