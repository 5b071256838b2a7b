"""Reports of each class: scikit-learn's numbers, the printed errors, safe names, places."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from alexnet_jax import main
from alexnet_jax.training import class_report, evaluate_checkpoint
from alexnet_jax.training.class_report import ClassReport

ROOT = Path(__file__).resolve().parents[2]
FILES = {'per_class.csv', 'confusion.csv', 'report.json'}


def _table(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline='')))


def _numbers(values) -> np.ndarray:
    """Return what a report holds, undefined as NaN, as scikit-learn has it."""
    return np.array([np.nan if value in (None, '') else float(value) for value in values])


def _predictions(seed, classes):
    """Class 1 has no examples, 2 is never predicted, and 4 is neither there nor predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 500).astype(np.int32)
    predicted = np.where(rng.random(500) < 0.5, labels, rng.integers(0, classes, 500))
    labels[np.isin(labels, (1, 4))] = 0
    predicted[np.isin(predicted, (2, 4))] = 3
    return labels, predicted.astype(np.int32)


@pytest.mark.parametrize(('seed', 'classes'), [(0, 5), (1, 10), (2, 40)])
def test_the_numbers_are_scikit_learn_s(seed, classes):
    labels, predicted = _predictions(seed, classes)
    report = ClassReport.count([f'class {i}' for i in range(classes)], labels, predicted)
    every = list(range(classes))
    confusion = metrics.confusion_matrix(labels, predicted, labels=every)
    precision, recall, f1, examples = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    np.testing.assert_array_equal(report.confusion, confusion)
    columns = list(zip(*_table(report.per_class_csv())[1:], strict=True))
    parsed = json.loads(report.json({}))
    np.testing.assert_array_equal(parsed['confusion'], confusion)
    for column, (name, want) in enumerate(
        [('examples', examples), ('recall', recall), ('precision', precision), ('f1', f1)], 2
    ):
        np.testing.assert_array_equal(_numbers(getattr(report, name)), want)
        np.testing.assert_array_equal(_numbers(columns[column]), want)
        np.testing.assert_array_equal(_numbers(row[name] for row in parsed['classes']), want)
    undefined = {'recall': (1, 4), 'precision': (2, 4), 'f1': (4,)}
    for name, where in undefined.items():
        assert tuple(np.flatnonzero(np.isnan(_numbers(getattr(report, name))))) == where
    counts = [row[1:] for row in _table(report.confusion_csv())[1:]]
    np.testing.assert_array_equal(np.array(counts, int), confusion)


