"""Fig. 4, left: images with the five most probable labels of each, and the right one marked."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.inference.network import Network, Prediction
from alexnet_jax.visualisation import drawing, subjects
from alexnet_jax.visualisation.subjects import Subjects

_TOP = 5
_COLUMNS = 4  # as in Fig. 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a network says about images.

    Attributes:
      images: float32 [N, S, S, C], the centre crops, from 0 to 255.
      titles: a name for each image.
      labels: int32 [N], the right labels, or None where they are not known.
      label_names: the names of all classes.
      ranked: for each image the five most probable classes, or all of fewer, the best first.
      error: the top-1 error on the images from which these were chosen; None without labels.
      among: how many images these were.
      rule: how the images were chosen, for a caption.
    """

    images: np.ndarray
    titles: Sequence[str]
    labels: np.ndarray | None
    label_names: Sequence[str]
    ranked: Sequence[Sequence[Prediction]]
    error: float | None
    among: int
    rule: str

    @property
    def caption(self) -> str:
        """What one sees, in a few sentences."""
        count = len(self.ranked[0])
        caption = f'Images with the {count} most probable labels of each; bars are probabilities. '
        if self.error is None:
            return f'{caption}{self.rule}'
        return (
            f'{caption}The right label stands below its image, and its bar is blue with a bold '
            f'name. {self.rule} The top-1 error on the {self.among:,} is {100 * self.error:.1f} %.'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For `--json`: `top1_error`, `among`, and of each image its title, label and classes."""
        rows = [
            {
                'title': title,
                'label': None if self.labels is None else int(self.labels[row]),
                'predictions': [p._asdict() for p in self.ranked[row]],
            }
            for row, title in enumerate(self.titles)
        ]
        return {'top1_error': self.error, 'among': self.among, 'images': rows}


def find(net: Network, found: Subjects, count: int = 8) -> Predictions:
    """Return what a network says about images, with the centre crop.

    With labels, `count` of the images are chosen by `right_and_wrong`; without, all are taken.
    """
    outputs = net.probabilities(found.images)
    rows: Sequence[int] = range(len(found))
    error, rule = None, found.rule
    if found.labels is not None:
        right = np.argmax(outputs, axis=1) == found.labels
        rows = right_and_wrong(right, count)
        error = float(np.mean(~right))
        good = int(right[list(rows)].sum())
        rule = (
            f'{good} that it gets right and {len(rows) - good} that it gets wrong, each evenly '
            f'spaced over those among {found.rule}'
        )
    return Predictions(
        images=net.crops([found.images[row] for row in rows]),
        titles=[found.titles[row] for row in rows],
        labels=None if found.labels is None else found.labels[list(rows)],
        label_names=net.readable_names,
        ranked=[net.ranked(outputs[row], _TOP) for row in rows],
        error=error,
        among=len(found),
        rule=rule,
    )


def right_and_wrong(right: np.ndarray, count: int) -> list[int]:
    """Return the indices of right and then of wrong examples, `count` in all.

    Half are right and half are wrong, as far as there are so many; each half is evenly spaced.
    """
    good, bad = np.flatnonzero(right).tolist(), np.flatnonzero(~right).tolist()
    wrong = min(len(bad), max(count // 2, count - len(good)))
    return [*subjects.evenly(good, count - wrong), *subjects.evenly(bad, wrong)]


def draw(found: Predictions) -> Any:
    """Return the predictions as a figure of matplotlib, four images in a row."""
    columns = min(_COLUMNS, len(found.ranked))
    rows = -(-len(found.ranked) // columns)
    figure, axes = drawing.pyplot().subplots(
        2 * rows, columns, squeeze=False, figsize=(1.9 * columns, 3.3 * rows),
        height_ratios=[1.5, 1] * rows, layout='constrained',
    )  # fmt: skip
    for panel in axes.flat:
        panel.axis('off')
    for index, ranked in enumerate(found.ranked):
        row, column = divmod(index, columns)
        label = None if found.labels is None else int(found.labels[index])
        picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
        picture.axis('on')
        drawing.show(picture, found.images[index])
        title = found.titles[index] if label is None else found.label_names[label]
        picture.set_xlabel(textwrap.shorten(title, 26), fontsize=9)
        for place, prediction in enumerate(ranked):
            right = prediction.label == label
            bars.barh(
                place, prediction.probability, height=0.84,
                color=drawing.RIGHT if right else drawing.WRONG, alpha=0.55,
            )  # fmt: skip
            bars.text(
                0.02, place, textwrap.shorten(prediction.name, 24), va='center', fontsize=8,
                fontweight='bold' if right else 'normal',
            )  # fmt: skip
        bars.set(xlim=(0, 1), ylim=(_TOP - 0.5, -0.5))
    return figure
