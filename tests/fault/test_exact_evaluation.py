"""50,001 images in batches of 128 on 8 devices: each counts once, and the padding does not."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alexnet_jax.input import pipeline
from alexnet_jax.input.batch import Statistics
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.training.evaluate import eval_step, evaluate
from alexnet_jax.training.experiment import BATCH_SPECS
from tests import reference

pytestmark = pytest.mark.fault
IMAGES, BATCH, CLASSES = 50_001, 128, 10
SHAPE = (8, 8, 1)


def _brightest(index: int) -> int:
    """Every seventh image is bright in the pixel of the class after its own."""
    return (index + (index % 7 == 0)) % CLASSES


class _Numbered:
    """A split whose image number i is of the class i % 10."""

    image_shape = SHAPE

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.zeros(SHAPE, np.uint8)
        image.reshape(-1)[_brightest(index)] = 255
        return {'image': image, 'label': index % CLASSES}


class _Pixels(NamedTuple):
    """A network whose logits are the first pixels."""

    collectives: Any

    def apply(self, variables: Any, crops: jax.Array, rows: jax.Array) -> Any:
        return crops.reshape(crops.shape[0], -1)[:, :CLASSES], {}


def test_each_of_50_001_images_counts_once():
    mesh = mesh_lib.make_mesh(reference.parallel(data=8, model=1), towers=1)
    shardings = mesh_lib.shardings(mesh, BATCH_SPECS)
    model: Any = _Pixels(mesh_lib.collectives(mesh, 'shard_map'))
    augment = reference.augment(crop_px=8)
    step = mesh_lib.per_device(
        functools.partial(eval_step, model=model, augment=augment, views=1),
        mesh,
        'shard_map',
        in_specs=(P(), BATCH_SPECS, P()),
        out_specs=P(),
    )
    split: Any = _Numbered()
    zeros = np.zeros
    statistics = Statistics(zeros(SHAPE, 'f4'), zeros((1, 1), 'f4'), zeros(1, 'f4'))
    host = pipeline.eval_batches(split, batch_size=BATCH)
    batches = list(pipeline.to_device(host, shardings, batch_size=BATCH))
    assert len(batches) == 391
    assert len(batches[0].images.sharding.device_set) == 8
    metrics = evaluate(step, {}, statistics, batches, IMAGES)
    assert metrics is not None
    wrong = [index for index in range(IMAGES) if index % 7 == 0]
    # Behind the brightest pixel all are equal, and the lower classes come first.
    missed = 0
    for index in wrong:
        others = [c for c in range(CLASSES) if c != _brightest(index)]
        missed += index % CLASSES not in others[:4]
    assert (len(wrong), missed) == (7143, metrics['eval/top5_error'] * IMAGES)
    assert metrics['eval/top1_error'] == 7143 / IMAGES