def test_the_form_of_the_files():
    report = ClassReport.count(['cat', 'dog', 'fox'], np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert report.per_class_csv().decode().splitlines() == [
        'index,name,examples,recall,precision,f1',
        '0,cat,2,0.5,1.0,0.6666666666666666',
        '1,dog,1,1.0,0.5,0.6666666666666666',
        '2,fox,0,,,',
    ]
    assert report.confusion_csv().decode().splitlines() == [
        'true class,cat,dog,fox',
        'cat,1,1,0',
        'dog,0,1,0',
        'fox,0,0,0',
    ]
    text = report.json({'step': 3}).decode()
    fox = (
        '{"index": 2, "name": "fox", "examples": 0, "recall": null, "precision": null, "f1": null}'
    )
    assert text.startswith('{\n"step": 3,\n"classes": [\n{"index": 0, ')
    assert text.endswith(fox + '\n],\n"confusion": [\n[1, 1, 0],\n[0, 1, 0],\n[0, 0, 0]\n]\n}\n')


UNSAFE = ['=1+1', '+1', '-1', '@SUM(A1)', '\ttab', '\rreturn', '=HYPERLINK("http://x","y")']
SAFE = ['a=b', '1-1', 'a, "b"', 'line\nbreak', 'car\rriage', "'quoted", 'Dvořák', 'ユニ']


def test_names_are_no_formulas_in_csv_and_as_they_are_in_json():
    names = UNSAFE + SAFE
    labels = np.arange(len(names))
    report = ClassReport.count(names, labels, labels)
    want = [f"'{name}" for name in UNSAFE] + SAFE
    rows = _table(report.per_class_csv())
    assert [row[1] for row in rows[1:]] == want
    assert {len(row) for row in rows} == {6}
    rows = _table(report.confusion_csv())
    assert rows[0] == ['true class', *want]
    assert [row[0] for row in rows[1:]] == want
    assert [row['name'] for row in json.loads(report.json({}))['classes']] == names


# The command.

# With these the network learns enough in 60 steps to predict several classes.
LEARNS = ('--config.model.initializer=he', '--config.model.dropout=0.0')
EXAMPLES = [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]  # of each digit in the test split


@pytest.fixture(scope='module')
def life(tmp_path_factory):
    """Two trained runs, and the command to evaluate them in this process."""
    root = tmp_path_factory.mktemp('life')

    def run(capsys, *arguments: str, name: str = 'run') -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main.main(
                [
                    '--config=configs/tiny.py',
                    f'--workdir={root / name}',
                    f'--data_dir={root / "data"}',
                    '--config.log.tensorboard=false',
                    *LEARNS,
                    *arguments,
                ]
            )
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return root, run


@pytest.fixture
def command(life, monkeypatch, capsys):
    root, run = life
    monkeypatch.chdir(ROOT)
    for seed, name in enumerate(('run', 'other')):
        if not (root / name).exists():
            code, _, err = run(
                capsys,
                *('--config.training.total_steps=60', '--config.training.eval_every_epochs=0.0'),
                *('--config.optim.schedule=constant', '--config.optim.learning_rate=0.01'),
                f'--config.seed={seed}',
                name=name,
            )
            assert code == 0, err
    return lambda *arguments: run(capsys, *arguments)


def _assert_consistent(directory, line, views):
    """The files agree with each other, and with the printed line."""
    assert {path.name for path in directory.iterdir()} == FILES
    report = json.loads((directory / 'report.json').read_text())
    confusion = np.array(report['confusion'])
    assert confusion.sum(axis=1).tolist() == EXAMPLES
    assert report['examples'] == sum(EXAMPLES) == 360
    assert sum(confusion.sum(axis=0) > 0) > 1, 'the data can tell rows from columns'
    assert (report['data_set'], report['split']) == ('digits/1.0.0', 'test')
    assert report['views'] == views
    error = (360 - int(np.trace(confusion))) / 360
    assert error == report['top1_error_10_views' if views == 10 else 'top1_error']
    assert ('ten views' in report['predictions']) == (views == 10)
    printed = dict(re.findall(r'(top\d_error\w*) (\d\.\d{4})', line))
    assert {name: f'{report[name]:.4f}' for name in printed} == printed
    assert len(printed) == (4 if views == 10 else 2)
    assert [name for name in report if name.startswith('top')] == list(printed)
    recalls = [row['recall'] for row in report['classes']]
    weighted = np.dot(recalls, confusion.sum(axis=1)) / 360
    assert 1 - weighted == pytest.approx(error, abs=1e-12)
    table = _table((directory / 'per_class.csv').read_bytes())
    assert [row[1] for row in table[1:]] == [str(digit) for digit in range(10)]
    np.testing.assert_array_equal(_numbers(row[3] for row in table[1:]), recalls)
    counts = [row[1:] for row in _table((directory / 'confusion.csv').read_bytes())[1:]]
    np.testing.assert_array_equal(np.array(counts, int), confusion)
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ('views', 'parallel'),
    [(1, {}), (10, {}), (10, {'data': 2, 'model': 4, 'backend': 'pmap'})],
    ids=str,
)
def test_the_report_counts_what_is_printed(command, tmp_path, views, parallel):
    arguments = ['--mode=evaluate', f'--config.evaluation.final_views={views}']
    arguments += [f'--config.parallel.{name}={value}' for name, value in parallel.items()]
    code, without, err = command(*arguments)
    assert code == 0, err
    directory = tmp_path / 'a new' / 'report'
    code, out, err = command(*arguments, f'--config.evaluation.report_dir={directory}')
    assert code == 0, err
    assert out == without, 'the line is the same with a report and without'
    report = _assert_consistent(directory, out.splitlines()[-1], views)
    assert f'step {report["step"]} sha256 {report["sha256"]} ' in out
    assert report['step'] == 60
    if views == 10:
        assert report['top1_error'] != report['top1_error_10_views'], 'the data can tell'


