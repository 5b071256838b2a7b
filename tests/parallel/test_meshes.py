"""The same loss, gradients and steps on every mesh and by both backends as on one device."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from alexnet_jax.input import pipeline
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.experiment import BATCH_SPECS
from tests import reference
from tests.parallel.tiny_run import BATCH, Run, assert_close, host_batch, train

STEPS = 10


@pytest.fixture(autouse=True)
def quick_compile():
    """Half the time to compile; the arithmetic is that of the program as it is written."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@functools.cache
def _one_device(
    towers: int, num_classes: int, dtype: str, conv6: int, changes: tuple[tuple[str, Any], ...]
) -> tuple[Any, Any]:
    run = Run(towers, 1, 1, dtype, conv6=conv6, num_classes=num_classes, changes=changes)
    return run.gradients(), train(run, STEPS)


def _assert_as_on_one_device(run: Run, tolerance: float) -> None:
    """Loss and all gradients with dropout; then whole steps.

    Those have crops, mirrors, colour, dropout, LRN, decay and momentum.
    """
    (loss, gradients), (losses, state) = _one_device(
        run.towers, run.num_classes, run.dtype, run.conv6, run.changes
    )
    got_loss, got = run.gradients()
    assert got_loss == pytest.approx(loss, rel=tolerance)
    assert_close(got, gradients, tolerance)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    got_losses, got = train(run, STEPS)
    np.testing.assert_allclose(got_losses, losses, rtol=tolerance)
    assert_close(got, state, tolerance)
    assert len(set(losses)) == STEPS


TWO_TOWERS = [(2, *mesh) for mesh in [(2, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8)]]
ONE_TOWER = [(1, *mesh) for mesh in [(2, 1), (1, 2), (1, 4)]]
# What every run of the tests does; the others are left to `-m slow`.
SOON = [
    (2, 2, 2, 'pmap', 10),
    (2, 1, 4, 'shard_map', 10),
    (2, 2, 4, 'pmap', 1000),
    (1, 1, 2, 'shard_map', 1000),
]
MATRIX = [
    pytest.param(*case, marks=() if case in SOON else pytest.mark.slow)
    for case in (
        (*mesh, backend, num_classes)
        for mesh in TWO_TOWERS + ONE_TOWER
        for backend in ('shard_map', 'pmap')
        for num_classes in (10, 1000)
    )
]


@pytest.mark.parametrize(('towers', 'data', 'model', 'backend', 'num_classes'), MATRIX)
def test_as_on_one_device(x64, towers, data, model, backend, num_classes):
    run = Run(towers, data, model, backend=backend, num_classes=num_classes)
    _assert_as_on_one_device(run, 1e-9)


@pytest.mark.parametrize(
    ('towers', 'data', 'model', 'backend', 'rate'),
    [
        pytest.param(2, 2, 2, 'shard_map', 0.01),
        pytest.param(2, 1, 4, 'pmap', 0.01, marks=pytest.mark.slow),
        pytest.param(1, 2, 1, 'shard_map', 0.001, marks=pytest.mark.slow),
    ],
)
def test_as_on_one_device_in_float32(towers, data, model, backend, rate):
    """At ten times the rate the last case meets a ReLU at zero, in its second step.

    4.0e-7 on one device is -1.5e-6 on two there; from the next step on the losses are 2e-4 apart.
    """
    changes = (('optim.learning_rate', rate),)
    run = Run(towers, data, model, 'float32', backend=backend, changes=changes)
    _assert_as_on_one_device(run, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['shard_map', 'pmap'])
def test_with_conv6_and_parts_of_the_batch(x64, backend):
    """CNN* (Paper 6); gradients averaged over two halves of the batch, one after the other."""
    run = Run(2, 1, 4, conv6=8, accumulation_steps=2, backend=backend)
    _assert_as_on_one_device(run, 1e-9)


