"""The command `python -m alexnet_jax.figures`: the numbers it draws, its errors, its bytes."""

import json
import math
import pathlib
import re
import xml.etree.ElementTree

import pytest

from alexnet_jax import figures
from alexnet_jax.visualisation import drawing
from configs import alexnet
from tests.reports import saved_run


def write_run(directory, fields=None, losses=(2.0, 1.0, 0.5, 0.25), torn=False):
    """Write a run of two epochs with two steps each, evaluated at the end."""
    config = alexnet.get_config()
    saved_run.change(config, {'model.num_classes': 10, **(fields or {})})
    rows = [{'step': 0, 'epoch': 0.0, 'kind': 'event', 'event': 'started'}]
    for step, loss in enumerate(losses, 1):
        values = {'train/loss': loss, 'train/top1_error': loss / 4}
        rows.append({'step': step, 'epoch': step / 2, 'kind': 'train', **values})
    values = {'eval/loss': 0.75, 'eval/top1_error': 0.125}
    rows.append({'step': 4, 'epoch': 2.0, 'kind': 'eval', **values})
    saved_run.save(directory, config, rows)
    if torn:
        path = directory / 'metrics.jsonl'
        path.write_text(path.read_text()[:-5])
    return str(directory)


def write_fig_1(directory, activation, rate=0.01, losses=(2.0, 1.0, 0.5, 0.25), **fields):
    """Write a run of Fig. 1."""
    fields = {f'training.{name}': value for name, value in fields.items()}
    fields |= {'model.activation': activation, 'optim.learning_rate': rate}
    return write_run(directory, fields, losses)