@pytest.mark.slow
@pytest.mark.parametrize('report', [True, False])
def test_outputs_that_are_not_finite_are_one_line_and_no_report(command, tmp_path, report):
    directory = tmp_path / 'report'
    arguments = [f'--config.evaluation.report_dir={directory}'] if report else []
    code, out, err = command('--mode=evaluate', '--config.augment.pixel_divisor=1e-38', *arguments)
    assert code == 2
    assert 'sha256' not in out
    assert 'are not finite for some images' in err.splitlines()[-1]
    assert not list(directory.glob('*'))


@pytest.mark.slow
def test_a_report_of_an_ensemble(life, command, tmp_path):
    root, _ = life
    places = [str(root / name) for name in ('run', 'other')]
    code, out, err = command(
        *('--mode=evaluate', f'--config.evaluation.ensemble={tuple(places)}'),
        f'--config.evaluation.report_dir={tmp_path / "report"}',
    )
    assert code == 0, err
    *lines, last = out.splitlines()
    assert last.startswith('ensemble of 2 by mean ')
    report = _assert_consistent(tmp_path / 'report', last, 10)
    assert [network['place'] for network in report['ensemble']] == places
    for network, line in zip(report['ensemble'], lines, strict=True):
        assert network['weight'] == 0.5
        assert f'step {network["step"]} sha256 {network["sha256"]} ' in line


@pytest.mark.slow
@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/no/such'])
def test_a_place_that_cannot_be_written_ends_before_the_evaluation(
    life, command, tmp_path, monkeypatch, place, ensemble
):
    def evaluate(*_):
        raise AssertionError('it evaluates')

    monkeypatch.setattr(evaluate_checkpoint.Experiment, 'collect', evaluate)
    (tmp_path / 'file').write_text('mine')
    arguments = ['--mode=evaluate', f'--config.evaluation.report_dir={tmp_path / place}']
    if ensemble:
        arguments.append(f"--config.evaluation.ensemble=('{life[0] / 'run'}',)")
    code, out, err = command(*arguments)
    assert code == 2
    assert not out
    errors = [line for line in err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert err.splitlines()[-1] == errors[0]
    assert re.search(
        r'cannot write to config\.evaluation\.report_dir = .*'
        r'\((File exists|Not a directory|No such file or directory)\); .* another directory',
        errors[0],
    )
    assert (tmp_path / 'file').read_text() == 'mine'


def test_an_object_store_is_refused_as_everywhere(command_without_runs):
    code, out, err = command_without_runs('--config.evaluation.report_dir=gs://bucket/report')
    assert (code, out) == (2, '')
    assert 'config.evaluation.report_dir' in err
    assert 'object stores are not supported' in err


@pytest.fixture
def command_without_runs(life, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    return lambda *arguments: life[1](capsys, '--mode=evaluate', *arguments)


def test_trying_whether_a_directory_can_be_written_leaves_an_earlier_report(tmp_path):
    (tmp_path / 'report.json').write_text('earlier')
    assert class_report.open_directory(str(tmp_path)) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ['report.json']
    assert (tmp_path / 'report.json').read_text() == 'earlier'
    assert class_report.open_directory('') is None