# Rates and norms of split parameters, crops shared by rows of several devices.
UPDATES = (
    ('optim.lars_trust_coefficient', 0.01),
    ('optim.lr_multipliers', (('conv1', 0.5), ('bias', 2.0))),
    ('optim.weight_decay_multipliers', (('bias', 0.0),)),
    ('optim.events', ((0.05, 'fc6', 0.001),)),
    ('augment.images_per_crop', 4),
    ('augment.mean', 'centre'),
)
# Norms across towers, towers apart up to fc8, dropout of inputs.
NETWORK = (
    ('model.lrn.across_towers', True),
    ('model.conv1.after', ('lrn', 'pool', 'activation')),
    ('model.conv2.after', ('activation', 'lrn', 'map_norm', 'pool')),
    ('model.conv3.sees_both_towers', False),
    ('model.fc6.sees_both_towers', False),
    ('model.fc7.sees_both_towers', False),
    ('model.activation', 'tanh'),
    ('model.dropout_inverted', True),
    ('model.dropout_inputs', True),
)
# Towers meet at fc6 after dropout of its inputs; local kernels; no fc7.
LOCAL = (
    ('model.conv4.local', True),
    ('model.fc7.features', 0),
    ('model.dropout_inputs', True),
    ('model.conv1.pool_partial', True),
)
# Today's recipes; each image has its own crop and colours.
RECIPE = (
    ('augment.resized_crop_area', (0.3, 1.0)),
    ('augment.brightness', 0.4),
    ('augment.contrast', 0.4),
    ('augment.saturation', 0.4),
    ('optim.nesterov', True),
    ('optim.schedule', 'cosine'),
    ('optim.warmup_epochs', 0.02),
    ('training.label_smoothing', 0.1),
)
# Mixed images and labels, a moving average, batch normalisation before and after the ReLU.
MIXED = (
    ('augment.mixup_alpha', 0.4),
    ('augment.cutmix_alpha', 1.0),
    ('training.label_smoothing', 0.1),
    ('training.ema_decay', 0.9),
    ('model.conv1.after', ('bn', 'activation', 'pool')),
    ('model.conv2.after', ('activation', 'bn', 'pool')),
    ('model.conv3.after', ('bn', 'activation')),
    ('optim.weight_decay_multipliers', (('scale', 0.0), ('bn1.bias', 0.0))),
)
NO_HIDDEN = (('model.fc6.features', 0), ('model.fc7.features', 0))


@functools.cache
def _one_device_with(towers: int, changes: tuple[tuple[str, Any], ...], parts: int = 1) -> Any:
    return train(Run(towers, 1, 1, changes=changes, accumulation_steps=parts), 4)


@pytest.mark.parametrize(
    ('towers', 'data', 'model', 'backend', 'changes'),
    [
        (2, 2, 4, 'shard_map', UPDATES),
        pytest.param(2, 1, 8, 'pmap', UPDATES, marks=pytest.mark.slow),
        (2, 2, 4, 'shard_map', NETWORK),
        (2, 1, 2, 'shard_map', LOCAL),
        pytest.param(2, 1, 4, 'pmap', LOCAL, marks=pytest.mark.slow),
        (2, 2, 2, 'shard_map', NO_HIDDEN),
        (2, 2, 4, 'shard_map', RECIPE),
        pytest.param(2, 2, 2, 'pmap', RECIPE, marks=pytest.mark.slow),
    ],
)
def test_variants_are_as_on_one_device(x64, towers, data, model, backend, changes):
    losses, state = _one_device_with(towers, changes)
    got_losses, got = train(Run(towers, data, model, backend=backend, changes=changes), 4)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-9)
    assert_close(got, state, 1e-9)


