"""Checkpoints: any mesh restores them, damage is found, nothing is lost or cast in silence."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import resource
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax import __version__
from alexnet_jax.checkpoint import manifest, pretrained
from alexnet_jax.checkpoint.checkpoints import CheckpointConfig, Checkpoints
from alexnet_jax.checkpoint.manifest import parameters_sha256
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.optim import make_optimizer
from alexnet_jax.training.plan import make_plan
from alexnet_jax.training.step import TrainState
from configs import tiny
from tests import reference
from tests.typed_config import typed

TINY = typed(tiny.get_config())
OPTIMIZER = make_optimizer(TINY.optim, make_plan(TINY.training, num_examples=1437))
SPECS = {'conv': {'kernel': P(None, 'tower')}, 'fc': {'kernel': P(('tower', 'shard'))}}
META = {'config': {'seed': 0, 'model': {}, 'optim': {}}, 'data': {'name': 'digits'}}


def _state(step: int = 3) -> TrainState:
    random = np.random.default_rng(step)
    params = {
        'conv': {'kernel': random.normal(size=(3, 4)).astype(np.float32)},
        'fc': {'kernel': random.normal(size=(8, 2)).astype(np.float32)},
    }
    trace = jax.tree.map(lambda w: w + 1, params)
    opt_state = OPTIMIZER.rule.init(params)
    opt_state = (*opt_state[:-1], optax.TraceState(trace))
    plateau = OPTIMIZER.after_evaluation(OPTIMIZER.init_plateau(), 0.25)
    return TrainState(
        step=jnp.int32(step), params=params, opt_state=opt_state, plateau=jax.device_get(plateau)
    )


def _abstract(state: TrainState, data: int = 1, model: int = 1) -> TrainState:
    mesh = mesh_lib.make_mesh(reference.parallel(data=data, model=model), 2)
    specs = jax.tree.map(lambda _: P(), state)
    opt_state = (*specs.opt_state[:-1], optax.TraceState(SPECS))
    specs = specs.replace(params=SPECS, opt_state=opt_state)
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            np.shape(x), np.asarray(x).dtype, sharding=NamedSharding(mesh, spec)
        ),
        state,
        specs,
    )


def _open(workdir: Any, **fields: int) -> Checkpoints:
    section = {'save_every_steps': 1, 'keep_latest': 2, 'keep_best': 1, **fields}
    return Checkpoints(epath.Path(workdir), CheckpointConfig(**section))


def _read(workdir: Any) -> Checkpoints:
    return Checkpoints(epath.Path(workdir))


def _save(workdir: Any, *steps: int) -> None:
    with _open(workdir, keep_latest=9) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step), META)


def _assert_equal(got: TrainState, want: TrainState) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def test_any_mesh_restores_what_another_saved(tmp_path):
    state = _state()
    placed = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, _abstract(state, 2, 2))
    with _open(tmp_path) as checkpoints:
        checkpoints.save(3, placed, META, {'eval/top1_error': 0.5})
    for data, model in ((1, 1), (2, 1), (1, 2), (1, 4), (2, 4)):
        seen = []
        with _open(tmp_path) as checkpoints:
            restored = checkpoints.restore(_abstract(state, data, model), seen.append)
        assert restored is not None
        assert seen == [META]
        assert (restored.step, restored.evaluated, restored.meta) == (3, True, META)
        _assert_equal(restored.state, state)
        kernel = restored.state.params['fc']['kernel']
        assert kernel.sharding.shard_shape(kernel.shape) == (8 // model, 2)


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    state = jax.tree.map(jnp.asarray, _state())
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    want = jax.device_get(state)
    with _open(tmp_path) as checkpoints:
        checkpoints.save(3, state, META)
        double(state)
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
    assert restored is not None
    assert not restored.evaluated
    _assert_equal(restored.state, want)


def test_keeps_the_latest_and_the_best_across_restarts(tmp_path):
    errors = {1: 0.5, 2: 0.1, 3: 0.4, 4: None, 5: 0.1, 6: 0.3, 7: None, 8: 0.2}
    for step, error in errors.items():
        with _open(tmp_path) as checkpoints:
            metrics = None if error is None else {'eval/top1_error': error}
            checkpoints.save(step, _state(step), META, metrics)
    kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
    assert kept in ([2, 7, 8], [5, 7, 8])  # two of the smallest error: either one
    with _open(tmp_path) as checkpoints:
        latest = checkpoints.restore(_abstract(_state()), lambda meta: None)
        assert checkpoints.find('best') == (kept[0], META)
        best, others = checkpoints.restore_network(kept[0], _abstract(_state()).params)
    assert latest is not None
    assert latest.step == 8
    assert not others
    jax.tree.map(np.testing.assert_array_equal, best, _state(kept[0]).params)


def test_manifest_lists_every_file_with_its_sha256(tmp_path):
    _save(tmp_path, 1)
    step = tmp_path / 'checkpoints' / '1'
    manifest = json.loads((step / 'manifest.json').read_text())['files']
    files = {str(p.relative_to(step)) for p in step.rglob('*') if p.is_file()} - {'manifest.json'}
    assert set(manifest) == files
    for name in files:
        assert manifest[name] == hashlib.sha256((step / name).read_bytes()).hexdigest()


def _largest_file(step: pathlib.Path) -> pathlib.Path:
    files = [p for p in (step / 'state').rglob('*') if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def _flip_a_bit(step: pathlib.Path) -> None:
    file = _largest_file(step)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def _truncate(step: pathlib.Path) -> None:
    file = _largest_file(step)
    file.write_bytes(file.read_bytes()[:-5])


def _remove(step: pathlib.Path) -> None:
    _largest_file(step).unlink()


def _spoil_manifest(step: pathlib.Path) -> None:
    (step / 'manifest.json').write_text('{"files": ')


def _remove_manifest(step: pathlib.Path) -> None:
    (step / 'manifest.json').unlink()


DAMAGES = [_flip_a_bit, _truncate, _remove, _spoil_manifest]


@pytest.mark.fault
@pytest.mark.parametrize('damage', [*DAMAGES, _remove_manifest])
def test_damage_falls_back_to_the_step_before(tmp_path, caplog, damage):
    _save(tmp_path, 1, 2)
    damage(tmp_path / 'checkpoints' / '2')
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
        assert restored is not None
        assert restored.step == 1
        _assert_equal(restored.state, _state(1))
        assert 'checkpoint 2 is not used' in caplog.text
        assert (tmp_path / 'checkpoints' / '2').exists()  # only looked at
    with _open(tmp_path) as checkpoints:
        checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True)
        assert (tmp_path / 'damaged' / '2-1').exists()
        checkpoints.save(2, _state(2), META)  # the step is done again
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
    assert restored is not None
    _assert_equal(restored.state, _state(2))


@pytest.mark.fault
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_run_never_starts_anew_over_damaged_checkpoints(tmp_path, damage):
    _save(tmp_path, 1, 2)
    for step in ('1', '2'):
        damage(tmp_path / 'checkpoints' / step)
    for _ in range(2):  # the second start finds it no different
        with (
            _open(tmp_path) as checkpoints,
            pytest.raises(UserError, match=r'no checkpoint .* is sound') as error,
        ):
            checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True)
        assert '\n' not in str(error.value)


@pytest.mark.fault
def test_manifests_that_are_gone_are_damage_but_for_the_newest(tmp_path):
    _save(tmp_path, 1, 2)
    for step in ('1', '2'):
        _remove_manifest(tmp_path / 'checkpoints' / step)
    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match='is sound: 2: its save'):
        checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True)
    assert not (tmp_path / 'damaged').exists()


@pytest.mark.fault
@pytest.mark.parametrize('at', ['before the save', 'before the seal', 'after the seal'])
def test_a_kill_while_a_step_is_saved_again_with_its_evaluation_loses_nothing(tmp_path, at):
    """The step before its evaluation is kept until the same step is sealed once more."""
    _save(tmp_path, 2)
    step, old = tmp_path / 'checkpoints' / '2', tmp_path / 'superseded' / '2'
    old.parent.mkdir()
    if at == 'before the save':
        step.rename(old)
    else:
        shutil.copytree(step, old)
        if at == 'before the seal':
            _remove_manifest(step)
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state(2)), lambda meta: None, set_aside=True)
    assert restored is not None
    assert restored.step == 2
    _assert_equal(restored.state, _state(2))
    assert not old.parent.exists()


@pytest.mark.fault
def test_the_error_that_ended_the_run_is_not_hidden_by_a_failing_save(tmp_path, caplog):
    with pytest.raises(UserError, match='the first'), _open(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), META)
        checkpoints._manager.check_for_errors = _no_space
        raise UserError('the first')
    assert 'No space left' in caplog.text


@pytest.mark.fault
def test_a_failing_save_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r'cannot write .*No space left') as error,
        _open(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, _state(1), META)
        checkpoints._manager.check_for_errors = _no_space
    assert '\n' not in str(error.value)


def _no_space():
    raise OSError(28, 'No space left on device')


def test_the_best_of_none_is_an_error(tmp_path):
    _save(tmp_path, 1)
    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match='none is the best'):
        checkpoints.find('best')


@pytest.mark.fault
def test_an_unfinished_first_save_counts_as_none(tmp_path):
    _save(tmp_path, 1)
    _remove_manifest(tmp_path / 'checkpoints' / '1')
    with _open(tmp_path) as checkpoints:
        assert checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True) is None
    assert (tmp_path / 'damaged' / '1-1').exists()


@pytest.mark.fault
@pytest.mark.parametrize(
    ('which', 'words'), [('best', 'the best checkpoint, 1, in'), ('1', 'checkpoint 1 in')]
)
def test_one_that_was_asked_for_and_is_not_finished_does_not_count_as_none(tmp_path, which, words):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), META, {'eval/top1_error': 0.1})
        checkpoints.save(2, _state(2), META, {'eval/top1_error': 0.2})
    _remove_manifest(tmp_path / 'checkpoints' / '1')
    with (
        _read(tmp_path) as checkpoints,
        pytest.raises(UserError, match=f'^{words} .* is not sound: its save was not finished'),
    ):
        checkpoints.find(which)


def test_a_place_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    _save(tmp_path / 'run', 1, 2)
    for place, step in (('~/run', 2), ('~/run/checkpoints/1', 1)):
        with pretrained.read_only(epath.Path(place)) as (_, found, meta):
            assert (found, meta) == (step, META)


def test_the_whole_network_or_none_of_it(tmp_path):
    """What an evaluation restores: parameters alone, whatever optimizer they were trained by."""
    _save(tmp_path, 1)

    def restore(wanted: Any) -> Any:
        with _read(tmp_path) as checkpoints:
            return pretrained.restore_network(wanted, checkpoints, 1, tmp_path)

    jax.tree.map(
        np.testing.assert_array_equal,
        restore(_abstract(_state(), 2, 4).params),
        _state(1).params,
    )
    words = r'1 in .* is of another network: conv.kernel is float32\[3, 4\] there, float32\[3, 5'
    with pytest.raises(UserError, match=words):
        restore(_change('kernel', shape=(3, 5)).params)


def _change(leaf: str, **fields: Any) -> TrainState:
    """Return the abstract state with another conv kernel, or without one."""
    abstract = _abstract(_state())
    kernel = abstract.params['conv']['kernel']
    changed = jax.ShapeDtypeStruct(
        fields.get('shape', kernel.shape),
        fields.get('dtype', kernel.dtype),
        sharding=kernel.sharding,
    )
    conv = {} if 'absent' in fields else {leaf: changed}
    return abstract.replace(params={**abstract.params, 'conv': conv})


@pytest.mark.parametrize(
    ('abstract', 'words'),
    [
        (
            lambda: _change('kernel', shape=(3, 5)),
            r'params.conv.kernel is float32\[3, 4\] there and',
        ),
        (lambda: _change('kernel', dtype=jnp.bfloat16), r'and bfloat16\[3, 4\] here'),
        (lambda: _change('kernel', absent=True), r'float32\[3, 4\] there and absent here'),
        (lambda: _change('weights'), 'params.conv.kernel is .* absent here'),
    ],
)
def test_another_state_is_refused_by_the_name_of_the_leaf(tmp_path, abstract, words):
    _save(tmp_path, 1)
    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match=words) as error:
        checkpoints.restore(abstract(), lambda meta: None)
    assert '\n' not in str(error.value)


def test_a_refused_run_is_not_restored(tmp_path):
    _save(tmp_path, 1)

    def refuse(meta):
        raise UserError(f'seed {meta["config"]["seed"]}')

    with _open(tmp_path) as checkpoints, pytest.raises(UserError, match='seed 0'):
        checkpoints.restore(_abstract(_state()), refuse)


def test_a_reader_leaves_a_running_save_alone(tmp_path):
    _save(tmp_path, 1)
    under_way = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    under_way.mkdir()
    with _read(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
    assert restored is not None
    assert restored.step == 1
    assert under_way.exists()
    with _open(tmp_path) as checkpoints:  # the next training clears away what a kill left
        checkpoints.save(3, _state(3), META)
    assert not under_way.exists()


def test_a_step_saved_before_its_evaluation_is_saved_again_with_it(tmp_path):
    for metrics in (None, {'eval/top1_error': 0.5}, {'eval/top1_error': 0.1}):
        with _open(tmp_path) as checkpoints:
            checkpoints.save(1, _state(1), META, metrics)
            restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
        assert restored is None or restored.evaluated == (metrics is not None)
    path = tmp_path / 'checkpoints' / '1' / 'metrics' / 'metrics'
    assert json.loads(path.read_text()) == {'eval/top1_error': 0.5}


def test_no_checkpoint_is_none(tmp_path):
    with _open(tmp_path) as checkpoints:
        assert checkpoints.restore(_abstract(_state()), lambda meta: None) is None


def test_due(tmp_path):
    with _open(tmp_path, save_every_steps=3) as checkpoints:
        assert [step for step in range(1, 10) if checkpoints.due(step)] == [3, 6, 9]
    with _open(tmp_path, save_every_steps=0) as checkpoints:
        assert not any(checkpoints.due(step) for step in range(1, 10))


def test_sha256_sees_values_names_and_dtypes():
    params = _state().params
    digest = parameters_sha256(params)
    assert digest == parameters_sha256(jax.tree.map(jnp.asarray, params))
    renamed = {'conv': params['conv'], 'fd': params['fc']}
    nudged = jax.tree.map(lambda x: np.nextafter(x, np.float32(9)), params)
    wider = jax.tree.map(lambda x: x.astype(np.float64), params)
    others = [parameters_sha256(p) for p in (renamed, nudged, wider)]
    assert len({digest, *others}) == 4


NAMES = [
    'lr[0.1]',
    '[!a]',
    'a*b?c',
    '**',
    'back\\slash',
    'q\'uo"te {a,b} %41 #|:@$;&',
    'é\n~',
    'file:x',
]


@pytest.mark.parametrize('name', NAMES)
def test_any_name_that_the_file_system_allows(tmp_path, name):
    for workdir in (tmp_path / name, tmp_path / name / 'below'):
        _save(workdir, 1, 2)
        with _open(workdir) as checkpoints:
            restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
            assert restored is not None
            _assert_equal(restored.state, _state(2))
        with pretrained.read_only(epath.Path(workdir)) as (checkpoints, step, _):
            params, others = checkpoints.restore_network(step, _abstract(_state()).params)
        assert not others
        jax.tree.map(np.testing.assert_array_equal, params, _state(2).params)
    assert os.listdir(tmp_path) == [name], 'and nothing is written anywhere else'


@pytest.mark.fault
def test_a_step_that_is_not_complete_is_not_sealed(tmp_path, monkeypatch):
    """Orbax takes the path for a pattern, finds none of its arrays, and commits the step."""
    workdir = tmp_path / 'lr[0.1]'
    _save(workdir, 1)
    monkeypatch.setattr(storage, 'literal', contextlib.nullcontext)
    with pytest.raises(UserError, match='cannot write a checkpoint to') as error:
        _save(workdir, 2)
    assert '\n' not in str(error.value)
    assert os.listdir(workdir / 'checkpoints') == ['1']


@pytest.mark.fault
def test_a_step_that_an_earlier_release_sealed_too_early_is_one_line(tmp_path):
    _save(tmp_path, 1)
    step = tmp_path / 'checkpoints' / '1'
    (step / 'state' / 'manifest.ocdbt').unlink()
    manifest.write_manifest(epath.Path(step))
    with (
        _open(tmp_path) as checkpoints,
        pytest.raises(UserError, match='1 is not complete') as error,
    ):
        checkpoints.restore(_abstract(_state()), lambda meta: None)
    assert '\n' not in str(error.value)


@pytest.mark.fault
def test_a_commit_that_never_comes_is_an_error(tmp_path):
    with (
        pytest.raises(UserError, match='Orbax has not committed step 1'),
        _open(tmp_path) as saving,
    ):
        saving._manager.save = lambda *args, **kwargs: True
        saving.save(1, _state(1), META)


JUNK = [
    '.DS_Store',
    'state/._x',
    '@eaDir/x',
    'meta/.nfs0001',
    'Thumbs.db',
    'state/d/desktop.ini',
    'a~',
]
BESIDE = ['.DS_Store', '@eaDir/x', '.ipynb_checkpoints/x', '12 (copy)/x', '012/x', '7']


def _litter(directory: pathlib.Path, names: list[str]) -> None:
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text('x')


@pytest.mark.fault
def test_junk_is_named_counted_and_left_alone(tmp_path, caplog):
    with _open(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), META, {'eval/top1_error': 0.5})
        checkpoints.save(2, _state(2), META)
    steps = tmp_path / 'checkpoints'
    _litter(steps / '2', [*JUNK, 'metrics/metrics'])  # as if step 2 had been evaluated
    _litter(steps, BESIDE)
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True)
        assert restored is not None
        assert (restored.step, restored.evaluated) == (2, False)
        _assert_equal(restored.state, _state(2))
        assert (
            f'in {steps}, what does not belong to a checkpoint is left alone (6): ' in caplog.text
        )
        assert f'left alone ({len(JUNK) + 1}): .DS_Store, @eaDir/x, Thumbs.db, ...' in caplog.text
        checkpoints.save(3, _state(3), META)
    assert (steps / '12 (copy)' / 'x').exists()
    assert not (tmp_path / 'damaged').exists()


def test_junk_that_is_there_when_a_step_is_sealed_may_go(tmp_path):
    _save(tmp_path, 1)
    step = epath.Path(tmp_path / 'checkpoints' / '1')
    _litter(pathlib.Path(step), ['.DS_Store', '@eaDir/x'])
    manifest.write_manifest(step)
    (step / '.DS_Store').unlink()
    shutil.rmtree(step / '@eaDir')
    assert manifest.find_damage(step) is None


@pytest.mark.fault
@pytest.mark.parametrize('content', [b'', b'\xff', b'5', b'{"eval/top1_erroq": 0.1}', None])
def test_damaged_metrics_are_found_and_never_choose_the_best(tmp_path, content):
    with _open(tmp_path, keep_latest=9) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), META, {'eval/top1_error': step / 10})
    path = tmp_path / 'checkpoints' / '1' / 'metrics' / 'metrics'
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with _open(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r'checkpoint 1 in .* may be the best, but is not'):
            checkpoints.find('best')
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
        assert restored is not None
        assert restored.step == 2
        checkpoints.save(3, _state(3), META, {'eval/top1_error': 0.3})


@contextlib.contextmanager
def largest_file(size: int):
    """Let this process write no file of more than `size` bytes: an error of the kernel's own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault
