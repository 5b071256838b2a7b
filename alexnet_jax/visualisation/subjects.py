"""Choose the images on which a trained network is looked at."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from etils import epath

from alexnet_jax.inference.network import Network
from alexnet_jax.inference.pixels import Picture
from alexnet_jax.input import sources
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

AMONG = 512  # examples of a split, evenly spaced, from which those that are shown are taken

_Item = TypeVar('_Item')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """Images with their labels.

    Attributes:
      images: paths, images of Pillow or arrays, as `Network.predict` takes them.
      labels: int32 [N], or None where they are not known.
      titles: a name for each, for people.
      rule: how they were chosen, one sentence for a caption.
    """

    images: Sequence[Picture] | np.ndarray
    labels: np.ndarray | None
    titles: Sequence[str]
    rule: str

    def __len__(self) -> int:
        return len(self.images)


def of_split(
    net: Network, place: epath.Path, count: int, *, split: str = 'eval', data_dir: str = ''
) -> Subjects:
    """Return `count` examples of a split of the network's data set, evenly spaced over it.

    Args:
      net: the network that was loaded from `place`.
      place: the workdir of a run, or a weights file.
      count: how many; all if the split has fewer.
      split: 'eval' or 'train'.
      data_dir: where the data set is, as on the command line; '' for where a run was trained.

    Raises UserError if the data set cannot be opened or is not that of the network.
    """
    saved = place / 'config.json'
    trained_in = json.loads(saved.read_text())['data']['dir'] if saved.exists() else ''
    directory = storage.data_directory(data_dir, trained_in)
    dataset = sources.open_dataset(dataclasses.replace(net.config.data, dir=directory))
    source = {'eval': dataset.eval, 'train': dataset.train}[split]
    if dataset.class_names != tuple(net.class_names):
        raise UserError(
            f'{net.config.data.name} in {directory} has other classes than the network; name the '
            'data directory of its training'
        )
    indices = evenly(range(len(source)), count)
    found = [source[index] for index in indices]
    kind = {'eval': 'evaluation', 'train': 'training'}[split]
    return Subjects(
        images=np.stack([example['image'] for example in found]),
        labels=np.array([example['label'] for example in found], np.int32),
        titles=[f'example {index}' for index in indices],
        rule=f'{len(found)} of the {len(source):,} {kind} examples, evenly spaced.',
    )


def given(images: Sequence[Picture], titles: Sequence[str], labels: np.ndarray | None) -> Subjects:
    """Return the images that a user names."""
    return Subjects(images=images, labels=labels, titles=titles, rule='Chosen by hand.')


def evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return `count` of the items, or all if there are fewer, evenly spaced."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
