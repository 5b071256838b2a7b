"""The benchmarks of the step and of its layers: what is compared is the same function."""

import dataclasses
import fnmatch
import functools
import importlib.util
import math
import time
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch

from alexnet_jax.benchmarks import layers, problem, step, torch_step
from alexnet_jax.input.augment import AugmentConfig
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.config import MEANING, field, integer
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config
from configs import tiny
from tests.typed_config import typed


def configuration(changes: Mapping[str, Any] = {}) -> Config:
    """Return the tiny network on one device, with weights large enough for the loss to move.

    `changes` are other values of some fields, by their dotted names.
    """
    config = tiny.get_config()
    config.parallel.update(data=1, model=1, cpu_devices=0)
    config.optim.update(schedule='constant', learning_rate=0.01, weight_decay=0.05)
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8'):
        config.model[name].init_std = 0.15
    config.model.lrn.alpha = 1e-3
    config.update_from_flattened_dict(changes)
    return typed(config)


@pytest.fixture(scope='module')
def ours():
    """Return (initial weights, losses of four steps) of our step without chance."""
    program = problem.Ours(problem.without_chance(configuration()))
    params = jax.device_get(program.state.params)
    losses = program.train(4)
    assert max(losses) - min(losses) > 0.05 * max(losses), 'a loss that stands still says nothing'
    return params, losses


def test_the_plain_program_is_the_same_function(ours):
    params, losses = ours
    plain = problem.Plain(problem.without_chance(configuration()), params)
    np.testing.assert_allclose(plain.train(4), losses, rtol=1e-4)


def torch_settings(config, monkeypatch) -> dict:
    """Return what the other process is told, without starting one."""
    told = []

    class Process:
        def __init__(self, command, **_):
            told.append(command[-1])
            file = problem.json.loads(command[-1])['problem']
            with np.load(file, allow_pickle=False) as arrays:
                told.append({name: arrays[name] for name in arrays.files})

    monkeypatch.setattr(problem.subprocess, 'Popen', Process)
    monkeypatch.setattr(problem.Torch, '_answer', lambda self: ['', ''])
    problem.Torch(config, problem.Ours(config).state.params, product_size=8)
    return {**problem.json.loads(told[0]), 'arrays': told[1]}


def torch_worker(settings, monkeypatch, tmp_path) -> torch_step.Worker:
    """Return the other process's program, in this process and not compiled."""
    settings['problem'] = str(tmp_path / 'problem.npz')
    np.savez(settings['problem'], **settings.pop('arrays'))
    monkeypatch.setattr(torch, 'compile', lambda network, dynamic: network)
    return torch_step.Worker(settings)


def test_the_program_in_pytorch_is_the_same_function(ours, monkeypatch, tmp_path):
    settings = torch_settings(problem.without_chance(configuration()), monkeypatch)
    params, losses = ours
    arrays = settings['arrays']
    jax.tree.map_with_path(
        lambda path, leaf: np.testing.assert_array_equal(
            arrays['/'.join(key.key for key in path)], leaf
        ),
        params,
    )
    worker = torch_worker(settings, monkeypatch, tmp_path)
    np.testing.assert_allclose(worker.train(0.0, 4), losses, rtol=1e-4)
    worker.reset()
    np.testing.assert_allclose(worker.train(0.0, 1), losses[:1], rtol=1e-4)
    assert abs(worker.train(0.5, 1)[0] - losses[1]) > 1e-3 * losses[1], 'dropout does something'
    first, second = worker.factors
    assert worker.product(2) == [pytest.approx((first @ second)[0, 0].item())]


@pytest.mark.slow
def test_both_programs_follow_the_order_of_the_layers(ours, monkeypatch, tmp_path):
    after = {
        'model.conv1.after': ('activation', 'pool', 'lrn'),
        'model.conv2.after': ('lrn', 'pool', 'activation'),
    }
    config = problem.without_chance(configuration(after))
    params, losses = ours
    plain = problem.Plain(config, params).train(2)
    worker = torch_worker(torch_settings(config, monkeypatch), monkeypatch, tmp_path)
    want = problem.Ours(config).train(2)
    np.testing.assert_allclose(plain, want, rtol=1e-4)
    np.testing.assert_allclose(worker.train(0.0, 2), want, rtol=1e-4)
    assert abs(want[1] - losses[1]) > 1e-3 * losses[1], 'the order does something'