@pytest.mark.parametrize(
    ('towers', 'data', 'model', 'backend', 'parts'),
    [
        (2, 2, 4, 'pmap', 1),
        pytest.param(2, 1, 4, 'shard_map', 2, marks=pytest.mark.slow),
        pytest.param(2, 2, 2, 'shard_map', 1, marks=pytest.mark.slow),
        pytest.param(2, 8, 1, 'shard_map', 1, marks=pytest.mark.slow),
        pytest.param(2, 1, 8, 'pmap', 1, marks=pytest.mark.slow),
        pytest.param(2, 2, 4, 'pmap', 2, marks=pytest.mark.slow),
        pytest.param(2, 4, 1, 'pmap', 2, marks=pytest.mark.slow),
        pytest.param(1, 2, 2, 'shard_map', 1, marks=pytest.mark.slow),
    ],
)
def test_mixed_images_batch_statistics_and_averages(x64, towers, data, model, backend, parts):
    """Partners stay on their device, and statistics are those of the global batch or its parts."""
    losses, state = _one_device_with(towers, MIXED, parts)
    run = Run(towers, data, model, backend=backend, changes=MIXED, accumulation_steps=parts)
    got_losses, got = train(run, 4)
    np.testing.assert_allclose(got_losses, losses, rtol=1e-9)
    assert_close(got, state, 1e-9)


@pytest.mark.parametrize(('towers', 'data', 'model'), TWO_TOWERS + ONE_TOWER)
def test_each_image_crosses_to_the_devices_once(monkeypatch, towers, data, model):
    """`train` sees to it that a step of either backend takes nothing more from the host."""
    mesh = mesh_lib.make_mesh(reference.parallel(data=data, model=model), towers)
    make, sent = jax.make_array_from_callback, []

    def counting_make(shape, sharding, callback):
        def counted(index):
            part = callback(index)
            sent.append(part.nbytes if part.dtype == np.uint8 else 0)
            return part

        return make(shape, sharding, counted)

    monkeypatch.setattr(jax, 'make_array_from_callback', counting_make)
    batch = host_batch()
    shardings = mesh_lib.shardings(mesh, BATCH_SPECS)
    (on_devices,) = pipeline.to_device((b for b in [batch]), shardings)
    assert sum(sent) == batch.images.nbytes
    parts = {part.device: np.asarray(part.data) for part in on_devices.images.addressable_shards}
    assert list(parts) == list(mesh.devices.flat)
    assert sum(len(part) for part in parts.values()) == len(batch.images)
    # What the towers of a copy and shard have together are the rows of that copy and shard.
    for copy, shard in np.ndindex(data, mesh.shape['shard']):
        partners = mesh.devices[copy, :, shard]
        rows = BATCH // data // mesh.shape['shard']
        first = copy * (BATCH // data) + shard * rows
        np.testing.assert_array_equal(
            np.concatenate([parts[d] for d in partners]), batch.images[first : first + rows]
        )


@pytest.mark.parametrize(
    ('sizes', 'words'),
    [
        ({'data': 9, 'model': 1}, 'needs 9 devices and there are 8'),
        ({'data': 4, 'model': 4}, 'needs 16 devices'),
        ({'data': 2, 'model': 8}, 'needs 16 devices and there are 8; lower one of the two, or try'),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(sizes, words):
    with pytest.raises(UserError, match=words) as error:
        mesh_lib.make_mesh(reference.parallel(**sizes), 2)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('towers', 'data', 'model', 'shape'),
    [
        (2, -1, 2, (4, 2, 1)),
        (2, -1, 8, (1, 2, 4)),
        (2, 3, 1, (3, 1, 1)),
        (2, 1, 4, (1, 2, 2)),
        (1, -1, 4, (2, 1, 4)),
        (1, 1, 8, (1, 1, 8)),
        (1, -1, 1, (8, 1, 1)),
    ],
)
def test_shapes_of_meshes(towers, data, model, shape):
    mesh = mesh_lib.make_mesh(reference.parallel(data=data, model=model), towers)
    assert mesh.axis_names == ('data', 'tower', 'shard')
    assert mesh.devices.shape == shape
    copies = data if data > 0 else 8 // model
    assert mesh_lib.abstract_mesh(copies, model, towers).shape == mesh.shape


def test_batch_must_divide():
    mesh = mesh_lib.make_mesh(reference.parallel(data=2, model=2), 2)
    mesh_lib.check_batch(mesh, 16, 2, 'training.batch_size')
    with pytest.raises(UserError, match=r'training\.batch_size = 12 must be a multiple of 8'):
        mesh_lib.check_batch(mesh, 12, 2, 'training.batch_size')
