"""Ensembles: errors are NumPy's from the saved outputs, weights SciPy's; what is refused."""

import json
import re

import ml_collections
import numpy as np
import pytest
from etils import epath
from scipy import optimize

from alexnet_jax.checkpoint.pretrained import workdir_of
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import ensemble, loop
from alexnet_jax.training.experiment import build
from configs import tiny
from tests import reference
from tests.typed_config import typed


def _config(data_dir, **training) -> ml_collections.ConfigDict:
    config = tiny.get_config()
    config.data.dir = str(data_dir)
    config.log.tensorboard = False
    config.training.update(total_steps=2, eval_every_epochs=0.0, **training)
    config.optim.schedule = 'constant'
    config.evaluation.batch_size = 64  # 360 = 5 x 64 + 40
    return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Three short runs: another seed, another network, another augmentation and training split."""
    root = tmp_path_factory.mktemp('runs')
    configs = [_config(root / 'data') for _ in range(3)]
    configs[1].seed = 1
    configs[1].model.update(towers=1, dropout=0.25)
    configs[1].model.fc6.features = 24
    configs[2].seed = 2
    configs[2].augment.crop_px = 8
    configs[2].data.update(train_split='train[:50%]', train_examples=0)
    for index, config in enumerate(configs):
        config.optim.learning_rate = 0.02  # so that two steps tell the networks apart
        assert loop.train(build(typed(config)), epath.Path(root / str(index))) == 0
    return root


def _evaluate(runs, directory, capsys, **evaluation):
    config = _config(runs / 'data')
    config.parallel.update(evaluation.pop('parallel', {}))
    config.evaluation.update(ensemble=tuple(str(runs / str(i)) for i in range(3)), **evaluation)
    config.evaluation.ensemble_dir = str(directory)
    capsys.readouterr()
    ensemble.evaluate_ensemble(typed(config))
    return capsys.readouterr().out.splitlines()


def _load(directory, name):
    return np.load(directory / f'{name}.npy', allow_pickle=False)


def _assert_metrics(directory, labels, weights, last_line):
    """Compare with errors by sorting, from the saved outputs."""
    row = json.loads((directory / 'metrics.jsonl').read_text())
    everything = np.ones(len(labels), bool)
    for views in ('', '_10_views'):
        outputs = [_load(directory, f'member_{i}{views}').astype(np.float64) for i in range(3)]
        mixed = np.average(outputs, axis=0, weights=weights)
        for first in (1, 5):
            want = reference.errors(mixed, labels, everything, first) / len(labels)
            assert row[f'eval/top{first}_error{views}'] == want
            assert f'top{first}_error{views} {want:.4f}' in last_line
        if not views:
            loss = -np.mean(np.log(mixed[np.arange(len(labels)), labels]))
            assert row['eval/loss'] == pytest.approx(loss, rel=1e-12)


@pytest.mark.slow
def test_errors_are_those_of_the_mean_of_the_saved_outputs(runs, tmp_path, capsys):
    lines = _evaluate(runs, tmp_path, capsys)
    labels = _load(tmp_path, 'labels')
    assert len(labels) == 360
    _assert_metrics(tmp_path, labels, [1, 1, 1], lines[-1])
    assert lines[-1].startswith('ensemble of 3 by mean top1_error ')
    members = json.loads((tmp_path / 'members.json').read_text())
    capsys.readouterr()
    for index, (member, line) in enumerate(zip(members, lines[:-1], strict=True)):
        # Alone, each member gives what the evaluation of its run gave.
        rows = (runs / str(index) / 'metrics.jsonl').read_text().splitlines()
        own = json.loads(rows[-1])
        words = re.findall(r'(top\S+) (\d\.\d+)', line)
        assert len(words) == 4
        for name, value in words:
            assert float(value) == pytest.approx(own[f'eval/{name}'], abs=6e-5)
        assert member['step'] == 2
        assert member['config']['seed'] == index
        assert member['weight'] == pytest.approx(1 / 3)
        assert member['init_data'] == ''
        assert f'sha256 {member["sha256"]}' in line


@pytest.mark.slow
def test_any_mesh_and_backend_give_the_same(runs, tmp_path, capsys):
    meshes = {
        'a': {'data': 1, 'model': 1},
        'b': {'data': 2, 'model': 4},
        'c': {'data': 1, 'model': 2, 'backend': 'pmap'},
    }
    lines = {n: _evaluate(runs, tmp_path / n, capsys, parallel=m) for n, m in meshes.items()}
    for other in ('b', 'c'):
        assert lines[other] == lines['a']
        for name in ('member_0', 'member_1_10_views'):
            got, want = _load(tmp_path / other, name), _load(tmp_path / 'a', name)
            assert reference.relative_error(got, want) < 1e-5
        np.testing.assert_array_equal(
            _load(tmp_path / other, 'labels'), _load(tmp_path / 'a', 'labels')
        )


@pytest.mark.slow
def test_weights_are_searched_on_another_split(runs, tmp_path, capsys):
    lines = _evaluate(
        runs, tmp_path, capsys, ensemble_weights='search', ensemble_search_split='train[50%:]'
    )
    weights = [member['weight'] for member in json.loads((tmp_path / 'members.json').read_text())]
    labels = _load(tmp_path, 'search_labels')
    assert len(labels) == 719
    given = np.stack(
        [_load(tmp_path, f'search_member_{i}_10_views')[np.arange(719), labels] for i in range(3)]
    ).astype(np.float64)
    assert _loss(given, weights) <= _least_loss(given) + 1e-6
    assert max(weights) - min(weights) > 0.05, 'the data can tell the mean from the search'
    _assert_metrics(tmp_path, _load(tmp_path, 'labels'), weights, lines[-1])


def _loss(given, weights):
    return -np.mean(np.log(np.asarray(weights) @ given))


def _least_loss(given):
    count = len(given)
    found = optimize.minimize(
        lambda w: _loss(given, w),
        np.full(count, 1 / count),
        bounds=[(0, 1)] * count,
        constraints={'type': 'eq', 'fun': lambda w: w.sum() - 1},
        options={'ftol': 1e-12},
    )
    return found.fun


@pytest.mark.parametrize('seed', range(3))
def test_searched_weights_are_the_best_of_the_simplex(seed):
    rng = np.random.default_rng(seed)
    outputs = rng.dirichlet(np.ones(6), size=(4, 200)).astype(np.float32)
    labels = rng.integers(0, 6, 200)
    outputs[1, np.arange(200), labels] *= 3  # better than the others
    outputs[3, np.arange(200), labels] *= 0  # never right, so its weight is 0
    weights = ensemble.search_weights(list(outputs), labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] == pytest.approx(0, abs=1e-9)
    given = np.maximum(outputs[:, np.arange(200), labels].astype(np.float64), 1e-38)
    assert _loss(given, weights) <= _least_loss(given) + 1e-6


def test_a_search_that_takes_too_long_says_how_far_it_got(monkeypatch, caplog):
    monkeypatch.setattr(ensemble, '_MAX_ROUNDS', 3)
    outputs = [np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.5, 0.5], [0.5, 0.5]])]
    weights = ensemble.search_weights(outputs, np.array([0, 0]))
    assert weights.sum() == pytest.approx(1)
    (line,) = caplog.messages
    left = float(re.findall(r'stopped after 3 rounds; .* within (\S+) nats', line)[0])
    given = np.array([[0.9, 0.4], [0.5, 0.5]])
    assert 0 < _loss(given, weights) - _least_loss(given) <= left


def test_the_home_directory_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    config = _config(tmp_path)
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    config.evaluation.ensemble_dir = '~/run'
    with pytest.raises(UserError, match=f'{tmp_path}/run is the workdir of a run'):
        ensemble.evaluate_ensemble(typed(config))
    for place in ('~/run', '~/run/checkpoints/3'):
        assert workdir_of(epath.Path(place)) == epath.Path(tmp_path / 'run')


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_one_line(runs, tmp_path, monkeypatch, capsys):
    predict = ensemble._predict

    def overflowing(*arguments):
        outputs, labels = predict(*arguments)
        outputs[''][3] = np.nan
        return outputs, labels

    monkeypatch.setattr(ensemble, '_predict', overflowing)
    with pytest.raises(UserError, match=rf'the outputs of {runs}/0 are not finite'):
        _evaluate(runs, tmp_path, capsys)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'ensemble': ('0', '0')}, r'0 and .*0 are the same network; name it once'),
        ({'ensemble': ('0', 'none')}, r'no checkpoint in .*none; name the workdir'),
        ({'ensemble': ('0/checkpoints/7',)}, r'no checkpoint in .*0/checkpoints/7'),
        ({'ensemble_search_split': 'test[:10%]'}, r"'test\[:10%\]' shares examples with data"),
        ({'ensemble_search_split': ''}, 'needs examples to search on; for example --config'),
        ({'ensemble_dir': '0'}, r'is the workdir of a run; name another'),
    ],
)
def test_what_is_no_ensemble_is_one_line(runs, change, words):
    config = _config(runs / 'data')
    config.evaluation.final_views = 1
    names = change.get('ensemble', ('0', '1'))
    config.evaluation.ensemble = tuple(str(runs / name) for name in names)
    if 'ensemble_search_split' in change:
        config.evaluation.update(ensemble_weights='search', **change)
    if 'ensemble_dir' in change:
        config.evaluation.ensemble_dir = str(runs / change['ensemble_dir'])
    with pytest.raises(UserError, match=words) as error:
        ensemble.evaluate_ensemble(typed(config))
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_another_data_set_is_refused(runs, monkeypatch):
    config = _config(runs / 'data')
    config.evaluation.ensemble = (str(runs / '0'),)
    read = ensemble.read

    def other(place, which, use):
        return read(place, which, lambda c, step, meta: use(c, step, _of_flowers(meta)))

    def _of_flowers(meta):
        return {**meta, 'data': {**meta['data'], 'train_name': 'flowers/1.0.0'}}

    monkeypatch.setattr(ensemble, 'read', other)
    with pytest.raises(UserError, match=r'was trained on flowers/1\.0\.0, not digits/1\.0\.0'):
        ensemble.evaluate_ensemble(typed(config))
