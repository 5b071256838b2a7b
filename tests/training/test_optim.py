"""The update rule and the schedules against plain Python loops, optax.sgd and torch.optim.SGD."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import serialization

from alexnet_jax.runtime.config import make
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.optim import OptimConfig, make_optimizer, require_no_rise
from alexnet_jax.training.plan import Plan
from configs import alexnet

PLAN = Plan(num_examples=100, batch_size=8, total_steps=100, eval_every_epochs=1.0)
RATE, MOMENTUM, DECAY = 0.01, 0.9, 0.0005  # Paper 5
STEPS, DROP = 30, 12


def section(**fields):
    """Return the section `optim` of configs/alexnet.py with some fields changed."""
    config = alexnet.get_config().optim
    config.update(fields)
    return make(OptimConfig, config.to_dict())


def optimizer(**fields):
    return make_optimizer(section(**fields), PLAN)


# The update rule, on a quadratic whose gradients depend on the weights.


CURVATURE = np.diag([30.0, 3.0, 0.3]) + 0.1
NOISE = np.random.default_rng(0).standard_normal((STEPS, 3))
START = np.asarray([1.0, -2.0, 300.0])  # the last is large enough for the decay to show


def gradient(weights, step):
    return CURVATURE @ weights + NOISE[step]


def rates(step):
    return RATE if step < DROP else RATE / 10


def paper_path(rate=rates):
    """v <- 0.9 v - 0.0005 lr w - lr g; w <- w + v, element by element."""
    weights, velocity, path = START.copy(), np.zeros(3), []
    for step in range(STEPS):
        g, lr = gradient(weights, step), rate(step)
        for i in range(3):
            velocity[i] = MOMENTUM * velocity[i] - DECAY * lr * weights[i] - lr * g[i]
        weights = weights + velocity
        path.append(weights.copy())
    return np.asarray(path)


def layer(values):
    """Return the weights of a layer of two weights and a bias: Paper 5 decays all of them."""
    return {'conv1': {'kernel': jnp.asarray(values[:2]), 'bias': jnp.asarray(values[2:])}}


def same_rates(rate):
    return {'conv1': {'kernel': rate, 'bias': rate}}


def optax_path(transformation, **extra):
    """Return the weights after each step of an optax transformation."""
    weights, path = layer(START), [START]
    state = transformation.init(weights)
    for step in range(STEPS):
        arguments = {name: function(step) for name, function in extra.items()}
        gradients = layer(gradient(path[-1], step))
        updates, state = transformation.update(gradients, state, weights, **arguments)
        weights = typing.cast(dict, optax.apply_updates(weights, updates))
        path.append(np.concatenate([weights['conv1']['kernel'], weights['conv1']['bias']]))
    return np.asarray(path[1:])


def test_update_rule_is_the_papers_across_a_drop(x64):
    ours = optimizer(schedule='steps', milestone_epochs=(DROP / 12.5,))  # 12.5 steps an epoch
    plateau = ours.init_plateau()
    rate = [ours.learning_rate(jnp.int32(step), plateau) for step in range(STEPS)]
    np.testing.assert_allclose(rate, [rates(step) for step in range(STEPS)], rtol=1e-6)
    path = optax_path(ours.rule, learning_rates=lambda step: same_rates(rate[step]))
    want = paper_path(lambda step: float(rate[step]))  # the rate is float32, all else float64
    np.testing.assert_allclose(path, want, rtol=1e-12)


def assert_departs_at_the_drop(path):
    """Assert that a path is the paper's before the learning rate drops and not from there on."""
    paper = paper_path()
    np.testing.assert_allclose(path[:DROP], paper[:DROP], rtol=1e-6)
    moved, paper_moved = path[DROP] - path[DROP - 1], paper[DROP] - paper[DROP - 1]
    # The old velocity keeps its rate in the paper, and is divided by ten where the rate is outside.
    assert np.all(np.abs(paper_moved) > 5 * np.abs(moved))
    assert np.all(np.abs(path[-1] - paper[-1]) > 1e-3 * np.abs(paper[-1]))


def test_optax_sgd_departs_from_the_paper_at_the_drop(x64):
    def schedule(step):
        return jnp.where(step < DROP, RATE, RATE / 10)

    sgd = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(schedule, momentum=MOMENTUM))
    assert_departs_at_the_drop(optax_path(sgd))


