"""The command `predict`: what it reads, prints, saves and leaves out."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import safetensors

from alexnet_jax import predict
from alexnet_jax.inference import load
from tests import photographs
from tests.inference.trained_runs import save_run_on_photographs


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    _, paths = save_run_on_photographs(root)
    return str(root / 'run'), [str(path) for path in paths], root


@pytest.fixture(scope='module')
def net(photos):
    return load(photos[0])


def _run(capsys, *arguments):
    code = predict.main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_json_is_one_line_a_photograph(capsys, photos, net):
    run, paths, root = photos
    code, out, err = _run(capsys, run, root / 'source' / 'val', '--json', '--views=10')
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row['path'] for row in rows] == paths
    want = net.predict(paths, views=10)
    assert [row['predictions'] for row in rows] == [[p._asdict() for p in w] for w in want]
    assert 'error' not in err


def test_a_table_has_the_names(capsys, photos, net):
    run, paths, _ = photos
    code, out, _ = _run(capsys, run, paths[0], '--top=1')
    [[best]] = net.predict(paths[0], top=1)
    assert code == 0
    assert out == f'{paths[0]}\n{100 * best.probability:6.1f} %  {best.name}\n'


def test_csv_is_safe_for_spreadsheets(capsys, photos, net, tmp_path, monkeypatch):
    run, paths, _ = photos
    monkeypatch.chdir(tmp_path)
    name = '=HYPERLINK("x"),1.jpg'
    shutil.copy(paths[0], tmp_path / name)
    code, out, err = _run(capsys, run, name, 'missing.jpg', '--csv')
    rows = list(csv.reader(io.StringIO(out)))
    assert code == 2
    assert rows[0] == ['path', 'rank', 'label', 'name', 'probability', 'error']
    want = net.predict(paths[0])[0]
    assert [row[:4] for row in rows[1:3]] == [
        [f"'{name}", str(rank), str(p.label), p.name] for rank, p in enumerate(want, 1)
    ]
    assert float(rows[1][4]) == pytest.approx(want[0].probability, rel=1e-5)
    assert rows[3][0] == 'missing.jpg'
    assert 'No such file' in rows[3][5]
    assert '1 of 2 photographs cannot be read: missing.jpg: No such file' in err


def test_unreadable_photographs_are_listed_and_the_rest_is_done(capsys, photos, tmp_path):
    run, paths, _ = photos
    for number in range(30):
        (tmp_path / f'{number:02}.jpg').write_bytes(b'no image')
    code, out, err = _run(capsys, run, tmp_path, paths[0], '--json', '--batch_size=8')
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert ['error' in row for row in rows] == [True] * 30 + [False]
    assert err.count('\n') == 1
    assert '30 of 31 photographs cannot be read' in err
    assert '19.jpg' in err
    assert '20.jpg' not in err
    assert 'and 10 more' in err


@pytest.mark.parametrize('suffix', ['safetensors', 'npz'])
def test_features_are_saved_with_their_paths(capsys, photos, net, tmp_path, suffix):
    run, paths, _ = photos
    target = tmp_path / 'new' / f'features.{suffix}'
    asked = [paths[0], 'missing.jpg', paths[1]]
    code, out, _ = _run(capsys, run, *asked, '--features=fc7', f'--output={target}')
    assert code == 2
    assert f'wrote {target}: fc7 [2, 16] float32' in out
    if suffix == 'npz':
        with np.load(target, allow_pickle=False) as file:
            found, names = file['fc7'], file['paths'].tolist()
    else:
        with safetensors.safe_open(target, 'numpy') as file:
            found, names = file.get_tensor('fc7'), json.loads(file.metadata()['paths'])
    np.testing.assert_allclose(found, net.activations(paths[:2], 'fc7'), atol=1e-6)
    assert names == paths[:2]
    assert {p.name for p in target.parent.iterdir()} == {target.name}


def test_files_folders_patterns_and_lists(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (
        'b/2.jpg',
        'b/a/1.PNG',
        'b/notes.txt',
        'b/._2.jpg',
        'b/.x/3.jpg',
        'c/[x].jpg',
        'c/y.jpeg',
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    find = predict.find_photographs
    assert find(['b']) == ['b/2.jpg', 'b/a/1.PNG']
    assert (
        'left out 2 files of folders that are hidden or not named as images'
        in capsys.readouterr().err
    )
    assert find(['c/[x].jpg']) == ['c/[x].jpg']  # a file, not a pattern
    assert find(['c/*.jp*g', 'b/notes.txt']) == ['c/[x].jpg', 'c/y.jpeg', 'b/notes.txt']
    assert find(['**/*.jpg']) == ['b/2.jpg', 'c/[x].jpg']
    monkeypatch.setattr('sys.stdin', io.StringIO('c/y.jpeg\n\nb/a\r\n'))
    assert find(['-']) == ['c/y.jpeg', 'b/a/1.PNG']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['RUN', 'none*.jpg'], 'none*.jpg: no file matches this pattern'),
        (['RUN', 'EMPTY'], 'no photographs in'),
        (['nothing', 'x.jpg'], 'nothing does not exist; name the workdir of a run'),
        (['RUN', 'x.jpg', '--checkpoint=77'], 'no checkpoint in'),
        (['RUN', 'x.jpg', '--features=fc7'], '--features=NAME and --output=FILE go together'),
        (['RUN', 'x.jpg', '--features=fc7', '--output=a.pkl'], 'must end in .safetensors or .npz'),
        (['RUN', 'x.jpg', '--features=fc9', '--output=a.npz'], 'fc9 is not an activation'),
        (['RUN', 'x.jpg', '--features=fc7', '--output=/proc/a.npz'], 'cannot write /proc/a.npz'),
        (['RUN', 'x.jpg', '--features=fc7', '--output=a.npz', '--views=10'], 'leave --views out'),
        (['RUN', 'x.jpg', '--top=0'], '--top and --batch_size must be at least 1'),
        (['gs://bucket/run', 'x.jpg'], 'object stores are not supported'),
    ],
    ids=str,
)
def test_mistakes_are_one_line(capsys, photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    names = {'RUN': photos[0], 'EMPTY': str(tmp_path / 'empty')}
    code, out, err = _run(capsys, *(names.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, '')
    assert words in err
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['empty']


def test_a_photograph_of_each_format(capsys, photos, tmp_path):
    content = photographs.sample(1)[0][1]
    for format in ('BMP', 'PNG', 'WEBP', 'TIFF'):
        (tmp_path / f'x.{format.lower()}').write_bytes(photographs.encoded(content, format))
    code, out, _ = _run(capsys, photos[0], tmp_path, '--json')
    assert code == 0
    assert len(out.splitlines()) == 4
