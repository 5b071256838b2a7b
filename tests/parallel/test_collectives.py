"""Collectives stand only where the paper says, as few as the scheme needs, also once compiled."""

import importlib
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from alexnet_jax.benchmarks import communication
from alexnet_jax.reports import paper
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config
from configs import alexnet, tiny
from tests.parallel.tiny_run import Run
from tests.typed_config import typed

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'communication.json'
REGENERATE = 'python -m tests.parallel.test_collectives'
TWO_TOWERS = [(2, *mesh) for mesh in [(2, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8)]]
ONE_TOWER = [(1, *mesh) for mesh in [(2, 1), (1, 2), (1, 4)]]
MESHES = TWO_TOWERS + ONE_TOWER


def _config(towers: int, base: Any = alexnet, changes: Mapping[str, Any] = {}) -> Config:
    """Return a configuration of so many towers, with other values of the fields in `changes`."""
    config = base.get_config()
    config.update_from_flattened_dict({'model.towers': towers, **changes})
    return typed(config)


def _golden(towers: int, data: int, model: int) -> dict[str, list[int]]:
    """Return count and bytes of the paper's network at batch 128 by 'axis layer part kind'."""
    table = communication.of_step(_config(towers), data, model)
    return {' '.join(key): [sent.count, sent.bytes] for key, sent in sorted(table.items())}


def _name(towers: int, data: int, model: int) -> str:
    return f'towers {towers}, data {data}, model {model}'


@pytest.mark.parametrize(('towers', 'data', 'model'), MESHES)
def test_the_paper_s_network_sends_what_it_sent(towers, data, model):
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == len(MESHES)
    assert _golden(towers, data, model) == golden[_name(towers, data, model)], (
        f'the step sends something else than {GOLDEN.name} says; if it should: {REGENERATE}'
    )


@pytest.mark.parametrize(('towers', 'data', 'model'), MESHES)
def test_the_golden_numbers_are_the_least_that_the_scheme_needs(towers, data, model):
    golden = json.loads(GOLDEN.read_text())[_name(towers, data, model)]
    least = communication.least(_config(towers), data, model)
    assert {' '.join(key): [sent.count, sent.bytes] for key, sent in least.items()} == golden
    over_tower = {key.layer for key in least if 'tower' in key.axis and key.part != 'gradients'}
    assert over_tower - {'images'} == (set(paper.EXCHANGES) if towers == 2 <= model else set())


def test_golden_numbers_by_the_paper_s_table():
    """One tower on each of two devices at batch 128: float32 maps from Fig. 2, 256 x 256 images."""
    golden = json.loads(GOLDEN.read_text())[_name(2, 1, 2)]
    values = {layer: 128 * math.prod(shape) for layer, shape in paper.POOLED.items()}
    conv3_input = 4 * 128 * math.prod(paper.POOLED['pool2'][:2]) * 256
    assert golden == {
        'tower images - all_gather': [1, 128 * 256 * 256 * 3],
        'tower conv3 forward all_gather': [1, conv3_input],
        'tower conv3 backward reduce_scatter': [1, conv3_input],
        'tower fc6 forward all_gather': [1, 4 * values['pool5']],
        'tower fc6 backward reduce_scatter': [1, 4 * values['pool5']],
        'tower fc7 forward all_gather': [1, 4 * 128 * 4096],
        'tower fc7 backward reduce_scatter': [1, 4 * 128 * 4096],
        'tower fc8 forward psum': [1, 4 * 128 * 1000],
        'tower fc8 gradients psum': [1, 4 * 1000],  # its bias, which both devices have
    }
    golden = json.loads(GOLDEN.read_text())[_name(2, 2, 1)]
    gradients = {key: sent for key, sent in golden.items() if key != 'data metrics - psum'}
    assert set(gradients) == {f'data {layer} gradients psum' for layer in paper.LAYERS}
    assert sum(size for _, size in gradients.values()) == 4 * paper.TOTAL_PARAMETERS


