"""Collectives stand only where the paper says, in the step as written and as compiled."""

import collections
import re
from typing import Any

import jax

from alexnet_jax import paper
from tests.parallel.tiny_run import Run


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from _equations(inner)


def _collectives(run: Run) -> collections.Counter:
    """Count (layer, primitive, axes, backward or forward) in the traced training step."""
    traced = jax.make_jaxpr(run.train_step())(run.state, run.batch, run.statistics)
    counts: collections.Counter = collections.Counter()
    for equation in _equations(traced.jaxpr):
        axes = equation.params.get('axes') or equation.params.get('axis_name')
        if equation.primitive.name in ('axis_index', 'pvary') or not axes or axes == ():
            continue
        axes = axes if isinstance(axes, tuple) else (axes,)
        axes = tuple(axis for axis in axes if isinstance(axis, str))
        if not axes:
            continue
        stack = str(equation.source_info.name_stack)
        layer = re.search(r'(conv|fc)\d', stack)
        direction = 'backward' if 'transpose' in stack else 'forward'
        name = layer.group() if layer else '-'
        counts[name, equation.primitive.name, axes, direction] += len(equation.invars)
    return counts


def test_towers_meet_only_where_the_paper_says():
    counts = _collectives(Run(2, 2, 2, 'float32'))
    activations = {
        key: count for key, count in counts.items() if key[0] != '-' and 'tower' in key[2]
    }
    assert {key[0] for key in activations} == set(paper.EXCHANGES)
    assert activations == {
        ('conv3', 'all_gather', ('tower',), 'forward'): 1,
        ('fc6', 'all_gather', ('tower',), 'forward'): 1,
        ('fc7', 'all_gather', ('tower',), 'forward'): 1,
        ('fc8', 'psum', ('tower',), 'forward'): 1,
        ('conv3', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc6', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc7', 'reduce_scatter', ('tower',), 'backward'): 1,
        ('fc8', 'psum', ('tower',), 'backward'): 1,
    }
    others = {key: count for key, count in counts.items() if key not in activations}
    leaves = 16  # kernels and biases of 8 layers
    assert others == {
        ('-', 'all_gather', ('tower',), 'forward'): 1,  # the uint8 images
        (
            '-',
            'psum',
            ('tower',),
            'forward',
        ): 1,  # the gradient of fc8's bias, which all devices have
        ('-', 'psum', ('data',), 'forward'): leaves + 2,  # gradients, loss and error
    }


def test_one_tower_or_one_device_does_not_communicate():
    assert not _collectives(Run(2, 1, 1, 'float32'))
    assert {key[2] for key in _collectives(Run(2, 2, 1, 'float32'))} == {('data',)}


def test_compiled_step_has_no_other_collective():
    """XLA adds none of its own: what a grouped convolution under automatic partitioning does."""
    run = Run(2, 1, 2, 'float32')
    text = run.train_step().lower(run.state, run.batch, run.statistics).compile().as_text()
    kinds = re.findall(
        r' = (?:\S+|\(.*?\)) (all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute)'
        r'\(',
        text,
    )
    counts = collections.Counter(kinds)
    assert counts['all-gather'] == 4  # images, conv3, fc6, fc7
    assert counts['all-to-all'] == counts['collective-permute'] == 0
    # fc8 forward and backward, the gradient of its bias, and on the CPU each reduce-scatter may be
    # written as an all-reduce of the same operand.
    assert counts['reduce-scatter'] + counts['all-reduce'] <= 6
    for line in text.splitlines():
        if re.search(r'(all-gather|reduce-scatter|all-reduce)\(', line):
            assert not re.search(r'/conv[1245]/', line), line
