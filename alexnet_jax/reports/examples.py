"""Choose examples of a run's evaluation, right and wrong ones, and what the network says."""

import base64
import io

import numpy as np
from etils import epath
from PIL import Image

from alexnet_jax.inference.network import load
from alexnet_jax.reports.page import Example
from alexnet_jax.visualisation import subjects
from alexnet_jax.visualisation.predictions import right_and_wrong

_TOP = 3
_SMALL_PX = 64  # smaller images stay as they are; JPEG would blur them


def choose(workdir: epath.Path, data_dir: str, count: int) -> list[Example]:
    """Return right and wrong examples of the evaluation split.

    Of `subjects.AMONG` examples that are evenly spaced over the split, half of those returned are
    right and half are wrong, as far as there are so many, the right ones first; each half is evenly
    spaced again. The network is that of the newest checkpoint, with the centre crop.

    Args:
      workdir: of the run.
      data_dir: where its data set is; '' for where it was in training.
      count: how many examples.

    Raises UserError if there is no sound checkpoint, or if the data cannot be opened.
    """
    net = load(workdir)
    found = subjects.of_split(net, workdir, subjects.AMONG, data_dir=data_dir)
    images, labels = np.asarray(found.images), np.asarray(found.labels)
    outputs = net.probabilities(images)
    right = np.argmax(outputs, axis=1) == labels
    chosen = right_and_wrong(right, count)
    return [
        Example(
            image=_data_uri(images[index]),
            true_name=net.readable_names[labels[index]],
            predictions=[(p.name, p.probability) for p in net.ranked(outputs[index], _TOP)],
        )
        for index in chosen
    ]


def _data_uri(image: np.ndarray) -> str:
    """Return uint8 [H, W, C] as a data URI: JPEG, or PNG for a small image."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    kind = 'png' if max(picture.size) < _SMALL_PX else 'jpeg'
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
