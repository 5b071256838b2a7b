"""Report an evaluation class by class: recall, precision, F1 and the confusion matrix."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.input.sources import Split
from alexnet_jax.parallel import processes
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.spreadsheet import to_csv
from alexnet_jax.training.evaluate import errors_in
from alexnet_jax.training.experiment import Experiment

_PREDICTIONS = {
    1: 'the class with the largest output for the centre crop',
    10: 'the class with the largest mean of the softmax outputs of ten views',
}


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """The predictions of an evaluation, counted by class; None stands for what is undefined."""

    class_names: tuple[str, ...]
    confusion: np.ndarray  # int64 [true class, predicted class]

    @classmethod
    def count(
        cls, class_names: Sequence[str], labels: np.ndarray, predicted: np.ndarray
    ) -> 'ClassReport':
        """Count the predictions; labels and predictions are integers [N] below the classes."""
        size = len(class_names)
        cells = labels.astype(np.int64) * size + predicted.astype(np.int64)
        confusion = np.bincount(cells, minlength=size**2).reshape(size, size)
        return cls(tuple(class_names), confusion)

    @property
    def examples(self) -> list[int]:
        """The number of examples of each class."""
        return self.confusion.sum(axis=1).tolist()

    @functools.cached_property
    def recall(self) -> list[float | None]:
        """The share of each class that was predicted right, its accuracy; None without examples."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @functools.cached_property
    def precision(self) -> list[float | None]:
        """The share of the predictions of each class that was right; None if there were none."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @functools.cached_property
    def f1(self) -> list[float | None]:
        """2 TP / (2 TP + FP + FN); None for a class without examples that was never predicted."""
        both = self.confusion.sum(axis=1) + self.confusion.sum(axis=0)
        return _ratios(2 * self.confusion.diagonal(), both)

    def per_class_csv(self) -> bytes:
        """Return a table with one row for each class; a cell is empty if it is undefined."""
        header = ('index', 'name', 'examples', 'recall', 'precision', 'f1')
        columns = (self.class_names, self.examples, self.recall, self.precision, self.f1)
        rows = ((index, *row) for index, row in enumerate(zip(*columns, strict=True)))
        return to_csv([header, *rows]).encode()

    def confusion_csv(self) -> bytes:
        """Return the counts with a row for each true and a column for each predicted class."""
        counts = zip(self.class_names, self.confusion.tolist(), strict=True)
        rows = [('true class', *self.class_names), *((name, *row) for name, row in counts)]
        return to_csv(rows).encode()

    def json(self, about: Mapping[str, Any]) -> bytes:
        """Return one JSON object with `about` at its beginning; null stands for what is undefined.

        Each class and each row of the confusion matrix has a line of its own.
        """
        columns = {
            'name': self.class_names,
            'examples': self.examples,
            'recall': self.recall,
            'precision': self.precision,
            'f1': self.f1,
        }
        classes = [
            {'index': index, **dict(zip(columns, row, strict=True))}
            for index, row in enumerate(zip(*columns.values(), strict=True))
        ]
        lines = [f'{json.dumps(key)}: {_json(value)}' for key, value in about.items()]
        for key, rows in (('classes', classes), ('confusion', self.confusion.tolist())):
            lines.append(f'"{key}": [\n' + ',\n'.join(map(_json, rows)) + '\n]')
        return ('{\n' + ',\n'.join(lines) + '\n}\n').encode()


def open_directory(place: str) -> epath.Path | None:
    """Make the directory of `evaluation.report_dir` and return it; '' is none.

    All processes must call this. Raises UserError in all of them if process 0 cannot write there,
    so that nobody waits for an evaluation whose report would be lost.
    """
    directory = storage.resolve(place, 'config.evaluation.report_dir') if place else None

    def make() -> None:
        if not directory:
            return
        probe = directory / 'report.json.tmp'  # as `storage.replace` will name it
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b'')
            probe.unlink()
        except OSError as error:
            raise UserError(
                f'cannot write to config.evaluation.report_dir = {directory} '
                f'({error.strerror or error}); change its permissions, or name another directory'
            ) from error

    processes.from_first(make)
    return directory


def save(
    directory: epath.Path,
    experiment: Experiment,
    split: Split,
    about: Mapping[str, Any],
    metrics: Mapping[str, float],
    labels: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """Write per_class.csv, confusion.csv and report.json; all processes must call this.

    Args:
      directory: that of `open_directory`.
      experiment: with which the split was evaluated.
      split: what was evaluated.
      about: which networks were evaluated, for report.json.
      metrics: those of the evaluation.
      labels, predicted: integers [N].

    Raises UserError in all processes if process 0 cannot write.
    """
    dataset, views = experiment.dataset, experiment.config.evaluation.final_views
    assert dataset is not None
    report = ClassReport.count(dataset.class_names, labels, predicted)
    about = {
        **about,
        'data_set': split.full_name,
        'split': split.name,
        'examples': len(labels),
        'views': views,
        'predictions': _PREDICTIONS[views],
        **errors_in(metrics),
    }

    def write() -> None:
        with storage.writing(f'the report of each class to {directory}'):
            storage.replace(directory / 'per_class.csv', report.per_class_csv())
            storage.replace(directory / 'confusion.csv', report.confusion_csv())
            storage.replace(directory / 'report.json', report.json(about))

    processes.from_first(write)


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [part / whole if whole else None for part, whole in pairs]


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
