"""Fig. 4, right: test images beside the training images that are nearest to them in fc7."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from alexnet_jax.inference.network import Network
from alexnet_jax.visualisation import drawing
from alexnet_jax.visualisation.subjects import Subjects

_COUNT = 6  # as in Fig. 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Images and the training images nearest to them.

    Attributes:
      layer: whose activations are compared.
      images: float32 [N, S, S, C], the centre crops, from 0 to 255.
      labels: int32 [N], or None where they are not known.
      indices: int [N, K], which of the training images are nearest, the nearest first.
      distances: float [N, K], Euclidean.
      nearest: float32 [N, K, S, S, C], their crops.
      nearest_labels: int32 [N, K].
      label_names: the names of all classes.
      rule: how both were chosen, for a caption.
    """

    layer: str
    images: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    nearest_labels: np.ndarray
    label_names: Sequence[str]
    rule: str

    @property
    def same(self) -> np.ndarray | None:
        """Whether each neighbour has the label of its image, bool [N, K]; None without labels."""
        return None if self.labels is None else self.nearest_labels == self.labels[:, None]

    @property
    def caption(self) -> str:
        """What one sees, in a few sentences."""
        caption = (
            f'Left, images; beside each, the {self.indices.shape[1]} training images whose '
            f'{self.layer} is nearest by Euclidean distance, the nearest first. {self.rule}'
        )
        if self.same is None:
            return caption
        return (
            f'{caption} {self.same.sum()} of {self.same.size} neighbours have the label of their '
            'image; those of another label have an orange, dashed frame and their name below.'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For `--json`: `layer`, `indices`, `distances`, and `same_label`, the share of those."""
        return {
            'layer': self.layer,
            'indices': self.indices.tolist(),
            'distances': self.distances.tolist(),
            'same_label': None if self.same is None else float(self.same.mean()),
        }


def find(net: Network, found: Subjects, training: Subjects, layer: str = '') -> Neighbours:
    """Find the six training images nearest to each image.

    Args:
      net: the network.
      found: the images.
      training: those among which the nearest are sought, with labels.
      layer: whose activations are compared; by default the last before the logits, fc7.
    """
    layer = layer or net.activation_names[-2]
    features, candidates = (
        net.activations(chosen.images, layer).reshape(len(chosen), -1)
        for chosen in (found, training)
    )
    count = min(_COUNT, len(training))
    search = NearestNeighbors(n_neighbors=count, algorithm='brute').fit(candidates)
    distances, indices = search.kneighbors(features)
    crops = net.crops([training.images[index] for index in indices.flat])
    assert training.labels is not None
    return Neighbours(
        layer=layer,
        images=net.crops(found.images),
        labels=found.labels,
        indices=indices,
        distances=distances,
        nearest=crops.reshape(*indices.shape, *crops.shape[1:]),
        nearest_labels=training.labels[indices],
        label_names=net.readable_names,
        rule=f'The images: {found.rule} The neighbours are sought among {training.rule}',
    )


def draw(found: Neighbours) -> Any:
    """Return images and their neighbours as a figure of matplotlib, one row for each image."""
    rows, count = found.indices.shape
    figure, axes = drawing.pyplot().subplots(
        rows, count + 1, squeeze=False, figsize=(1.05 * (count + 1) + 0.2, 1.25 * rows + 0.2),
        width_ratios=[1.15, *[1] * count], layout='constrained',
    )  # fmt: skip
    for row, panels in enumerate(axes):
        drawing.show(panels[0], found.images[row])
        if found.labels is not None:
            panels[0].set_xlabel(_short(found.label_names[int(found.labels[row])]), fontsize=8)
        for place, panel in enumerate(panels[1:]):
            drawing.show(panel, found.nearest[row, place])
            if found.same is not None and not found.same[row, place]:
                panel.spines[:].set(color=drawing.WRONG, linewidth=2.5, linestyle='--')
            if found.same is None or not found.same[row, place]:
                name = found.label_names[int(found.nearest_labels[row, place])]
                panel.set_xlabel(_short(name), fontsize=8)
    axes[0, 0].set_title('image', fontsize=9)
    axes[0, 1].set_title(f'nearest in {found.layer}', fontsize=9, loc='left')
    return figure


def _short(name: str) -> str:
    """Return a name that fits below a small image."""
    return name if len(name) <= 16 else f'{name[:15]}…'
