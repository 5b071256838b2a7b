"""The reports: a claim is measured by finished runs of its very configuration only."""

import dataclasses
import importlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from etils import epath

from alexnet_jax import report
from alexnet_jax.reports import against_baseline, claims, paper
from alexnet_jax.reports.workdirs import Run, read_run
from alexnet_jax.runtime.config import MEANING, fields, flatten
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config
from configs import alexnet, cifar10_13pct, digits, relu_vs_tanh
from tests.reports import saved_run

TOP1 = '1 CNN, ILSVRC-2012 validation: top1 error 10 views'
ONE_CROP = {'eval/loss': 1.8, 'eval/top1_error': 0.43, 'eval/top5_error': 0.2}
ERRORS = {**ONE_CROP, 'eval/top1_error_10_views': 0.41, 'eval/top5_error_10_views': 0.19}


def _write(root, name, fields=None, *, epoch=90.0001, started=None, config=None, **errors):
    """Write the files of a finished run."""
    config = config or alexnet.get_config()
    saved_run.change(config, fields or {})
    first = {'kind': 'event', 'event': 'started', **(started or {})}
    rows = [
        {'step': 0, 'epoch': 0.0, **first},
        {'step': 900, 'epoch': 45.0, 'kind': 'eval', **ERRORS, 'eval/top1_error_10_views': 0.9},
        {'step': 1800, 'epoch': epoch, 'kind': 'train', 'train/loss': 1.0},
        {'step': 1800, 'epoch': epoch, 'kind': 'eval', **{**ERRORS, **errors}},
    ]
    return saved_run.save(root / name, config, rows)


def _report(root):
    return claims.reproduction(epath.Path(root))


def _rows(root):
    return {row['claim']: row for row in _report(root)['rows']}


def _measured(root):
    return {name for name, row in _rows(root).items() if row['status'] == 'measured'}


@pytest.mark.parametrize(
    ('file', 'experiment'),
    [
        ('alexnet', '1 CNN, ILSVRC-2012 validation'),
        ('krizhevsky_2012', '1 CNN, ILSVRC-2012 validation'),
        ('krizhevsky_2010', '1 CNN, ILSVRC-2010 test'),
        ('cnn_star', '1 CNN*, conv6 and pre-trained on the Fall 2011 release'),
        ('one_gpu', 'one GPU, ILSVRC-2010 test'),
        ('no_lrn', 'no response norm'),
        ('no_lrn2', 'no response norm after conv2'),
        ('no_overlap', 'pooling that does not overlap'),
        ('separate_towers', 'towers that never communicate'),
        ('no_colour', 'no colour noise'),
        ('no_conv3', 'no conv3'),
        ('no_conv4', 'no conv4'),
        ('cifar10_13pct', 'four layers on CIFAR-10, no norm'),
        ('cifar10_11pct', 'four layers on CIFAR-10, with norm'),
        ('relu_vs_tanh', 'ReLU, four layers on CIFAR-10'),
        ('cifar10', None),
        ('tanh', None),
        ('no_augmentation', None),
        ('centre_crop', None),
        ('no_weight_decay', None),
        ('one_tower', None),
        ('torchvision', None),
        ('digits', None),
    ],
)
def test_configurations_are_those_of_their_claims_and_of_no_other(file, experiment):
    """The constants of paper.py and the files of configs/, written apart, say the same."""
    config = importlib.import_module(f'configs.{file}').get_config()
    init_data = 'imagenet_fall2011/1.0.0' if file == 'cnn_star' else ''
    epochs = config.training.total_epochs
    run = Run(name='x', fields=flatten(config.to_dict()), step=0, epoch=epochs, init_data=init_data)
    found = [e.name for e in paper.EXPERIMENTS if claims.is_of(e, run)]
    assert found == [experiment] * (experiment is not None)


def test_half_of_a_recipe_is_none(tmp_path):
    _write(tmp_path, 'a', {'augment.images_per_crop': 32})
    _write(tmp_path, 'b', {'optim.lr_multipliers': (('bias', 2.0),)})
    assert not _measured(tmp_path)


