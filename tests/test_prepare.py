"""The command `python -m alexnet_jax.prepare`: what it prints, its exit codes, two at a time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from alexnet_jax import prepare

ROOT = Path(__file__).resolve().parents[1]


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, '-m', 'alexnet_jax.prepare', *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_at_once_and_again(tmp_path, capsys):
    both = [start('digits', TFDS_DATA_DIR=str(tmp_path)) for _ in range(2)]
    line = f'digits/1.0.0 is in {tmp_path}/digits/1.0.0: train 1437, test 360 examples\n'
    for process in both:
        output, errors = process.communicate()
        assert (process.returncode, output, errors) == (0, line, '')
    directory = tmp_path / 'digits' / '1.0.0'
    builder: Any = tfds.builder_from_directory(directory)
    assert {split: len(builder.as_data_source(split)) for split in ('train', 'test')} == {
        'train': 1437,
        'test': 360,
    }
    assert not list(directory.glob('*tmp*'))

    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert prepare.main(['digits', f'--data_dir={tmp_path}']) == 0
    assert capsys.readouterr().out.splitlines()[-1:] == [line.strip()]
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_the_flag_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'environment'))
    assert prepare.main(['digits', '--data_dir', str(tmp_path / 'flag')]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['flag']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'DATA_SET'),
        (['digit'], "'digit'"),
        (['digits', '--dir=x'], 'unknown option --dir; did you mean --data_dir?'),
        (['digits', '--data_dir'], '--data_dir'),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        prepare.main(arguments)
    output, errors = capsys.readouterr()
    assert ended.value.code == 2
    assert output == ''
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    assert words in errors
    assert '--help' in errors


def test_a_directory_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert prepare.main(['digits', f'--data_dir={tmp_path}/file']) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith(f'error: cannot write {tmp_path}/file')
    assert errors.count('\n') == 1


def test_an_object_store_is_refused(capsys):
    assert prepare.main(['digits', '--data_dir=gs://bucket/x']) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('error: --data_dir: gs://bucket/x is not a path in the file system; ')
    assert errors.count('\n') == 1


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        ('--size=-1', '--size=-1 must be at least 0'),
        ('--eval_fraction=2', '--eval_fraction=2.0 must be at least 0 and below 1'),
    ],
)
def test_only_the_wrong_option_is_named(capsys, option, line):
    assert prepare.main(['folder', '--source=x', '--name=x', option]) == 2
    assert capsys.readouterr().err == f'error: {line}\n'


def test_a_worker_for_each_core_where_the_system_says_only_how_many_there_are(monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
    monkeypatch.setattr(os, 'cpu_count', lambda: 7)
    arguments = ['folder', '--source=x', '--name=x']
    assert prepare._parser().parse_args(arguments).workers == 7


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        prepare.main(['--help'])
    assert ended.value.code == 0
    assert 'digits' in capsys.readouterr().out