def test_another_function_is_refused(ours):
    params, losses = ours
    config = problem.without_chance(configuration({'model.lrn.k': 1.0}))
    other = problem.Plain(config, params).train(4)
    with pytest.raises(UserError, match='computes another function') as error:
        problem.assert_same_losses('plain', other, losses, 1e-4)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError):
        problem.assert_same_losses('plain', [math.nan], [1.0], 1e-4)


def test_the_result_of_step(monkeypatch):
    monkeypatch.setattr(step, '_ROUNDS', 2)
    monkeypatch.setattr(step, '_TURN_S', 0.01)
    result = step.measure(configuration({'parallel.data': 2}), against='plain')
    assert result['device'].startswith('2 x ')
    assert result['batch_size'] == 16
    low, middle, high = (result[f'images_per_second{end}'] for end in ('_min', '', '_max'))
    assert 0 < low <= middle <= high
    for program in ('', 'plain_'):
        share = result[f'{program}images_per_second'] * result['gflop_per_image']
        share /= result['peak_gflops']
        assert result[f'{program}share_of_best_matmul'] == pytest.approx(share)
    assert result['ratio_to_plain_min'] <= result['ratio_to_plain'] <= result['ratio_to_plain_max']
    assert result['peak_memory_bytes'] > result['temporary_bytes'] > 0
    assert result['bytes_accessed_per_step'] > 0


OTHER_LAYERS = {
    'model.conv1.after': ('lrn', 'pool', 'activation'),
    'model.conv2.after': ('activation', 'lrn', 'map_norm', 'pool'),
    'model.conv3.local': True,
    'model.fc6.sees_both_towers': False,
    'model.fc7.features': 0,
}


@pytest.mark.slow
def test_the_layers_are_those_of_the_network(monkeypatch):
    monkeypatch.setattr(layers, '_ROUNDS', 1)
    monkeypatch.setattr(step, '_TURN_S', 0.01)
    result = layers.measure(configuration())
    names = [name.removesuffix('_ms') for name in result if name.endswith('_ms')]
    assert ' '.join(names[2:]) == (
        'augment conv1 lrn1 pool1 conv2 lrn2 pool2 conv3 conv4 conv5 fc6 fc7 fc8 update'
    )
    assert sum(result[f'{name}_share'] for name in names[2:]) == pytest.approx(1)
    assert result['conv2_of_peak'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, OTHER_LAYERS])
def test_each_layer_computes_what_it_does_in_the_network(changes):
    ours = problem.Ours(problem.without_chance(configuration(changes)))
    experiment, rows = ours.experiment, np.arange(16, dtype=np.int32)
    crops = problem.centre_crops(experiment.config)
    logits, seen = experiment.model.apply({'params': ours.state.params}, crops, rows)
    cases = layers._layers(ours)
    assert seen.keys() == cases.keys() - {'augment', 'update'}
    seen['fc8'] = -jax.nn.log_softmax(logits)[rows, ours.batch.labels]
    for name, want in seen.items():
        got, _ = cases[name]()
        got = np.concatenate(got, axis=-1) if isinstance(got, tuple) else got
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_peak_is_that_of_the_faster_program():
    five: Any = types.SimpleNamespace(size=64, repeats=5, flops=2 * 2 * 64**3)  # on two devices
    seconds = {'ours': [0.1], 'product': [1.5, 1.0], 'torch_product': [0.4, 0.9]}
    assert step._peak(five, seconds) == pytest.approx(5 * 2 * 64**3 / 0.4), 'one device'
    seconds['torch_product'] = [0.6]
    assert step._peak(five, seconds) == pytest.approx(5 * 4 * 64**3), 'two devices'


def test_the_first_of_a_turn_is_not_timed():
    times = []

    def work(number):
        times.append(number)
        time.sleep(0.3 if len(times) == 1 else 0.01)

    assert 0.01 <= step._turn(work, 3) < 0.3
    assert times == [1, 3]