def test_every_field_with_a_meaning_has_the_paper_s_value():
    known = fields(Config).items()
    wanted = {
        name
        for name, field in known
        if field.metadata['role'] == MEANING and field.default is dataclasses.MISSING
    }
    assert set(paper.ALEXNET) == wanted
    for experiment in paper.EXPERIMENTS:
        assert set(experiment.fields or {}) <= wanted, experiment.name
        assert (experiment.fields is None) == bool(experiment.note), experiment.name


def _edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_field_is_added_in_two_places(tmp_path):
    """With its `off` value, old runs and the paper's claims need no change."""
    for folder in ('alexnet_jax', 'configs'):
        shutil.copytree(folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
    config = alexnet.get_config()
    _write(tmp_path / 'runs', 'before', {'seed': 1}, config=config)
    _edit(
        tmp_path / 'alexnet_jax/input/augment.py',
        '    mirror: bool = field(boolean)\n',
        '    mirror: bool = field(boolean)\n    blur_px: float = field(number(0.0), off=0.0)\n',
    )
    _edit(tmp_path / 'configs/alexnet.py', "'mirror': True,", "'mirror': True, 'blur_px': 0.0,")
    _write(tmp_path / 'runs', 'off', {'seed': 2, 'augment.blur_px': 0.0})
    _write(tmp_path / 'runs', 'on', {'seed': 3, 'augment.blur_px': 1.5})
    command = (
        'from alexnet_jax import report; report.main(["reproduction", "--runs=runs", "--json"])'
    )
    check = (
        'from alexnet_jax.training.config import Config; from configs import alexnet; '
        'assert Config.from_dict(alexnet.get_config().to_dict()).augment.blur_px == 0.0; '
    )
    done = subprocess.run(
        [sys.executable, '-c', check + command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {tuple(row['runs']) for row in found['rows']} == {(), ('before', 'off')}
    assert {tuple(row['runs']) for row in found['others']} == {('on',)}


def test_figures_of_the_paper():
    """Table 1, Table 2 and the drops of Paper 3, as read in the paper."""
    claims = {(c.experiment, c.metric, c.less or c.times): c for c in paper.CLAIMS}
    assert len(claims) == len(paper.CLAIMS)
    names = {experiment.name for experiment in paper.EXPERIMENTS}
    assert {c.experiment for c in paper.CLAIMS} == names
    one, ten = 'eval/top1_error', 'eval/top1_error_10_views'
    assert claims['1 CNN, ILSVRC-2010 test', ten, ''].paper == 37.5
    assert claims['1 CNN, ILSVRC-2010 test', one, ''].paper == 39.0
    assert claims['7 CNNs*, ILSVRC-2012 validation', ten, ''].paper == 36.7
    for claim in paper.CLAIMS:  # the drops of the author's runs are those of their logs
        if claim.less and claim.run_2012 is not None:
            own = claims[claim.experiment, claim.metric, ''].run_2012
            base = claims[claim.less, claim.metric, ''].run_2012
            assert claim.run_2012 == pytest.approx(own - base, abs=1e-9)
        if claim.run_2012 and claim.paper:  # and they round to the paper's, footnotes apart
            assert claim.run_2012 == pytest.approx(claim.paper, abs=0.051)


def test_a_run_of_the_claim_s_configuration_is_measured(tmp_path):
    _write(tmp_path, 'any name')
    row = _rows(tmp_path)[TOP1]
    assert (row['paper'], row['run_2012']) == (40.7, 40.664)
    assert (row['ours'], row['seeds'], row['status']) == (41.0, 1, 'measured')
    assert row['runs'] == ['any name']
    assert _measured(tmp_path) == {TOP1, TOP1.replace('top1', 'top5')}


def test_the_page_begins_with_what_was_measured(tmp_path, capsys):
    _write(tmp_path, 'any name')
    assert report.main(['reproduction', '--runs', str(tmp_path)]) == 0
    measured, rest = capsys.readouterr().out.split('## Not measured')
    assert f'| {TOP1} | 40.7 | 40.664 | 41.00 | 1 | measured |' in measured.split('## Measured')[1]
    assert TOP1 + ' |' not in rest


def test_seeds_count_once_and_give_the_spread(tmp_path):
    for name, seed, error in (('a', 0, 0.40), ('copy of a', 0, 0.42), ('b', 7, 0.43)):
        _write(tmp_path, name, {'seed': seed}, **{'eval/top1_error_10_views': error})
    row = _rows(tmp_path)[TOP1]
    assert (row['ours'], row['min'], row['max'], row['seeds']) == (42.0, 41.0, 43.0, 2)
    assert row['runs'] == ['a', 'b', 'copy of a']


@pytest.mark.parametrize(
    'fields',
    [
        {'model.towers': 1},
        {'model.conv2.features': 128},
        {'model.conv1.after': ('activation', 'pool'), 'model.lrn.n': 3},
        {'model.conv1.after': ('lrn', 'pool', 'activation')},
        {'model.conv2.after': ('activation', 'lrn', 'map_norm', 'pool')},
        {'model.conv1.pool_window': 2},
        {'model.conv3.local': True},
        {'model.dropout': 0.4},
        {'model.num_classes': 250},
        {'augment.colour_std': 0.2},
        {'data.train_examples': 0},
        {'data.eval_split': 'train'},
        {'data.name': 'imagenet2012_mine'},
        {'optim.weight_decay': 0.0},
        {'training.batch_size': 256},
    ],
    ids=str,
)
def test_another_configuration_is_not_that_of_the_claim(tmp_path, fields):
    _write(tmp_path, '1 CNN, ILSVRC-2012 validation', fields)
    assert not _measured(tmp_path)
    assert len(_report(tmp_path)['others']) == 4


def test_a_field_that_this_version_does_not_know_could_mean_anything(tmp_path):
    directory = _write(tmp_path, 'new')
    config = json.loads((directory / 'config.json').read_text())
    config['model']['shortcut'] = True
    (directory / 'config.json').write_text(json.dumps(config))
    assert not _measured(tmp_path)


def test_a_run_saved_under_the_earlier_names_of_fields_reads_as_one_of_today(tmp_path):
    golden = pathlib.Path(__file__).parents[1] / 'golden' / 'earlier_configs.json'
    config = digits.get_config()
    config.parallel.heartbeat_timeout_s, config.training.watchdog_slow_s = 20, 18_000  # then
    today, before = (_write(tmp_path, name, config=config) for name in ('today', 'before'))
    (before / 'config.json').write_text(json.dumps(json.loads(golden.read_text())['digits']))
    assert read_run(epath.Path(before)).fields == read_run(epath.Path(today)).fields


def test_fields_that_define_nothing_may_differ(tmp_path):
    fields = {
        'seed': 3,
        'parallel.model': 2,
        'data.dir': '/data',
        'data.name': 'imagenet2012:5.1.256',
        'optim.schedule': 'steps',
        'optim.milestone_epochs': (25.0, 51.0),
        'training.accumulation_steps': 2,
        'model.precision': 'default',
        'training.eval_every_epochs': 0.0,
        'model.conv6.kernel': 5,  # there is no conv6
        'model.conv3.pool_window': 2,  # no pooling follows conv3
        'model.map_norm.n': 3,  # nor a map norm any layer
    }
    _write(tmp_path, 'a', fields)
    directory = _write(tmp_path, 'b', {'seed': 4})
    config = json.loads((directory / 'config.json').read_text())
    del config['training']['init_from']  # of a version that did not have it
    (directory / 'config.json').write_text(json.dumps(config))
    assert _rows(tmp_path)[TOP1]['seeds'] == 2


@pytest.mark.parametrize('epoch', [60.0, 96.0])
def test_a_run_of_another_length_is_no_claim_s(tmp_path, epoch):
    _write(tmp_path, 'a', {'training.total_epochs': epoch}, epoch=epoch)
    assert not _measured(tmp_path)


def test_ablations_are_differences_of_two_runs(tmp_path):
    name = 'no response norm: top1 error 10 views, above that of 1 CNN, ILSVRC-2012 validation'
    no_norm = {f'model.conv{n}.after': ('activation', 'pool') for n in (1, 2)}
    _write(tmp_path, 'a', no_norm, **{'eval/top1_error_10_views': 0.43})
    assert name not in _measured(tmp_path)
    assert 'no response norm: top1 error 10 views' in _measured(tmp_path)
    _write(tmp_path, 'b', {'seed': 0}, **{'eval/top1_error_10_views': 0.40})
    _write(tmp_path, 'c', {'seed': 1}, **{'eval/top1_error_10_views': 0.42})
    row = _rows(tmp_path)[name]
    assert (row['paper'], row['ours'], row['min'], row['max']) == (1.4, 2.0, 1.0, 3.0)
    assert row['seeds'] == 1
    assert row['runs'] == ['a', 'b', 'c']


def test_one_gpu_and_2010(tmp_path):
    fields = {
        'data.name': 'imagenet2010',
        'data.eval_split': 'test',
        'data.train_examples': 1_261_406,
        'data.eval_examples': 150_000,
    }
    _write(tmp_path, 'two', fields)
    half = {'conv1': 48, 'conv2': 128, 'conv3': 192, 'conv4': 192}
    fields |= {f'model.{layer}.features': features for layer, features in half.items()}
    _write(tmp_path, 'one', {**fields, 'model.towers': 1})
    rows = _rows(tmp_path)
    assert rows['1 CNN, ILSVRC-2010 test: loss']['ours'] == 1.8  # nats, not percent
    name = 'one GPU, ILSVRC-2010 test: top1 error 10 views, above that of 1 CNN, ILSVRC-2010 test'
    assert (rows[name]['paper'], rows[name]['ours']) == (1.7, 0.0)
    assert TOP1 not in _measured(tmp_path)


def test_cnn_star_needs_its_first_data_set(tmp_path):
    fields = {'model.conv6.features': 256, 'training.init_from': 'runs/2011'}
    _write(tmp_path, 'a', fields, started={'init_data': 'imagenet2010/1.0.256'})
    assert not _measured(tmp_path)
    _write(tmp_path, 'b', fields, started={'init_data': 'imagenet_fall2011/1.0.0'}, epoch=90.0)
    assert {name.partition(',')[0] for name in _measured(tmp_path)} == {'1 CNN*'}


def test_a_start_that_was_killed_before_its_first_save_does_not_count(tmp_path):
    fields = {'model.conv6.features': 256}
    directory = _write(tmp_path, 'a', fields, started={'init_data': 'imagenet_fall2011/1.0.0'})
    path = directory / 'metrics.jsonl'
    first, *others = path.read_text().splitlines(keepends=True)
    again = json.dumps({'step': 0, 'epoch': 0.0, 'kind': 'event', 'event': 'started'}) + '\n'
    path.write_text(''.join([first, again, *others]))
    assert read_run(epath.Path(directory)).init_data == ''


def _write_ensemble(root, name, seeds, fields=None):
    config = alexnet.get_config()
    config.evaluation.ensemble = tuple(f'runs/{seed}' for seed in seeds)
    directory = _write(root, name, config=config)
    members = []
    for index, seed in enumerate(seeds):
        member = alexnet.get_config()
        saved_run.change(member, {'seed': seed, **(fields or {}).get(index, {})})
        members.append(
            {
                'place': f'runs/{seed}',
                'step': 900_821,
                'epoch': 90.0,
                'init_data': '',
                'config': member.to_dict(),
            }
        )
    row = {'step': 0, 'epoch': 0.0, 'kind': 'eval', **ERRORS}
    (directory / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    (directory / 'members.json').write_text(json.dumps(members))
    return directory


def test_an_ensemble_is_of_five_different_runs(tmp_path):
    name = '5 CNNs, ILSVRC-2012 validation: top1 error 10 views'
    _write_ensemble(tmp_path, 'four', [0, 1, 2, 3])
    _write_ensemble(tmp_path, 'twice', [0, 1, 2, 3, 3])
    _write_ensemble(tmp_path, 'other', [0, 1, 2, 3, 4], {2: {'model.dropout': 0.4}})
    assert not _measured(tmp_path)
    directory = _write_ensemble(tmp_path, 'five', [0, 1, 2, 3, 4])
    row = _rows(tmp_path)[name]
    assert (row['ours'], row['seeds'], row['runs']) == (41.0, 1, ['five'])
    members = json.loads((directory / 'members.json').read_text())
    members[0]['epoch'] = 45.0
    (directory / 'members.json').write_text(json.dumps(members))
    assert name not in _measured(tmp_path)
    reasons = {row['run']: row['reason'] for row in _report(tmp_path)['left_out']}
    assert re.search('ended at step 900821, epoch 45, before epoch 90', reasons['five'])


def test_an_ensemble_is_judged_on_the_claim_s_examples(tmp_path):
    directory = _write_ensemble(tmp_path, 'five', [0, 1, 2, 3, 4])
    config = json.loads((directory / 'config.json').read_text())
    config['data']['eval_split'] = 'validation[:50%]'
    (directory / 'config.json').write_text(json.dumps(config))
    assert not _measured(tmp_path)


def test_seven_of_two_kinds(tmp_path):
    """Seeds may repeat between the kinds, not within one."""
    star = {'model.conv6.features': 256}
    directory = _write_ensemble(tmp_path, 'a', [0, 1, 0, 1, 2, 3, 4], {0: star, 1: star})
    path = directory / 'members.json'
    members = json.loads(path.read_text())
    path.write_text(json.dumps(members))
    assert not _measured(tmp_path)
    for member in members[:2]:
        member['init_data'] = 'imagenet_fall2011/1.0.0'
    path.write_text(json.dumps(members))
    assert {name.partition(',')[0] for name in _measured(tmp_path)} == {'7 CNNs*'}
    members[1]['config']['seed'] = 0
    path.write_text(json.dumps(members))
    assert not _measured(tmp_path)


def _rewrite(name, change):
    def damage(directory):
        path = directory / name
        path.write_text(change(path.read_text()))

    return damage


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda d: (d / 'config.json').unlink(), r'it has no config\.json'),
        (lambda d: (d / 'environment.json').unlink(), r'it has no environment\.json'),
        (lambda d: (d / 'metrics.jsonl').unlink(), r'it has no metrics\.jsonl'),
        (
            _rewrite('metrics.jsonl', lambda text: text[:-5]),
            'it has no evaluation at its last step, 1800',
        ),
        (_rewrite('metrics.jsonl', lambda text: ''), 'it has no evaluation'),
        (_rewrite('metrics.jsonl', lambda t: t.replace('"step": 900', 'step')), 'is damaged'),
        (_rewrite('metrics.jsonl', lambda t: t.replace('"kind"', '"kynd"')), r"KeyError: 'kind'"),
        (_rewrite('metrics.jsonl', lambda t: t.replace('0.41', '41.0')), 'evaluation is damaged'),
        (_rewrite('metrics.jsonl', lambda t: t.replace('0.41', 'NaN')), 'evaluation is damaged'),
        (_rewrite('metrics.jsonl', lambda t: t.replace('0.41', '"x"')), 'damaged'),
        (_rewrite('metrics.jsonl', lambda t: '\n'.join(t.split('\n')[:-2]) + '\n'), 'at its last'),
        (
            _rewrite('metrics.jsonl', lambda t: t.replace('90.0001', '89.0')),
            'ended at step 1800, epoch 89, before epoch 90',
        ),
        (_rewrite('config.json', lambda text: text[:100]), r'config\.json cannot be read'),
        (_rewrite('config.json', lambda text: '[]'), 'files of the run .* are damaged'),
        (_rewrite('config.json', lambda t: t.replace('"seed"', '"sed"')), r"KeyError: 'seed'"),
        (
            _rewrite('config.json', lambda t: t.replace('"total_steps": 0', '"total_steps": 1801')),
            'ended at step 1800, .* before step 1801',
        ),
    ],
)
def test_what_is_not_finished_or_damaged_is_left_out_by_name(tmp_path, damage, words):
    damage(_write(tmp_path, 'a'))
    found = _report(tmp_path)
    assert not _measured(tmp_path)
    assert not found['others']
    assert [row['run'] for row in found['left_out']] == ['a']
    assert re.search(words, found['left_out'][0]['reason']), found['left_out']


def test_small_runs_stand_in_a_table_of_their_own(tmp_path, capsys):
    runs = tmp_path / 'runs'
    for seed, error in ((0, 0.01), (1, 0.02)):
        _write(
            runs,
            f'digits{seed}',
            {'seed': seed},
            config=digits.get_config(),
            **{'eval/top1_error': error},
        )
    _write(runs, 'half', epoch=45.0)
    file = tmp_path / 'report.md'
    assert report.main(['reproduction', '--runs', str(runs), '--output', str(file), '--json']) == 0
    wrote, last = capsys.readouterr().out.splitlines()
    assert wrote == f'wrote {file}'
    found = json.loads(last)
    assert all(row['status'] == 'not run' and row['ours'] is None for row in found['rows'])
    top1 = next(row for row in found['others'] if row['metric'] == 'eval/top1_error')
    assert (top1['data'], top1['ours'], top1['seeds']) == ('digits test', 1.5, 2)
    assert set(found['rows'][0]) >= {'claim', 'paper', 'run_2012', 'ours', 'seeds', 'status'}
    text = file.read_text()
    claims, others = text.split('## Other runs')
    assert '| digits test | top1 error | 1.50 (1.00 to 2.00) | 2 | 90.0001 |' in others
    assert 'digits' not in claims
    assert '## Measured' not in claims
    assert f'| {TOP1} | 40.7 | 40.664 | not run | Paper Table 2; #145 |' in claims
    assert '- half: it ended at step 1800, epoch 45' in others
    assert report.main(['reproduction', '--runs', str(runs)]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (
            ['--runs', '{tmp}/none'],
            r'none is not a folder; name a folder of workdirs with --runs=DIR',
        ),
        (['--runs', '{tmp}', '--output', '{tmp}/no/x.md'], r'cannot write .*x\.md'),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, words):
    assert report.main(['reproduction', *(a.format(tmp=tmp_path) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert re.search(words, err)


def _fig_1(root, name, unit, epochs, fields=None):
    """Write a run of Fig. 1's network that is at 25 % training error after so many epochs."""
    fields = {'model.activation': unit, 'optim.learning_rate': 0.002, **(fields or {})}
    directory = _write(root, name, fields, config=relu_vs_tanh.get_config(), epoch=40.0)
    rows = [
        {'step': 1, 'epoch': epochs - 1, 'kind': 'train', 'train/top1_error': 0.5},
        {'step': 2, 'epoch': epochs, 'kind': 'train', 'train/top1_error': 0.25},
    ]
    path = directory / 'metrics.jsonl'
    event, *rest = path.read_text().splitlines(keepends=True)
    rest = [line for line in rest if '"train"' not in line]
    path.write_text(event + ''.join(json.dumps(row) + '\n' for row in rows) + ''.join(rest))


RELU, TANH = (f'{unit}, four layers on CIFAR-10: {paper.EPOCHS}' for unit in ('ReLU', 'tanh'))
RATIO = f'{TANH}, times that of ReLU, four layers on CIFAR-10'


def test_fig_1_is_a_ratio_of_epochs(tmp_path):
    _fig_1(tmp_path, 'relu', 'relu', 4.0)
    assert _measured(tmp_path) == {RELU}
    _fig_1(tmp_path, 'slow', 'relu', 8.0, {'optim.learning_rate': 0.001})
    _fig_1(tmp_path, 'tanh', 'tanh', 20.0)
    rows = _rows(tmp_path)
    assert (rows[RELU]['ours'], rows[TANH]['ours'], rows[RATIO]['ours']) == (4.0, 20.0, 5.0)
    assert (rows[RATIO]['paper'], rows[RATIO]['seeds'], rows[RATIO]['note']) == (6.0, 1, '')
    assert rows[RATIO]['runs'] == ['tanh', 'relu', 'slow']


def test_fig_1_compares_like_with_like_and_names_what_is_not_the_paper_s(tmp_path, capsys):
    jpeg = {'data.name': 'cifar10_jpeg', 'model.conv1.features': 32}
    _fig_1(tmp_path, 'relu', 'relu', 4.0)
    _fig_1(tmp_path, 'tanh jpeg', 'tanh', 20.0, jpeg)
    assert _measured(tmp_path) == {RELU, TANH}
    _fig_1(tmp_path, 'relu jpeg', 'relu', 5.0, jpeg)
    rows = _rows(tmp_path)
    assert (rows[RELU]['ours'], rows[RELU]['note']) == (4.0, '')
    assert rows[RATIO]['ours'] == 4.0
    note = 'data.name cifar10_jpeg, model.conv1.features 32'
    assert rows[RATIO]['note'] == note
    assert report.main(['reproduction', '--runs', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f'| {RATIO} | 6 | - | 4.00 | 1 | measured: {note} | Paper 3.1, Fig. 1 |' in text


def test_fig_1_says_how_far_a_run_got_that_is_not_at_25_percent(tmp_path):
    _fig_1(tmp_path, 'relu', 'relu', 4.0)
    for name, epoch in (('look', 0.3), ('long', 12.5)):
        fields = {'model.activation': 'tanh', 'training.total_epochs': 0.1}
        _write(tmp_path, name, fields, config=relu_vs_tanh.get_config(), epoch=epoch)
    rows = _rows(tmp_path)
    assert _measured(tmp_path) == {RELU}
    assert rows[TANH]['note'] == rows[RATIO]['note'] == 'not reached in the 12.5 epochs of long'
    assert rows[RATIO]['ours'] is None


@pytest.mark.parametrize(
    'fields',
    [{'optim.weight_decay': 0.001}, {'augment.mirror': True}, {'model.conv3.local': False}],
)
def test_fig_1_has_no_regularisation_and_its_own_layers(tmp_path, fields):
    _fig_1(tmp_path, 'relu', 'relu', 4.0, fields)
    assert not _measured(tmp_path)


def test_four_layers_on_cifar10_are_named_by_their_data(tmp_path):
    claim = 'four layers on CIFAR-10, no norm: top1 error'
    config = cifar10_13pct.get_config()
    fields = {'data.name': 'cifar10_jpeg'}
    _write(tmp_path, 'a', fields, config=config, epoch=120.0, **{'eval/top1_error': 0.13})
    row = _rows(tmp_path)[claim]
    assert (row['ours'], row['paper'], row['note']) == (13.0, 13.0, 'data.name cifar10_jpeg')
    assert _measured(tmp_path) == {claim}


def test_the_committed_results_are_read():
    found = _report('results')
    assert not found['left_out']
    assert {row['data'] for row in found['others']} >= {'digits test'}


@pytest.mark.parametrize(
    ('page', 'arguments'),
    [
        ('reproduction', ['reproduction']),
        ('ablations', ['compare', '--runs', 'results/ablations', '--baseline', 'baseline_seed0']),
        ('chance', ['compare', '--runs', 'results/chance', '--baseline', 'baseline_seed0']),
    ],
)
def test_the_committed_pages_are_those_of_the_committed_results(page, arguments, tmp_path):
    output = tmp_path / 'page.md'
    assert report.main([*arguments, '--output', str(output)]) == 0
    command = f'python -m alexnet_jax.report {" ".join(arguments)} --output docs/{page}.md'
    assert output.read_text() == epath.Path(f'docs/{page}.md').read_text(), f'run {command}'


NO_NORM = ('activation', 'pool')


def _ablations(root):
    """Three seeds of a baseline and of a change; two of another; one that is not finished."""
    for seed, error in enumerate((0.50, 0.52, 0.51)):
        _write(root, f'baseline_{seed}', {'seed': seed}, **{'eval/top1_error': error})
        fields = {'seed': seed, 'model.conv1.after': NO_NORM, 'parallel.model': 2}
        _write(root, f'no_lrn_{seed}', fields, **{'eval/top1_error': error + 0.03})
        fields = {'seed': seed, 'model.dropout': 0.0}
        _write(root, f'no_dropout_{seed}', fields, **{'eval/top1_error': 0.52 - 0.1 * (seed == 0)})
    for seed in (7, 8):
        fields = {'seed': seed, 'model.activation': 'tanh'}
        _write(root, f'tanh_{seed}', fields, **{'eval/top1_error': 0.9})
    (_write(root, 'cut', {'seed': 9}) / 'metrics.jsonl').write_text('{"step": 1')
    (root / 'notes').mkdir()


def test_runs_are_compared_with_a_baseline_of_the_same_seeds(tmp_path):
    _ablations(tmp_path)
    found = against_baseline.compare(epath.Path(tmp_path), 'baseline_1', 'eval/top1_error')
    assert [row['changes'] for row in found['rows']] == [
        {},
        {'model.dropout': 0.0},
        {'model.conv1.after': NO_NORM},  # where it ran is no change
        {'model.activation': 'tanh'},
    ]
    base, no_dropout, no_lrn, tanh = found['rows']
    assert (base['mean'], base['min'], base['max'], base['seeds']) == (51.0, 50.0, 52.0, 3)
    assert [row['seeds'] for row in found['rows']] == [3, 3, 3, 2]
    assert no_lrn['difference'] == pytest.approx(3.0)
    assert no_lrn['distinguishable']  # 53 to 55 beside 50 to 52
    assert no_dropout['difference'] == pytest.approx((-8 + 0 + 1) / 3)
    assert not no_dropout['distinguishable']  # 42 to 52
    assert tanh['difference'] is None  # no seed of both
    assert not tanh['distinguishable']  # two seeds
    assert [row['run'] for row in found['left_out']] == ['cut']


def test_two_runs_of_a_seed_count_as_their_mean(tmp_path):
    for name, error in (('a', 0.5), ('b', 0.6)):
        _write(tmp_path, name, {'seed': 1}, **{'eval/top1_error': error})
    _write(tmp_path, 'c', {'seed': 1, 'model.dropout': 0.0}, **{'eval/top1_error': 0.58})
    base, changed = against_baseline.compare(epath.Path(tmp_path), 'a', 'eval/top1_error')['rows']
    assert (base['seeds'], base['mean'], base['difference']) == (1, 55.0, 0.0)
    assert changed['difference'] == pytest.approx(3.0)


def test_the_comparison_in_words(tmp_path, capsys):
    _ablations(tmp_path)
    assert report.main(['compare', '--runs', str(tmp_path), '--baseline', 'baseline_0']) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        '# Runs compared with a baseline: imagenet2012 validation, 90.0001 epochs\n'
    )
    assert '| nothing: the baseline | 51.00 (50.00 to 52.00) | 3 |  |  |' in out
    changed = f'`model.conv1.after = {NO_NORM}`'
    assert f'| {changed} | 54.00 (53.00 to 55.00) | 3 | +3.00 | yes |' in out
    assert "| `model.activation = 'tanh'` | 90.00 (90.00 to 90.00) | 2 | - | no |" in out


@pytest.mark.parametrize(
    ('baseline', 'metric', 'words'),
    [
        (
            'none',
            'eval/top1_error',
            "has no finished run 'none'; choose --baseline from these: ",
        ),
        ('cut', 'eval/top1_error', "no finished run 'cut'"),
        (
            'a',
            'eval/top1_error_10_views',
            'b has no eval/top1_error_10_views; name another --metric',
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, baseline, metric, words):
    _write(tmp_path, 'a')
    text = (_write(tmp_path, 'b', {'model.dropout': 0.0}) / 'metrics.jsonl').read_text()
    (tmp_path / 'b' / 'metrics.jsonl').write_text(text.replace('_10_views', '_9_views'))
    with pytest.raises(UserError, match=words) as error:
        against_baseline.compare(epath.Path(tmp_path), baseline, metric)
    assert '\n' not in str(error.value)