def test_torch_sgd_departs_from_the_paper_at_the_drop():
    weights = torch.from_numpy(START.copy()).requires_grad_()
    sgd = torch.optim.SGD([weights], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    path = []
    for step in range(STEPS):
        sgd.param_groups[0]['lr'] = rates(step)
        weights.grad = torch.from_numpy(gradient(weights.detach().numpy(), step))
        sgd.step()
        path.append(weights.detach().numpy().copy())
    assert_departs_at_the_drop(np.asarray(path))


def test_nesterov_is_torchs(x64):
    weights = torch.from_numpy(START.copy()).requires_grad_()
    sgd = torch.optim.SGD([weights], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    want = []
    for step in range(STEPS):
        sgd.param_groups[0]['lr'] = rates(step)
        weights.grad = torch.from_numpy(gradient(weights.detach().numpy(), step))
        sgd.step()
        want.append(weights.detach().numpy().copy())
    ours = optimizer(nesterov=True, rate_inside_velocity=False)
    got = optax_path(ours.rule, learning_rates=lambda step: same_rates(np.float64(rates(step))))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_nesterov_with_the_rate_inside_the_velocity(x64):
    """v <- m v - lr u; w <- w + m v - lr u, where u is the gradient with its decay."""
    weights, velocity, want = START.copy(), np.zeros(3), []
    for step in range(STEPS):
        u = gradient(weights, step) + DECAY * weights
        velocity = MOMENTUM * velocity - rates(step) * u
        weights = weights + MOMENTUM * velocity - rates(step) * u
        want.append(weights)
    ours = optimizer(nesterov=True)
    got = optax_path(ours.rule, learning_rates=lambda step: same_rates(np.float64(rates(step))))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_float32_and_float64_weights_keep_their_types(x64):
    rule = optimizer().rule
    for dtype in (jnp.float32, jnp.float64):
        weights = layer(jnp.ones(3, dtype))
        updates, state = rule.update(
            weights, rule.init(weights), weights, learning_rates=same_rates(jnp.float32(RATE))
        )
        assert {leaf.dtype for leaf in jax.tree.leaves((updates, state))} == {jnp.dtype(dtype)}


# Schedules.


def test_stepwise_schedule_drops_at_the_first_step_of_each_epoch():
    ours = optimizer(schedule='steps', milestone_epochs=(0.5, 2.0, 2.4), drop_factor=0.1)
    drops = [7, 25, 30]  # 100 examples in batches of 8: 6.25 -> 7, 25, 30
    rate = jax.jit(ours.learning_rate)
    for step in range(40):
        want = RATE * 0.1 ** sum(step >= drop for drop in drops)
        np.testing.assert_allclose(rate(jnp.int32(step), ours.init_plateau()), want, rtol=1e-6)


@pytest.mark.parametrize('schedule', ['constant', 'steps'])
def test_other_schedules_ignore_evaluations(schedule):
    ours = optimizer(schedule=schedule, plateau_patience=1, milestone_epochs=(2.0,))
    state = ours.init_plateau()
    for error in (0.5, 0.9, 0.9, 0.9):
        state = ours.after_evaluation(state, error)
    np.testing.assert_allclose(ours.learning_rate(jnp.int32(24), state), RATE, rtol=1e-6)
    # The epochs of drops belong to 'steps' alone.
    late = RATE / 10 if schedule == 'steps' else RATE
    np.testing.assert_allclose(ours.learning_rate(jnp.int32(25), state), late, rtol=1e-6)


def plateau_rates(errors, *, patience, gain, drops, factor=0.1):
    """Yield the rate after each evaluation: it falls when `patience` in a row brought no gain."""
    rate, best, waited = RATE, np.inf, 0
    for error in errors:
        if error < best - gain:
            best, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            waited = 0
            if drops > 0:
                rate, drops = rate * factor, drops - 1
        yield rate


def follow(ours, errors, state=None):
    """Return the rates after each evaluation, and the last state."""
    state, rate = ours.init_plateau() if state is None else state, []
    for error in errors:
        state = ours.after_evaluation(state, error)
        rate.append(float(ours.learning_rate(jnp.int32(10**6), state)))
    return rate, state


def test_plateau_divides_by_ten_after_the_evaluations_in_a_row_without_a_gain():
    errors = [0.9, 0.8, 0.8, 0.9, 0.7995, 0.79, 0.79, 0.7895, 0.7985, 0.7, 0.8, 0.8, 0.8, 0.6]
    #              ^ best                 ^ a gain; 0.7995 was none           three without: drop
    rate, _ = follow(optimizer(plateau_patience=3, plateau_min_delta=0.001), errors)
    # Three after 0.8 (0.8, 0.9 and 0.7995 gain less than 0.001), three after 0.79, three after 0.7.
    want = [RATE] * 4 + [RATE / 10] * 4 + [RATE / 100] * 4 + [RATE / 1000] * 2
    np.testing.assert_allclose(rate, want, rtol=1e-6)


@pytest.mark.parametrize(
    ('patience', 'gain', 'drops', 'factor'),
    [(5, 0.001, 3, 0.1), (2, 0.004, 3, 0.1), (3, 0.0, 2, 0.5), (1, 0.001, 0, 0.1)],
)
def test_plateau_is_the_rule_on_a_long_run(patience, gain, drops, factor):
    rng = np.random.default_rng(1)
    errors = 0.4 + 0.5 * np.exp(-np.arange(80) / 12) + rng.normal(0, 0.003, 80)
    errors[40:44] = errors[40]  # equal errors are no gain, not even where any gain will do
    ours = optimizer(
        plateau_patience=patience,
        plateau_min_delta=gain,
        plateau_max_drops=drops,
        drop_factor=factor,
    )
    rate, _ = follow(ours, errors)
    want = list(plateau_rates(errors, patience=patience, gain=gain, drops=drops, factor=factor))
    np.testing.assert_allclose(rate, want, rtol=1e-6)
    assert len(set(want)) == drops + 1, 'the run reaches every drop'


def test_a_resumed_run_may_lower_the_patience():
    fields = {'schedule': 'plateau', 'plateau_min_delta': 0.01}
    patient = optimizer(**fields, plateau_patience=5)
    state = patient.init_plateau()
    for _ in range(5):  # one gain over nothing, four without
        state = patient.after_evaluation(state, 0.5)
    assert float(state.scale) == 1.0
    state = optimizer(**fields, plateau_patience=2).after_evaluation(state, 0.5)
    assert float(state.scale) == pytest.approx(0.1)


def dropped(ours, drops):
    """Return the plateau rule's state after so many drops, with patience 1."""
    return follow(ours, [0.5] * (drops + 1))[1]


@pytest.mark.parametrize(
    'changes',
    [
        {'plateau_max_drops': 1},
        {'plateau_max_drops': 0},
        {'drop_factor': 0.5},
        {'drop_factor': 0.9, 'plateau_max_drops': 1},
        {'plateau_patience': 3},
        {'plateau_min_delta': 0.2},
    ],
)
def test_no_change_of_the_plateau_rule_raises_the_rate(changes):
    fields = {'schedule': 'plateau', 'plateau_patience': 1, 'plateau_min_delta': 0.01}
    before = optimizer(**fields)
    state = dropped(before, 2)
    lowest = float(before.learning_rate(jnp.int32(0), state))
    assert lowest == pytest.approx(RATE / 100)
    rates_after, _ = follow(
        optimizer(**{**fields, **changes}), [0.5, 0.4, 0.1, 0.5, 0.5, 0.5], state
    )
    assert np.all(np.diff([lowest, *rates_after]) <= 0)


def resume(before, drops=0, step=30, **changes):
    """Resume a run at a step with other fields."""
    fields = {'drop_factor': 0.1, 'schedule': 'steps', 'milestone_epochs': (1.0, 2.0), **before}
    saved = section(**fields)
    state = dropped(optimizer(**fields), drops)
    now = section(**{**fields, **changes})
    require_no_rise(dataclasses.asdict(saved), now, PLAN, step, state)


COSINE = {'schedule': 'cosine', 'milestone_epochs': ()}
PLATEAU = {'schedule': 'plateau', 'plateau_patience': 1, 'milestone_epochs': ()}


@pytest.mark.parametrize(
    ('before', 'drops', 'changes', 'words'),
    [
        ({}, 0, {'drop_factor': 0.5}, 'drop_factor = 0.5, which was 0.1, would raise'),
        ({}, 0, {'milestone_epochs': (1.0, 9.0)}, r'milestone_epochs = \(1.0, 9.0\), which was'),
        ({}, 0, {'schedule': 'constant'}, "schedule = 'constant', which was 'steps', would raise"),
        (COSINE, 0, {'schedule': 'constant'}, "schedule = 'constant', which was 'cosine', would"),
        (COSINE, 0, {'warmup_epochs': 2.0}, 'warmup_epochs = 2.0, which was 0.0, would raise'),
        (PLATEAU, 2, {'schedule': 'constant'}, "schedule = 'constant', which was 'plateau', would"),
        ({}, 0, PLATEAU, "schedule = 'plateau', which was 'steps', would raise"),
    ],
)
def test_a_resume_that_would_raise_the_rate_is_refused(before, drops, changes, words):
    with pytest.raises(UserError, match=words) as error:
        resume(before, drops, **changes)
    assert '\n' not in str(error.value)
    resume(before, drops, **changes, learning_rate=RATE / 50)  # the user sets the rate
    resume(before, drops, **changes, events=((2.0, 'all', RATE),))


@pytest.mark.parametrize(
    ('before', 'drops', 'changes'),
    [
        ({}, 0, {}),
        ({}, 0, {'drop_factor': 0.05}),
        ({}, 0, {'milestone_epochs': (1.0, 2.0, 3.0)}),
        ({}, 0, {'warmup_epochs': 0.5}),
        ({'warmup_epochs': 9.0}, 0, {'warmup_epochs': 0.0}),
        (PLATEAU, 2, {'plateau_max_drops': 1}),
        (PLATEAU, 2, {'drop_factor': 0.5}),
        (PLATEAU, 0, {'schedule': 'constant'}),
        ({}, 0, {'weight_decay': 0.1}),
    ],
)
def test_any_other_change_of_the_schedule_is_taken(before, drops, changes):
    resume(before, drops, **changes)


def test_cosine_falls_from_the_warm_up_to_the_end():
    ours = optimizer(schedule='cosine', warmup_epochs=0.8)  # 10 of 100 steps
    for step in range(101):
        want = RATE * (step + 1) / 10
        if step >= 10:
            want = RATE * (1 + np.cos(np.pi * (step - 10) / 90)) / 2
        got = ours.learning_rate(jnp.int32(step), ours.init_plateau())
        assert float(got) == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_a_warm_up_that_leaves_nothing_for_the_cosine_is_refused():
    optimizer(schedule='cosine', warmup_epochs=7.9)
    with pytest.raises(
        UserError, match=r'warmup_epochs = 8\.0 are 100 of 100 steps and leave none'
    ):
        optimizer(schedule='cosine', warmup_epochs=8.0)


def test_another_schedule_is_not_scaled_by_the_plateau_rule_before_it():
    plateau = optimizer(schedule='plateau', plateau_patience=1, learning_rate=0.01)
    state = plateau.init_plateau()
    for _ in range(3):
        state = plateau.after_evaluation(state, 0.5)
    assert float(plateau.learning_rate(jnp.int32(0), state)) == pytest.approx(1e-4)
    constant = optimizer(schedule='constant', plateau_patience=1, learning_rate=0.01)
    assert float(constant.learning_rate(jnp.int32(0), state)) == pytest.approx(1e-2)


def test_plateau_without_a_least_gain_needs_some_gain():
    errors = [0.5, 0.5, 0.49999, 0.49999, 0.49999, 0.4]
    rate, _ = follow(optimizer(plateau_patience=2, plateau_min_delta=0.0), errors)
    np.testing.assert_allclose(rate, [RATE] * 4 + [RATE / 10] * 2, rtol=1e-6)


def test_plateau_drops_three_times_at_most():
    rate, _ = follow(optimizer(plateau_patience=2), [0.5] * 40)
    want = [RATE / 10 ** min(3, (i // 2)) for i in range(40)]
    np.testing.assert_allclose(rate, want, rtol=1e-6)


def test_plateau_state_survives_a_checkpoint():
    ours = optimizer(plateau_patience=3)
    errors = [0.9, 0.8, 0.8, 0.81, 0.8, 0.79, 0.8, 0.8, 0.8, 0.8]
    whole, _ = follow(ours, errors)
    assert len(set(whole)) > 1
    for cut in range(len(errors)):
        _, state = follow(ours, errors[:cut])
        saved = jax.tree.map(np.asarray, serialization.to_state_dict(state))
        restored = serialization.from_state_dict(ours.init_plateau(), saved)
        assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)
        rest, _ = follow(ours, errors[cut:], restored)
        assert rest == whole[cut:]