def test_a_save_that_does_not_fit_ends_in_one_line_and_leaves_nothing_behind(tmp_path):
    _save(tmp_path, 1)
    large = {'w': np.random.default_rng(0).normal(size=2**16)}
    with pytest.raises(UserError) as error, _open(tmp_path) as checkpoints, largest_file(2**16):
        checkpoints.save(2, large, META)
        checkpoints.wait()
    assert str(error.value) == (
        f'cannot write a checkpoint to {tmp_path}/checkpoints (File too large); raise the '
        'limit on the size of a file (ulimit -f), then run the same command again'
    )
    assert os.listdir(tmp_path / 'checkpoints') == ['1']
    with _open(tmp_path) as checkpoints:  # and the next start goes on
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=True)
        assert restored is not None
        _assert_equal(restored.state, _state(1))
        checkpoints.save(2, _state(2), META)
    assert manifest.find_damage(epath.Path(tmp_path / 'checkpoints' / '2')) is None


@pytest.mark.fault
@pytest.mark.parametrize(
    ('number', 'remedy'),
    [
        (errno.ENOSPC, 'free some space there'),
        (errno.EDQUOT, 'free some of your quota'),
        (errno.EROFS, 'mount the file system'),
        (errno.EIO, 'have the disk looked at'),
        (errno.EACCES, 'change its permissions'),
    ],
)
def test_a_manifest_that_cannot_be_written(tmp_path, monkeypatch, number, remedy):
    _save(tmp_path, 1)

    def fail(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(storage, 'replace', fail)
    words = rf'cannot write .*checkpoints \({os.strerror(number)}\); {remedy}'
    with pytest.raises(UserError, match=words), _open(tmp_path) as checkpoints:
        checkpoints.save(2, _state(2), META)
    assert os.listdir(tmp_path / 'checkpoints') == ['1']


@pytest.mark.fault
@pytest.mark.parametrize('instead', ['nothing', 'another'])
def test_a_workdir_that_is_deleted_or_replaced_under_a_run(tmp_path, instead):
    workdir = tmp_path / 'run'
    with (
        pytest.raises(UserError, match='was deleted, replaced or unmounted'),
        _open(workdir) as run,
    ):
        run.save(1, _state(1), META)
        run.wait()
        workdir.rename(tmp_path / 'away')
        if instead == 'another':
            (workdir / 'checkpoints').mkdir(parents=True)
        run.save(2, _state(2), META)
    assert not list(workdir.rglob('2*'))


@pytest.mark.fault
def test_a_later_format_is_refused_by_the_release_that_wrote_it(tmp_path):
    _save(tmp_path, 1, 2)
    path = tmp_path / 'checkpoints' / '2' / 'manifest.json'
    content = json.loads(path.read_text())
    assert (content['format'], content['version']) == (1, __version__)
    path.write_text(json.dumps({**content, 'format': 2, 'version': '9.1'}))
    words = rf'2 has format 2, written by alexnet_jax 9\.1; this is {__version__}, which reads'
    for set_aside in (False, True):
        with _open(tmp_path) as checkpoints, pytest.raises(UserError, match=words) as error:
            checkpoints.restore(_abstract(_state()), lambda meta: None, set_aside=set_aside)
        assert '\n' not in str(error.value)
    path.write_text(json.dumps({**content, 'format': 3}))  # a flipped bit: this release has no 3
    with _open(tmp_path) as checkpoints:
        restored = checkpoints.restore(_abstract(_state()), lambda meta: None)
    assert restored is not None
    assert restored.step == 1


@pytest.mark.fault
@pytest.mark.parametrize('deletions', [1, 9])
def test_a_step_that_a_training_deletes_while_it_is_read(tmp_path, caplog, deletions):
    """Between the choice of a step and its restoration the training goes on."""
    _save(tmp_path, 1)
    looks = []

    def use(checkpoints, step, meta):
        looks.append(step)
        if len(looks) <= deletions:
            _save(tmp_path, step + 1)
            shutil.rmtree(tmp_path / 'checkpoints' / str(step))
        return pretrained.restore_network(_abstract(_state()).params, checkpoints, step, tmp_path)

    if deletions == 1:
        params = pretrained.read(epath.Path(tmp_path), 'latest', use)
        jax.tree.map(np.testing.assert_array_equal, params, _state(2).params)
        assert looks == [1, 2]
        assert 'was deleted while it was read; looking again' in caplog.text
    else:
        with pytest.raises(UserError, match='were deleted while they were read; run the') as error:
            pretrained.read(epath.Path(tmp_path), 'latest', use)
        assert looks == [1, 2, 3, 4, 5]
        assert '\n' not in str(error.value)


def test_an_error_of_another_cause_is_raised_at_once(tmp_path):
    _save(tmp_path, 1)
    looks = []

    def use(checkpoints, step, meta):
        looks.append(step)
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        pretrained.read(epath.Path(tmp_path), 'latest', use)
    assert looks == [1]
