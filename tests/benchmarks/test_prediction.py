"""The prediction: its times against sums by hand; `test_communication` has its bytes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.benchmarks import prediction
from alexnet_jax.benchmarks.prediction import Assumptions
from alexnet_jax.reports import paper
from alexnet_jax.runtime.errors import UserError
from configs import alexnet
from tests.typed_config import typed

ROOT = Path(__file__).resolve().parents[2]
PAPER = typed(alexnet.get_config())


SIMPLE = Assumptions(
    devices=(4, 16),
    images_per_device=10,
    peak_tflops=100.0,
    mfu=0.5,
    devices_per_node=4,
    link_gb_s=100.0,
    network_gb_s=10.0,
    latency_us=0.0,
    device_hour=3.0,
)


def test_data_parallel_times_by_hand():
    got = prediction.predict(PAPER, SIMPLE)
    arithmetic = 4.135610496e9 * 10 / 50e12
    weights = paper.TOTAL_PARAMETERS * 4
    # In a node of 4 a ring: 2 x 3/4 of the weights. Between 4 nodes 2 x 3/4 of a device's quarter.
    node = 1.5 * weights / 100e9
    nodes = 1.5 * weights / 4 / 10e9
    for devices, gradients in ((4, node), (16, node + nodes)):
        row = {
            k.split('/')[-1]: v for k, v in got.items() if k.startswith(f'data_parallel/{devices}/')
        }
        step = arithmetic + gradients
        steps = 90 * 1_281_167 / (10 * devices)
        assert row['arithmetic_ms'] == pytest.approx(1e3 * arithmetic)
        assert row['gradients_ms'] == pytest.approx(1e3 * gradients)
        assert row['activations_ms'] == row['images_ms'] == 0
        assert row['step_ms'] == pytest.approx(1e3 * step)
        assert row['efficiency'] == pytest.approx(arithmetic / step)
        assert row['images_per_second'] == pytest.approx(10 * devices / step)
        assert row['input_gb_s_per_node'] == pytest.approx(40 / step * 196_608 / 1e9)
        assert row['cost'] == pytest.approx(steps * step / 3600 * devices * 3.0)
        assert row['sent_mb'] == pytest.approx(2 * (devices - 1) / devices * weights / 1e6)
    assert got['kind'].startswith('PREDICTED')


def test_two_towers_and_one_weird_trick_by_hand():
    got = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(8,)))
    parameters = {name: layer.parameters for name, layer in paper.LAYERS.items()}
    dense = sum(parameters[name] for name in ('fc6', 'fc7', 'fc8')) - 1000
    convolutions = sum(parameters.values()) - dense - 1000
    # Two towers, 4 copies: half of all weights, of which a device's half goes to the other node.
    half = 4 * ((dense + convolutions) / 2 + 1000)
    gradients = half / 100e9 + half / 2 / 10e9  # 2 x 1/2 each
    gradients += 4 * 1000 / 100e9  # the bias of fc8
    assert got['two_towers/8/gradients_ms'] == pytest.approx(1e3 * gradients)
    # 20 rows of a copy: gathered forward, scattered backward, half of it sent each time.
    floats = 20 * (13 * 13 * 256 + 6 * 6 * 256 + 4096)
    activations = 2 * 0.5 * floats * 4 / 100e9 + 20 * 1000 * 4 / 100e9
    assert got['two_towers/8/activations_ms'] == pytest.approx(1e3 * activations)
    assert got['two_towers/8/images_ms'] == pytest.approx(1e3 * 0.5 * 20 * 196_608 / 100e9)

    # One weird trick on 8 devices is one copy: two towers, each on four shards. Nodes of 8 here.
    got = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(8,), devices_per_node=8))
    sent = 1.5 * 4 * convolutions / 2 + 1.75 * 4 * 1000  # summed over 4 shards; over all 8
    assert got['one_weird_trick/8/gradients_ms'] == pytest.approx(1e3 * sent / 100e9)
    towers = 2 * 0.5 * 20 * (13 * 13 * 256 + 6 * 6 * 256)  # 20 rows on each shard
    shards = 2 * 0.75 * 80 * 6 * 6 * 256
    everywhere = 2 * 0.875 * 80 * 4096 + 1.75 * 80 * 1000
    sent = 4 * (towers + shards + everywhere)
    assert got['one_weird_trick/8/activations_ms'] == pytest.approx(1e3 * sent / 100e9)


def test_latency_and_overlap():
    plain = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(16,)))
    late = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(16,), latency_us=5.0))
    key = 'data_parallel/16/gradients_ms'
    assert late[key] - plain[key] == pytest.approx(2 * 4 * 5e-3)
    hidden = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(4,), overlap=1.0))
    shown = prediction.predict(PAPER, dataclasses.replace(SIMPLE, devices=(4,)))
    key, arithmetic = 'data_parallel/4/gradients_ms', shown['data_parallel/4/arithmetic_ms']
    # No more can hide than there is arithmetic to hide behind.
    assert shown[key] > arithmetic
    assert hidden[key] == pytest.approx(shown[key] - arithmetic)


@pytest.mark.parametrize(
    'assumed', [Assumptions(), dataclasses.replace(SIMPLE, images_per_device=0, devices=(4,))]
)
def test_where_it_stops_paying(assumed):
    values = alexnet.get_config()
    values.training.batch_size = 1024
    config = typed(values)
    got = prediction.predict(config, assumed)
    for layout in ('data_parallel', 'two_towers', 'one_weird_trick'):
        last = got[f'{layout}/pays_up_to']
        rows = prediction.predict(config, dataclasses.replace(assumed, devices=(last, 2 * last)))
        assert rows[f'{layout}/{last}/efficiency'] >= 0.5 > rows[f'{layout}/{2 * last}/efficiency']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['speed=3'], 'the name must be one of devices, '),
        (['mfu=fast'], "'fast' is not a number"),
        (['mfu'], "'' is not a number"),
        (['link_gb_s=0'], 'link_gb_s=0: 0.0 is too small; it must be above 0'),
        (['devices=8+0'], '0 is too small'),
        (['overlap=-1', 'mfu=0.1'], '-1.0 is too small; it must be at least 0'),
    ],
)
def test_a_wrong_assumption_is_named(words, message):
    with pytest.raises(UserError, match=message.replace('(', r'\(')):
        Assumptions.parse(words)


def test_a_batch_that_does_not_divide_is_refused():
    assumed = Assumptions.parse(['devices=8+512', 'images_per_device=0'])
    assert assumed.devices == (8, 512)
    with pytest.raises(UserError, match='devices=12 must be 1, 2, 4 or a multiple of 8'):
        prediction.predict(PAPER, Assumptions(devices=(12,)))
    with pytest.raises(UserError, match='128 images do not divide evenly over 512 devices'):
        prediction.predict(PAPER, assumed)


def test_the_command():
    arguments = ['--json', '--assume=devices=8,mfu=0.2', '--config.model.dtype=bfloat16']
    run = subprocess.run(
        [sys.executable, '-m', 'alexnet_jax.benchmark', 'prediction', *arguments],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result['assumed/mfu'], result['assumed/devices']) == (0.2, [8])
    assert math.isclose(
        result['data_parallel/8/arithmetic_ms'], 4.135610496e9 * 128 / 989e12 / 0.2 * 1e3
    )