def texts(svg):
    """Return the texts in a picture."""
    elements = xml.etree.ElementTree.parse(svg).iter()
    return [element.text for element in elements if element.tag.endswith('text')]


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that takes the figures in place of files."""
    kept = []
    monkeypatch.setattr(drawing, 'save', lambda figure, path: kept.append(figure))
    return kept


def test_the_lines_are_the_metrics(tmp_path, drawn):
    four = {'model.num_classes': 4}
    runs = [write_run(tmp_path / 'a'), write_run(tmp_path / 'b', four, losses=(1, 1, 1, 1))]
    assert figures.main(['curves', *runs, '--output', 'x.svg', '--labels', 'first', 'second']) == 0
    loss, error = drawn[0].axes
    steps, means, evaluation = (line.get_xydata().tolist() for line in loss.lines[:3])
    assert steps == [[0.5, 2.0], [1.0, 1.0], [1.5, 0.5], [2.0, 0.25]]
    assert means == [[0.75, 1.5], [1.75, 0.375]]
    assert evaluation == [[2.0, 0.75]]
    assert error.lines[0].get_ydata().tolist() == [0.5, 0.25, 0.125, 0.0625]
    assert error.lines[2].get_xydata().tolist() == [[2.0, 0.125]]
    chance = [axes.lines[-1].get_ydata()[0] for axes in (loss, error)]
    assert chance == [math.log(10), 0.9]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ['first', 'second']


def test_there_are_more_runs_than_colours(tmp_path, drawn):
    runs = [write_run(tmp_path / str(i)) for i in range(12)]
    assert figures.main(['curves', *runs, '--output', 'x.svg']) == 0
    assert not drawn[0].axes[0].get_legend(), 'so many names would hide the curves'
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [str(i) for i in range(12)]


def test_the_command_writes_the_same_svg_twice(tmp_path, capsys):
    run = write_run(tmp_path / 'a')
    files = [tmp_path / 'one.svg', tmp_path / 'two.svg']
    for file in files:
        assert figures.main(['curves', run, '--title', 'Two epochs', '--output', str(file)]) == 0
        assert capsys.readouterr().out == f'wrote {file}\n'
    assert files[0].read_bytes() == files[1].read_bytes()
    words = {'Two epochs', 'chance', 'epoch', 'cross-entropy', 'top-1 error'}
    assert words <= set(texts(files[0]))


def test_fig_1_takes_each_activation_at_its_best_rate(tmp_path, drawn, capsys):
    # Errors are a quarter of the losses: means of the epochs, at 0.75 and 1.75, and 25 % between.
    runs = [
        write_fig_1(tmp_path / 'slow', 'relu', 0.5, (2.0, 2.0, 1.0, 1.0)),  # 0.5, 0.25
        write_fig_1(tmp_path / 'best', 'relu', 0.25, (1.5, 1.5, 0.5, 0.5)),  # 0.375, 0.125
        write_fig_1(tmp_path / 'tanh', 'tanh', 0.01, (4.0, 2.0, 1.0, 0.6)),  # 0.75, 0.2
        write_fig_1(tmp_path / 'never', 'tanh', 1.0, (4.0, 2.0, 1.1, 1.1)),
    ]
    assert figures.main(['relu_vs_tanh', *runs, '--output', 'x.svg', '--json']) == 0
    _, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [row['run'] for row in found['runs']] == ['slow', 'best', 'tanh', 'never']
    tanh = 0.75 + 0.5 / 0.55
    assert [row['epoch'] for row in found['runs']] == [1.75, 1.25, round(tanh, 4), None]
    assert found['ratio'] == round(round(tanh, 4) / 1.25, 4)
    slow, best, tanh, never, mark = drawn[0].axes[0].lines
    assert best.get_xydata().tolist() == [[0.75, 0.375], [1.75, 0.125]]
    assert mark.get_ydata()[0] == 0.25
    assert slow.get_linewidth() == never.get_linewidth() < best.get_linewidth()
    assert best.get_linewidth() == tanh.get_linewidth()
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == [
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
    relu = write_fig_1(tmp_path / 'relu', 'relu', total_epochs=4.0)
    seed = write_run(tmp_path / 'seed', {'model.activation': 'tanh', 'seed': 1})
    sigmoid = write_fig_1(tmp_path / 'sigmoid', 'sigmoid')
    batch = write_fig_1(tmp_path / 'batch', 'tanh', batch_size=64)
    for run, words in (
        (seed, 'seed has seed = 1 and relu has 0; name runs that differ only in activation'),
        (batch, 'batch has training.batch_size = 64 and relu has 128'),
        (sigmoid, "model.activation = 'sigmoid'"),
    ):
        assert figures.main(['relu_vs_tanh', relu, run, '--output', str(tmp_path / 'x.svg')]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1
        assert re.search(words, err), err
    assert not (tmp_path / 'x.svg').exists()
    settings = {'total_epochs': 9.0, 'total_steps': 7, 'eval_every_epochs': 0.0, 'watchdog_s': 9}
    tanh = write_fig_1(tmp_path / 'tanh', 'tanh', 0.5, **settings)
    assert figures.main(['relu_vs_tanh', relu, tanh, '--output', str(tmp_path / 'x.svg')]) == 0


def test_a_run_that_is_still_going_on_is_drawn_without_its_torn_line(tmp_path, drawn):
    run = write_run(tmp_path / 'torn', torn=True)
    assert figures.main(['curves', run, '--output', 'x.svg']) == 0
    _, means, evaluations = (line.get_ydata().tolist() for line in drawn[0].axes[0].lines[:3])
    assert (means, evaluations) == ([1.5, 0.375], [])


CHANCE = {
    'baseline': "paper's, no dropout",
    'init_2012': 'conv3 to 5 N(0, 0.03)',
    'he_pixels_unit': 'He, biases 0, pixels / 58',
    'pixels_unit': 'pixels / 58',
    'bias_zero': 'biases 0',
    'dropout_classic': 'with dropout',
    'dropout_inverted': 'with inverted dropout',
}
FIG_1 = [run for run in sorted(pathlib.Path('results').glob('relu_*')) if 'seed' not in run.name]


PHOTOGRAPHS = {
    '': 'no dropout, no augmentation',
    '_paper': 'dropout and augmentation',
}
PICTURES = {
    'relu_vs_tanh': ('relu_vs_tanh', *map(str, FIG_1)),
    'cifar10_jpeg': (
        *('curves', 'results/cifar10_jpeg'),
        *('--title', 'configs/cifar10.py on CIFAR-10 kept as JPEG (dots: test images)'),
    ),
    'alexnet_250_photographs': (
        *('curves', *(f'results/alexnet_250_photographs{end}' for end in PHOTOGRAPHS)),
        *('--labels', *PHOTOGRAPHS.values()),
        *('--title', 'The full-size network on 250 photographs, training'),
    ),
    'chance': (
        *('curves', *(f'results/chance/{name}_seed0' for name in CHANCE)),
        *('--labels', *CHANCE.values()),
    ),
}


@pytest.mark.parametrize('picture', PICTURES)
def test_the_committed_pictures_are_those_of_the_committed_results(tmp_path, picture):
    """The bytes of a picture depend on the version of matplotlib; its words do not."""
    output = tmp_path / 'picture.svg'
    assert figures.main([*PICTURES[picture], '--output', str(output)]) == 0
    assert texts(output) == texts(f'docs/{picture}.svg')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{run}', '--output', '{tmp}/x.foo'], r'cannot write .*x\.foo .*name a \.svg'),
        (['{run}', '--output', '{tmp}/none/x.svg'], r'cannot write .*none/x\.svg'),
        (
            ['{tmp}', '--output', '{tmp}/x.svg'],
            r'is not the workdir of a run: it has no config\.json',
        ),
        (
            ['{damaged}', '--output', '{tmp}/x.svg'],
            r'line 2 of .*damaged/metrics\.jsonl is damaged; .*sed -i 2d',
        ),
        (['{run}', '--labels', 'a', 'b', '--output', '{tmp}/x.svg'], r'2 --labels for 1 runs'),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    places = {'tmp': tmp_path}
    for name in ('run', 'damaged'):
        places[name] = write_run(tmp_path / name)
    path = tmp_path / 'damaged' / 'metrics.jsonl'
    path.write_text(path.read_text().replace('"step": 1', '"step 1'))
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