@pytest.mark.parametrize(
    'changes',
    [
        {'model.dtype': 'bfloat16'},
        {'model.num_classes': 7},
        {'model.conv6.features': 8},
        {'model.conv1.after': ('bn', 'activation', 'pool'), 'model.dtype': 'bfloat16'},
    ],
)
def test_other_networks_send_the_least_too(changes):
    config = _config(2, tiny, {'training.accumulation_steps': 2, **changes})
    traced = communication.of_step(config, 1, 4)
    assert traced == communication.least(config, 1, 4)
    conv3 = traced[communication.Key('tower', 'conv3', 'forward', 'all_gather')]
    float_bytes = 2 if config.model.dtype == 'bfloat16' else 4
    # Two halves of 16 rows, shared by two shards; 2 x 2 positions of 8 maps.
    assert conv3 == (2, 16 // 2 * 2 * 2 * 8 * float_bytes, 16 // 2 * 2 * 2 * 8 * float_bytes / 2)


@pytest.mark.parametrize(('data', 'model'), [(2, 2), (2, 4)])
def test_pmap_sends_what_shard_map_sends(data, model):
    run = Run(2, data, model, 'float32', backend='pmap')
    step, sizes = run.train_step(), run.mesh.shape
    stacked = jax.eval_shape(step.put_on, run.state, run.batch, run.statistics)
    assert communication.in_jaxpr(jax.make_jaxpr(step.step)(*stacked).jaxpr, sizes) == (
        communication.of_step(_config(2, tiny), data, model)
    )


def test_a_mesh_larger_than_any_machine():
    batch = dict.fromkeys(('training.batch_size', 'evaluation.batch_size'), 2**17)
    config = _config(2, changes={'parallel.data': 8192, 'parallel.model': 8, **batch})
    result = communication.measure(config)
    assert result['mesh'] == 'data 8192 x tower 2 x shard 4'
    assert result['data/sent_bytes'] == result['data/least_bytes'] > 0
    assert {row['axis'] for row in result['rows']} == {'data', 'tower', 'shard', 'tower x shard'}
    assert all(row['sent_bytes'] == row['least_bytes'] for row in result['rows'])


@pytest.mark.parametrize(
    ('field', 'value'),
    [('data.image_shape', ()), ('data.train_examples', 0), ('model.num_classes', 0)],
)
def test_sizes_of_the_data_must_be_known(field, value):
    config = _config(2, changes={field: value})
    with pytest.raises(
        UserError, match=f'config.{field} must be set here, as no data set is opened'
    ):
        communication.of_step(config, 1, 2)


BYTES = {'f32': 4, 's32': 4, 'u8': 1, 'pred': 1}
KINDS = {'all-gather': 'all_gather', 'reduce-scatter': 'reduce_scatter', 'all-reduce': 'psum'}


def _compiled(text: str, sizes: dict[str, int]) -> Iterator[tuple[str, str, str, int]]:
    """Yield kind, axes, scopes and bytes of every collective in the text of a compiled program."""
    kinds = 'all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute|\\S*broadcast'
    for line in text.splitlines():
        match = re.search(
            rf' = (\S+|\(.*?\)) ({kinds})(?:-start)?\(.*replica_groups=(.*?\}}),(?!\{{)', line
        )
        if not match:
            assert not re.search(rf'({kinds})(-start)?\(.*replica_groups', line), line
            continue
        shapes, kind, groups = match.groups()
        axes = _axes(groups, sizes)
        size = sum(
            BYTES[dtype] * math.prod(int(n) for n in shape.split(',') if n)
            for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
        )
        size *= math.prod(sizes[axis] for axis in axes) if kind == 'reduce-scatter' else 1
        scopes = re.search(r'op_name="([^"]*)"', line)
        yield KINDS.get(kind, kind), ' x '.join(axes), scopes.group(1) if scopes else '', size


def _axes(groups: str, sizes: dict[str, int]) -> list[str]:
    """Return the axes of more than one device: jax 0.12 names them where 0.10 lists the devices."""
    if groups.startswith('mesh'):
        named = re.findall(r"'(\w+)'", groups.partition(']')[2])
        return [axis for axis, size in sizes.items() if axis in named and size > 1]
    group = [int(d) for d in groups.strip('{}').split('},{')[0].split(',')]
    places = np.array(np.unravel_index(group, tuple(sizes.values())))
    return [axis for axis, place in zip(sizes, places, strict=True) if np.ptp(place)]


@pytest.mark.parametrize(
    ('groups', 'axes'),
    [
        ('{{0,2},{1,3}}', 'data'),
        ('{{0,1,2,3}}', 'data x tower'),
        ("mesh['data'=2,'tower'=2,'shard'=1] {'data'}", 'data'),
        ("mesh['data'=2,'tower'=2,'shard'=1] {'data','tower'}", 'data x tower'),
    ],
)
def test_the_parser_of_compiled_programs_reads_tuples(groups, axes):
    line = (
        '  %x = (f32[4]{0}, /*index=1*/f32[3,2]{1,0}) all-reduce(%a, %b), channel_id=1, '
        f'replica_groups={groups}, use_global_device_ids=true, metadata={{op_name="a/psum"}}'
    )
    sizes = {'data': 2, 'tower': 2, 'shard': 1}
    assert list(_compiled(line, sizes)) == [('psum', axes, 'a/psum', 40)]


@pytest.mark.parametrize(
    ('data', 'model', 'backend'), [(2, 4, 'shard_map'), (1, 2, 'shard_map'), (2, 2, 'pmap')]
)
def test_the_compiled_step_sends_no_more(data, model, backend):
    """XLA adds none of its own: what a grouped convolution under automatic partitioning does."""
    run = Run(2, data, model, 'float32', backend=backend)
    sizes = dict(run.mesh.shape)
    lowered = run.train_step().lower(run.state, run.batch, run.statistics)
    found = list(_compiled(lowered.compile().as_text(), sizes))
    totals: dict[tuple[str, str], int] = {}
    for kind, axes, scopes, size in found:
        totals[kind, axes] = totals.get((kind, axes), 0) + size
        if 'tower' in axes:
            assert re.search(r'/images/|/conv3/|/fc[678]/', scopes), scopes
            assert not re.search(r'conv[1245]', scopes), scopes
    written: dict[tuple[str, str], int] = {}
    for key, sent in communication.of_step(_config(2, tiny), data, model).items():
        written[key.kind, key.axis] = written.get((key.kind, key.axis), 0) + sent.bytes
    assert totals == written


@pytest.mark.parametrize('field', ['conv3.local', 'lrn.across_towers'])
def test_layers_of_the_2012_source_send_the_least_too(field):
    config = _config(2, tiny, {f'model.{field}': True})
    traced = communication.of_step(config, 2, 4)
    assert traced == communication.least(config, 2, 4)
    assert traced != communication.of_step(_config(2, tiny), 2, 4)


@pytest.mark.parametrize(
    ('name', 'data', 'model'),
    [
        ('no_overlap', 2, 4),  # pooling that keeps incomplete squares
        ('separate_towers', 1, 2),
        ('separate_towers', 1, 4),
        ('no_conv3', 2, 2),
        ('torchvision', 1, 4),
        ('caffenet', 1, 2),  # the norm stands behind the pooling
        ('cifar10_13pct', 2, 1),  # neither fc6 nor fc7
    ],
)
def test_every_kind_of_configuration_sends_the_least(name, data, model):
    config = typed(importlib.import_module(f'configs.{name}').get_config())
    traced = communication.of_step(config, data, model)
    assert traced == communication.least(config, data, model)
    weights = sum(sent.bytes for key, sent in traced.items() if key.axis == 'data')
    assert (weights > 0) == (data > 1)


@pytest.mark.parametrize(('fc6', 'fc7', 'model'), [(0, 0, 2), (0, 16, 4), (16, 0, 4)])
def test_without_a_fully_connected_layer_too(fc6, fc7, model):
    config = _config(2, tiny, {'model.fc6.features': fc6, 'model.fc7.features': fc7})
    assert communication.of_step(config, 2, model) == communication.least(config, 2, model)


def test_lars_adds_norms_of_what_is_split():
    before = communication.of_step(_config(2, tiny), 2, 4)
    config = _config(2, tiny, {'optim.lars_trust_coefficient': 0.001})
    traced, least = (f(config, 2, 4) for f in (communication.of_step, communication.least))
    norms = {key for key in traced if key.part == 'norms'}
    assert {key: sent for key, sent in traced.items() if key not in norms} == before
    assert norms == least.keys() - before.keys()
    # Those of the biases are in the step as written, used for nothing: XLA drops them.
    assert all(traced[key].count in (2, 4) and least[key] == (2, 8, least[key][2]) for key in norms)


def test_one_tower_or_one_device_does_not_communicate():
    assert not communication.of_step(_config(2, tiny), 1, 1)
    assert {key.axis for key in communication.of_step(_config(2, tiny), 2, 1)} == {'data'}


if __name__ == '__main__':
    GOLDEN.parent.mkdir(exist_ok=True)
    numbers = {_name(*mesh): _golden(*mesh) for mesh in MESHES}
    # One collective a line: what has changed shows in a diff.
    text = json.dumps(numbers, indent=1)
    GOLDEN.write_text(re.sub(r'\[\s+(\d+),\s+(\d+)\s+\]', r'[\1, \2]', text) + '\n')
