"""The benchmarks of the step and of its layers: what is compared is the same function."""

import functools
import importlib.util
import math
import time
import types
from typing import Any

import jax
import numpy as np
import pytest
import torch

from alexnet_jax.benchmarks import layers, problem, step, torch_step
from alexnet_jax.runtime.errors import UserError
from configs import tiny


def configuration(**model):
    """Return the tiny network on one device, with weights large enough for the loss to move."""
    config = tiny.get_config()
    config.parallel.update(data=1, model=1, cpu_devices=0)
    config.optim.update(schedule='constant', learning_rate=0.01, weight_decay=0.05)
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8'):
        config.model[name].init_std = 0.15
    config.model.lrn.alpha = 1e-3
    config.model.update(model)
    return config


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


def test_the_program_in_pytorch_is_the_same_function(ours, monkeypatch, tmp_path):
    config = problem.without_chance(configuration())
    settings = torch_settings(config, monkeypatch)
    params, losses = ours
    arrays = settings.pop('arrays')
    jax.tree.map_with_path(
        lambda path, leaf: np.testing.assert_array_equal(
            arrays['/'.join(key.key for key in path)], leaf
        ),
        params,
    )
    settings['problem'] = str(tmp_path / 'problem.npz')
    np.savez(settings['problem'], **arrays)
    monkeypatch.setattr(torch, 'compile', lambda network, dynamic: network)
    worker = torch_step.Worker(settings)
    np.testing.assert_allclose(worker.train(0.0, 4), losses, rtol=1e-4)
    worker.reset()
    np.testing.assert_allclose(worker.train(0.0, 1), losses[:1], rtol=1e-4)
    assert abs(worker.train(0.5, 1)[0] - losses[1]) > 1e-3 * losses[1], 'dropout does something'
    first, second = worker.factors
    assert worker.product(2) == [pytest.approx((first @ second)[0, 0].item())]


def test_another_function_is_refused(ours):
    params, losses = ours
    config = problem.without_chance(
        configuration(lrn={'k': 1.0, 'n': 5, 'alpha': 1e-3, 'beta': 0.75})
    )
    other = problem.Plain(config, params).train(4)
    with pytest.raises(UserError, match='computes another function') as error:
        problem.assert_same_losses('plain', other, losses, 1e-4)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError):
        problem.assert_same_losses('plain', [math.nan], [1.0], 1e-4)


def test_the_result_of_step(monkeypatch):
    monkeypatch.setattr(step, '_ROUNDS', 2)
    monkeypatch.setattr(step, '_TURN_S', 0.01)
    config = configuration()
    config.parallel.data = 2
    result = step.measure(config, against='plain')
    assert result['device'].startswith('2 x ')
    assert result['batch_size'] == 16
    low, middle, high = (result[f'images_per_second{end}'] for end in ('_min', '', '_max'))
    assert 0 < low <= middle <= high
    mfu = middle * result['gflop_per_image'] / result['peak_gflops']
    assert result['mfu'] == pytest.approx(mfu)
    assert result['ratio_to_plain_min'] <= result['ratio_to_plain'] <= result['ratio_to_plain_max']
    assert result['peak_memory_bytes'] > result['temporary_bytes'] > 0
    assert result['bytes_accessed_per_step'] > 0


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


def test_a_comparison_takes_one_device_and_pytorch(monkeypatch):
    config = configuration()
    config.parallel.data = 2
    with pytest.raises(UserError, match='the mesh has 2'):
        layers.measure(config)
    with monkeypatch.context() as patch, pytest.raises(UserError, match='the mesh has 2'):
        patch.setattr(jax, 'default_backend', lambda: 'gpu')
        step.measure(config, against='plain')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[compare\]"'):
        step.measure(configuration(), against='torch')


def test_what_the_other_programs_do_not_know_is_refused(ours):
    params, _ = ours
    for field, value in (('warmup_epochs', 1.0), ('rate_factors', (('bias', 2.0),))):
        config = configuration()
        config.optim[field] = value
        for make in (problem.Plain, functools.partial(problem.Torch, product_size=8)):
            with pytest.raises(UserError, match=rf'optim\.{field} = .* compare and time with'):
                make(config, params)


def test_what_the_ready_crops_have_not_is_left_out_or_refused(ours):
    config = configuration()
    config.augment.rotation_degrees = 10.0
    assert problem.without_chance(config).augment.rotation_degrees == 0
    config.augment.pixel_divisor = 58.0
    with pytest.raises(UserError, match=r'augment\.pixel_divisor = .* compare and time with'):
        problem.Plain(config, ours[0])


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
    with pytest.raises(UserError, match=r'on a CPU set training\.batch_size'):
        step.sweep(configuration())
    asked = []

    def measure(config, against):
        if config.training.batch_size > 2048:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
        asked.append((config.model.dtype, config.training.batch_size, against))
        return {'mfu': len(asked)}

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(step, 'measure', measure)
    result = step.sweep(configuration(), against='torch')
    sizes = [(128, 'torch'), (1024, 'torch'), (2048, '')]
    assert asked == [(dtype, *size) for dtype in ('float32', 'bfloat16') for size in sizes]
    assert result['bfloat16_128_mfu'] == 4
    monkeypatch.setattr(step, 'measure', lambda config, against: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.sweep(configuration())
