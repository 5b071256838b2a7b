"""Rates of single layers, events, warm-up, LARS and decay against loops, the log and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.runtime.config import make
from alexnet_jax.training.optim import OptimConfig, make_optimizer
from alexnet_jax.training.plan import Plan, make_plan
from configs import alexnet, krizhevsky_2010, krizhevsky_2012
from tests.typed_config import typed

PLAN = Plan(num_examples=100, batch_size=10, total_steps=1000, eval_every_epochs=1.0)
SHAPES = {'conv1': {'kernel': (2, 3), 'bias': (3,)}, 'fc8': {'kernel': (3, 2), 'bias': (2,)}}
STEPS, DROP = 30, 12


def optimizer(**fields):
    section = alexnet.get_config().optim
    section.update({'schedule': 'constant', **fields})
    return make_optimizer(make(OptimConfig, section.to_dict()), PLAN)


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        layer: {kind: rng.standard_normal(shape) for kind, shape in kinds.items()}
        for layer, kinds in SHAPES.items()
    }


def rates(ours, step):
    return jax.device_get(ours.learning_rates(jnp.int32(step), ours.init_plateau(), draw(0)))


def step_of(ours):
    @jax.jit
    def step(weights, state, gradients, number):
        updates, state = ours.rule.update(
            gradients,
            state,
            weights,
            learning_rates=ours.learning_rates(number, ours.init_plateau(), weights),
            sum_over_mesh=lambda numbers: numbers,
        )
        return optax.apply_updates(weights, updates), state

    return step


def path(ours):
    """Return the weights after each step on gradients that depend on the weights."""
    step, weights, out = step_of(ours), draw(1), []
    state = ours.rule.init(weights)
    for number in range(STEPS):
        gradients = jax.tree.map(lambda w, noise: 3 * w + noise, weights, draw(100 + number))
        weights, state = step(weights, state, gradients, jnp.int32(number))
        out.append(jax.device_get(weights))
    return out


def slow_path(rate, *, inside=True, decay=lambda layer, kind: 0.0005, trust=0.0):
    """Do it leaf by leaf: u = g + decay w; u <- trust |w| / |u| u; and the velocity."""
    weights, out = draw(1), []
    velocity = jax.tree.map(np.zeros_like, weights)
    for number in range(STEPS):
        noise = draw(100 + number)
        for layer, kinds in weights.items():
            for kind, w in kinds.items():
                u = 3 * w + noise[layer][kind] + decay(layer, kind) * w
                if trust and kind == 'kernel':
                    u = u * trust * np.sqrt(np.sum(w**2)) / np.sqrt(np.sum(u**2))
                lr, v = rate(number, layer, kind), velocity[layer][kind]
                v = 0.9 * v - lr * u if inside else 0.9 * v + u
                velocity[layer][kind] = v
                weights[layer][kind] = w + (v if inside else -lr * v)
        out.append(jax.tree.map(np.copy, weights))
    return out


def assert_same_path(got, want):
    for a, b in zip(got, want, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


def dropping(number, layer, kind):
    return 0.01 if number < DROP else 0.001


@pytest.mark.parametrize('inside', [True, False])
def test_the_rate_inside_or_outside_the_velocity_over_a_drop(x64, inside):
    ours = optimizer(schedule='steps', milestone_epochs=(DROP / 10,), rate_inside_velocity=inside)
    assert_same_path(path(ours), slow_path(dropping, inside=inside))
    other = slow_path(dropping, inside=not inside)
    assert np.abs(other[DROP]['fc8']['kernel'] - path(ours)[DROP]['fc8']['kernel']).max() > 1e-3


def test_decay_of_kernels_alone(x64):
    ours = optimizer(weight_decay_multipliers=(('bias', 0.0), ('fc8', 30.0)), weight_decay=0.1)
    factor = {'conv1': 1.0, 'fc8': 30.0}
    want = slow_path(
        lambda *_: 0.01, decay=lambda layer, kind: 0.1 * factor[layer] * (kind == 'kernel')
    )
    assert_same_path(path(ours), want)


def test_lars_is_its_formula_and_optax_s(x64):
    ours = optimizer(lars_trust_coefficient=0.01)
    got = path(ours)
    assert_same_path(got, slow_path(lambda *_: 0.01, trust=0.01))
    lars = optax.lars(
        0.01,
        weight_decay=0.0005,
        trust_coefficient=0.01,
        momentum=0.9,
        trust_ratio_mask=lambda tree: {x: {'kernel': True, 'bias': False} for x in tree},
    )
    weights = draw(1)
    state = lars.init(weights)
    for number in range(STEPS):
        gradients = jax.tree.map(lambda w, noise: 3 * w + noise, weights, draw(100 + number))
        updates, state = lars.update(gradients, state, weights)
        weights = optax.apply_updates(weights, updates)
    assert_same_path([jax.device_get(weights)], got[-1:])


def test_lars_leaves_what_has_no_norm_as_it_is():
    ours = optimizer(lars_trust_coefficient=0.01, weight_decay=0.0)
    for weights, gradients in [(jnp.zeros, jnp.ones), (jnp.ones, jnp.zeros)]:
        weights, gradients = (
            jax.tree.map(lambda x, f=f: f(x.shape), draw(0)) for f in (weights, gradients)
        )
        after, _ = step_of(ours)(weights, ours.rule.init(weights), gradients, jnp.int32(0))
        want = jax.tree.map(lambda w, g: w - 0.01 * g, weights, gradients)
        jax.tree.map(np.testing.assert_allclose, after, want)


def test_factors_of_layers_kinds_and_single_parameters_multiply():
    ours = optimizer(lr_multipliers=(('bias', 2.0), ('conv1', 0.5), ('conv1.bias', 0.1)))
    want = {'conv1': {'kernel': 0.005, 'bias': 0.001}, 'fc8': {'kernel': 0.01, 'bias': 0.02}}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rates(ours, 0), want)


def test_rates_rise_in_the_warm_up_and_follow_the_batch():
    ours = optimizer(
        warmup_epochs=0.75, reference_batch=2, events=((0.5, 'fc8', 0.004), (3, 'all', 0.02))
    )
    for step in (0, 1, 4, 5, 7, 8, 29, 30, 50):
        ramp = min(1.0, (step + 1) / 8)
        conv1 = 5 * ramp * (0.01 if step < 30 else 0.02)
        fc8 = conv1 if step < 5 else 5 * ramp * 0.004
        got = rates(ours, step)
        assert got['conv1']['kernel'] == pytest.approx(conv1, rel=1e-6)
        assert got['fc8']['bias'] == pytest.approx(fc8, rel=1e-6)
        common = ours.learning_rate(jnp.int32(step), ours.init_plateau())
        assert float(common) == got['conv1']['kernel']


def test_an_event_stands_over_the_plateau_rule():
    ours = optimizer(schedule='plateau', plateau_patience=1, events=((2, 'fc8', 0.5),))
    plateau = ours.init_plateau()
    for error in (0.5, 0.5, 0.5):
        plateau = ours.after_evaluation(plateau, error)
    for step, fc8 in ((19, 1e-4), (20, 0.5)):
        got = ours.learning_rates(jnp.int32(step), plateau, draw(0))
        assert float(got['conv1']['kernel']) == pytest.approx(1e-4)
        assert float(got['fc8']['kernel']) == pytest.approx(fc8)


# 2012 source, layers/layer-params-*.cfg: (epoch, conv1's rate, the other layers').
LOG_145 = [
    (0, 1e-2, 1e-2),
    (25, 1e-3, 1e-3),
    (51, 1e-4, 1e-4),
    (67, 1e-5, 1e-4),
    (72, 0.0, 1e-4),
    (79, 0.0, 1e-5),
]


def replay(config, log, stop):
    """Assert each layer's rate at both sides of each boundary of the log."""
    config = typed(config)
    plan = make_plan(config.training, config.data.train_examples)
    ours = make_optimizer(config.optim, plan)
    assert config.training.total_epochs == stop
    params = {x: {'kernel': 0, 'bias': 0} for x in ('conv1', 'conv2', 'conv5', 'fc6', 'fc8')}
    ends = [epoch for epoch, *_ in log[1:]] + [stop]
    for (start, conv1, others), end in zip(log, ends, strict=True):
        for step in (plan.first_step(start), plan.first_step(end) - 1):
            got = ours.learning_rates(jnp.int32(step), ours.init_plateau(), params)
            for layer, kinds in got.items():
                want = conv1 if layer == 'conv1' else others
                assert float(kinds['kernel']) == pytest.approx(want, rel=1e-6), (layer, step)
                assert float(kinds['bias']) == pytest.approx(2 * want, rel=1e-6), (layer, step)


def test_the_log_of_run_145_is_replayed():
    replay(krizhevsky_2012.get_config(), LOG_145, stop=91)
    assert krizhevsky_2012.get_config().augment.colour_epochs == 67


def test_the_log_of_the_2010_run_is_replayed():
    config = krizhevsky_2010.get_config()
    epochs = dict(zip([0, 25, 51, 67, 72, 79], [0, 23, 51, 68, 72, 78], strict=True))
    replay(config, [(epochs[epoch], *rest) for epoch, *rest in LOG_145], stop=93)
    assert config.augment.colour_epochs == 68
