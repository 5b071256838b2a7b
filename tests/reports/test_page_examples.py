"""Examples of a page: right and wrong ones by the stated rule, with the network's own outputs."""

import base64
import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from alexnet_jax import report
from alexnet_jax.inference import load
from alexnet_jax.reports import examples
from tests.inference.trained_runs import save_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp('run')
    return save_run(root), root / 'run'


@pytest.mark.parametrize('count', [0, 1, 5, 12, 360, 1000])
def test_half_are_right_and_half_wrong_where_there_are_so_many(run, count):
    experiment, workdir = run
    split = experiment.dataset.eval
    net = load(workdir)
    images = np.stack([split[index]['image'] for index in range(len(split))])
    labels = np.array([split[index]['label'] for index in range(len(split))])
    outputs = net.probabilities(images)
    good = int(np.sum(outputs.argmax(1) == labels))
    assert 0 < good < 180  # of 360
    chosen = examples.choose(epath.Path(workdir), '', count)
    right = [example.predictions[0][0] == example.true_name for example in chosen]
    assert len(chosen) == min(count, 360)
    assert sum(right) == min(good, count - count // 2)
    assert right == sorted(right, reverse=True)
    shown = [_pixels(example.image) for example in chosen]
    places = [np.flatnonzero([np.array_equal(x, y[..., 0]) for y in images])[0] for x in shown]
    assert len(set(places)) == len(places)
    for place, example in zip(places, chosen, strict=True):
        assert example.true_name == str(labels[place])
        want = [
            (p.name, pytest.approx(p.probability, abs=1e-6)) for p in net.ranked(outputs[place], 3)
        ]
        assert list(example.predictions) == want


def _pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))


def test_the_command_has_them_or_says_why_not(run, tmp_path, capsys):
    _, workdir = run
    (workdir / 'metrics.jsonl').write_text(
        '{"step": 1, "epoch": 0.1, "kind": "train", "time_s": 1.0, "train/loss": 2.3}\n'
    )
    page = tmp_path / 'page.html'
    assert report.main(['run', str(workdir), f'--output={page}', '--examples=4']) == 0
    assert page.read_text().count('<img src="data:image/png;base64,') == 4
    options = [f'--output={page}', f'--data_dir={tmp_path}']
    assert report.main(['run', str(workdir), *options]) == 0
    assert 'the page has no examples: ' in capsys.readouterr().err
    assert '<img' not in page.read_text()
