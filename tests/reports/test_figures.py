"""The command `python -m alexnet_jax.figures`: the numbers it draws, its errors, its bytes."""

import json
import math
import re
import xml.etree.ElementTree

import pytest

from alexnet_jax import figures

pytest.importorskip('matplotlib')


def write_run(
    directory, classes=10, losses=(2.0, 1.0, 0.5, 0.25), torn=False, unit='relu', rate=0.01, **rest
):
    """Write a run of two epochs with two steps each, evaluated at the end."""
    directory.mkdir()
    config = {
        'model': {'num_classes': classes, 'activation': unit},
        'optim': {'learning_rate': rate},
        **rest,
    }
    (directory / 'config.json').write_text(json.dumps(config))
    records = [{'step': 0, 'epoch': 0.0, 'kind': 'event', 'event': 'started'}]
    for step, loss in enumerate(losses, 1):
        values = {'train/loss': loss, 'train/top1_error': loss / 4}
        records.append({'step': step, 'epoch': step / 2, 'kind': 'train', **values})
    values = {'eval/loss': 0.75, 'eval/top1_error': 0.125}
    records.append({'step': 4, 'epoch': 2.0, 'kind': 'eval', **values})
    text = ''.join(json.dumps(record) + '\n' for record in records)
    (directory / 'metrics.jsonl').write_text(text[:-5] if torn else text)
    return str(directory)


def test_the_lines_are_the_metrics(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, '_save', lambda figure, output: kept.append(figure))
    runs = [write_run(tmp_path / 'a'), write_run(tmp_path / 'b', classes=4, losses=(1, 1, 1, 1))]
    figures.draw_curves(runs, 'x.svg', labels=['first', 'second'])
    loss, error = kept[0].axes
    steps, means, evaluation = (line.get_xydata().tolist() for line in loss.lines[:3])
    assert steps == [[0.5, 2.0], [1.0, 1.0], [1.5, 0.5], [2.0, 0.25]]
    assert means == [[0.75, 1.5], [1.75, 0.375]]
    assert evaluation == [[2.0, 0.75]]
    assert error.lines[0].get_ydata().tolist() == [0.5, 0.25, 0.125, 0.0625]
    assert error.lines[2].get_xydata().tolist() == [[2.0, 0.125]]
    chance = [axes.lines[-1].get_ydata()[0] for axes in (loss, error)]
    assert chance == [math.log(10), 0.9]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ['first', 'second']


def test_there_are_more_runs_than_colours(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, '_save', lambda figure, output: kept.append(figure))
    runs = [write_run(tmp_path / str(i)) for i in range(12)]
    figures.draw_curves(runs, 'x.svg')
    assert not kept[0].axes[0].get_legend(), 'so many names would hide the curves'
    names = [text.get_text() for text in kept[0].legends[0].get_texts()]
    assert names == [str(i) for i in range(12)]


def test_the_command_writes_the_same_svg_twice(tmp_path, capsys):
    run = write_run(tmp_path / 'a')
    files = [tmp_path / 'one.svg', tmp_path / 'two.svg']
    for file in files:
        assert figures.main(['curves', run, '--title', 'Two epochs', '--output', str(file)]) == 0
        assert capsys.readouterr().out == f'wrote {file}\n'
    assert files[0].read_bytes() == files[1].read_bytes()
    texts = [e.text for e in xml.etree.ElementTree.parse(files[0]).iter() if e.tag.endswith('text')]
    assert {'Two epochs', 'chance', 'epoch', 'cross-entropy', 'top-1 error'} <= set(texts)


def test_fig_1_takes_each_unit_at_its_best_rate(tmp_path, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(figures, '_save', lambda figure, output: kept.append(figure))
    # Errors are a quarter of the losses: means of the epochs, at 0.75 and 1.75, and 25 % between.
    runs = [
        write_run(tmp_path / 'slow', losses=(2.0, 2.0, 1.0, 1.0), rate=0.5),  # 0.5, 0.25
        write_run(tmp_path / 'best', losses=(1.5, 1.5, 0.5, 0.5), rate=0.25),  # 0.375, 0.125
        write_run(tmp_path / 'tanh', losses=(4.0, 2.0, 1.0, 0.6), unit='tanh'),  # 0.75, 0.2
        write_run(tmp_path / 'never', losses=(4.0, 2.0, 1.1, 1.1), unit='tanh', rate=1.0),
    ]
    assert figures.main(['relu_vs_tanh', *runs, '--output', 'x.svg', '--json']) == 0
    _, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [row['run'] for row in found['runs']] == ['slow', 'best', 'tanh', 'never']
    tanh = 0.75 + 0.5 / 0.55
    assert [row['epoch'] for row in found['runs']] == [1.75, 1.25, round(tanh, 4), None]
    assert found['ratio'] == round(round(tanh, 4) / 1.25, 4)
    slow, best, tanh, never, mark = kept[0].axes[0].lines
    assert best.get_xydata().tolist() == [[0.75, 0.375], [1.75, 0.125]]
    assert mark.get_ydata()[0] == 0.25
    assert slow.get_linewidth() == never.get_linewidth() < best.get_linewidth()
    assert best.get_linewidth() == tanh.get_linewidth()
    assert [text.get_text() for text in kept[0].axes[0].get_legend().get_texts()] == [
        'relu, rate 0.25: 25 % after 1.25 epochs',
        'tanh, rate 0.01: 25 % after 1.66 epochs',
    ]
    assert figures.main(['relu_vs_tanh', runs[1], runs[3], '--output', 'x.svg']) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        'best: relu, rate 0.25: 25 % after 1.25 epochs',
        'never: tanh, rate 1: not at 25 % in 2.00 epochs',
        "tanh's epochs over ReLU's: not known",
    ]


def test_fig_1_refuses_runs_that_cannot_be_compared(tmp_path, capsys):
    relu = write_run(tmp_path / 'relu', seed=0, training={'total_epochs': 4})
    other = write_run(tmp_path / 'other', seed=1, unit='tanh', training={'total_epochs': 9})
    sigmoid = write_run(tmp_path / 'sigmoid', unit='sigmoid')
    for run, words in ((other, 'other has seed 1 and .*relu 0'), (sigmoid, "activation 'sigmoid'")):
        assert figures.main(['relu_vs_tanh', relu, run, '--output', str(tmp_path / 'x.svg')]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1
        assert re.search(words, err), err
    assert not (tmp_path / 'x.svg').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{run}', '--output', '{tmp}/x.foo'], r'cannot write .*x\.foo .*name a \.svg'),
        (['{run}', '--output', '{tmp}/none/x.svg'], r'cannot write .*none/x\.svg'),
        (['{tmp}', '--output', '{tmp}/x.svg'], r'is no workdir of a run .*config\.json'),
        (['{torn}', '--output', '{tmp}/x.svg'], r'torn is no workdir of a run'),
        (['{run}', '--labels', 'a', 'b', '--output', '{tmp}/x.svg'], r'2 --labels for 1 runs'),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    places = {
        'tmp': tmp_path,
        'run': write_run(tmp_path / 'run'),
        'torn': write_run(tmp_path / 'torn', torn=True),
    }
    assert figures.main(['curves', *(argument.format(**places) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1

    assert re.search(message, captured.err)


def test_a_wrong_command_line_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        figures.main(['curves', 'run'])
    assert exit.value.code == 2
    assert '--output' in capsys.readouterr().err