@pytest.mark.slow
def test_a_comparison_takes_one_device_and_pytorch(monkeypatch):
    config = configuration({'parallel.data': 2})
    with pytest.raises(UserError, match='the mesh has 2'):
        layers.measure(config)
    with monkeypatch.context() as patch, pytest.raises(UserError, match='the mesh has 2'):
        patch.setattr(jax, 'default_backend', lambda: 'gpu')
        step.measure(config, against='plain')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[compare\]"'):
        step.measure(configuration(), against='torch')


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('model.conv3.local', True),
        ('model.conv1.pool_partial', True),
        ('model.conv2.after', ('activation', 'lrn', 'map_norm', 'pool')),
        ('model.conv2.after', ('activation', 'bn', 'pool')),
        ('model.fc6.sees_both_towers', False),
        ('model.fc7.features', 0),
        ('model.lrn.divide_alpha', True),
        ('model.lrn.across_towers', True),
        ('model.activation', 'tanh'),
        ('model.dropout_inverted', True),
        ('model.dropout_inputs', True),
        ('augment.pixel_divisor', 58.0),
        ('optim.reference_batch', 128),
        ('optim.warmup_epochs', 1.0),
        ('optim.lars_trust_coefficient', 0.001),
        ('optim.lr_multipliers', (('bias', 2.0),)),
        ('optim.weight_decay_multipliers', (('bias', 0.0),)),
        ('optim.events', ((1, 'all', 0.1),)),
        ('augment.mixup_alpha', 0.4),
        ('training.label_smoothing', 0.1),
        ('training.ema_decay', 0.9),
    ],
)
def test_what_the_other_programs_do_not_compute_is_refused(ours, name, value):
    config = configuration({name: value})
    for make in (problem.Plain, functools.partial(problem.Torch, product_size=8)):
        with pytest.raises(UserError, match=rf'config\.{name} = .* must be .* for --against'):
            make(config, ours[0])


def test_the_ready_crops_are_without_chance():
    changes = {'augment.rotation_degrees': 10.0, 'augment.colour_std': 0.1, 'augment.mirror': True}
    config = problem.without_chance(configuration(changes))
    assert config.augment.rotation_degrees == config.augment.colour_std == config.model.dropout == 0
    assert config.augment.mirror is config.augment.random_crop is False
    problem.require_known_to_rivals(configuration(changes))


def test_a_field_that_is_added_later_is_refused_unless_it_is_off(ours):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LaterAugment(AugmentConfig):
        cutout_px: int = field(integer(0), off=0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LaterConfig(Config):
        augment: LaterAugment

    values = configuration().to_dict()
    problem.require_known_to_rivals(LaterConfig.from_dict(values))  # without the field: off
    values['augment']['cutout_px'] = 16
    with pytest.raises(UserError, match=r'config\.augment\.cutout_px = 16 must be 0 for --against'):
        problem.Plain(LaterConfig.from_dict(values), ours[0])


def test_the_table_of_what_the_other_programs_can_names_fields():
    declared = sections.fields(Config)
    named = {name: fnmatch.filter(declared, name) for name in problem._RIVALS_CAN}
    assert all(named.values()), f'no such field: {[n for n, found in named.items() if not found]}'
    known = {name for found in named.values() for name in found}
    assert sum(map(len, named.values())) == len(known), 'a field is named twice'
    unknown = {
        name
        for name in declared.keys() - known
        if name.partition('.')[0] in ('model', 'augment', 'optim')
        and declared[name].metadata['role'] == MEANING
        and declared[name].default is dataclasses.MISSING
    }
    assert not unknown, f'can plain_step.py and torch_step.py compute {unknown}?'


def test_the_other_process_ends_with_the_comparison(monkeypatch):
    """Also with an error, such as a memory that is exhausted: it would keep its own."""

    class Rival(problem.Torch):
        closed = False

        def __init__(self):
            pass

        def close(self):
            self.closed = True

    def fail(*_):
        raise MemoryError

    rival = Rival()
    monkeypatch.setattr(step, '_rival', lambda *_: ({}, rival))
    monkeypatch.setattr(step, 'Ours', fail)
    monkeypatch.setattr(step, '_TURN_S', 0.01)
    with pytest.raises(MemoryError):
        step.measure(configuration(), against='torch')
    assert rival.closed


def test_a_sweep_ends_where_the_memory_does(monkeypatch):
    with pytest.raises(UserError, match=r'on a CPU leave it out and set training\.batch_size'):
        step.sweep(configuration())
    asked = []

    def measure(config, against):
        if config.training.batch_size > 2048:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
        asked.append((config.model.dtype, config.training.batch_size, against))
        return {'share_of_best_matmul': len(asked)}

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(step, 'measure', measure)
    result = step.sweep(configuration(), against='torch')
    sizes = [(128, 'torch'), (1024, 'torch'), (2048, '')]
    assert asked == [(dtype, *size) for dtype in ('float32', 'bfloat16') for size in sizes]
    assert result['bfloat16_128_share_of_best_matmul'] == 4
    monkeypatch.setattr(step, 'measure', lambda config, against: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.sweep(configuration())
