"""The benchmark command: what it prints and how it refuses; what its timing computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.benchmarks import prepare, timing
from tests import photographs

ROOT = Path(__file__).resolve().parents[1]


def command(data_dir, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'alexnet_jax.benchmark', *arguments],
        cwd=ROOT,
        env=os.environ | {'TFDS_DATA_DIR': str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'say what to do, one of step, layers, input, '),
        (['prepare'], "--source='': name a folder or a tar"),
        (['prepare', '--source=configs'], 'configs holds no JPEG or PNG files'),
        (['flying'], "'flying' is none"),
        (['input', 'output'], "'output' is not a flag"),
        (['input'], "data set 'imagenet2012' is not in "),  # the paper's configuration
        (['input', '--config.seedd=1'], 'did you mean config.seed?'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
    assert words in done.stderr
    assert not done.stdout


def test_cases_take_turns_and_warming_up_is_not_counted(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])

    def case(name, *durations):
        left = iter(durations)

        def call():
            calls.append(name)
            clock[0] += next(left)

        return call

    seconds = timing.interleaved(
        {'a': case('a', 50, 1, 2, 3), 'b': case('b', 60, 4, 5, 6)}, rounds=3
    )
    assert seconds == {'a': [1, 2, 3], 'b': [4, 5, 6]}
    assert ''.join(calls) == 'baabbaab'  # each round begins with the next case
    assert timing.rates('speed', 12, seconds['a']) == {
        'speed': 6,
        'speed_min': 4,
        'speed_max': 12,
    }
    assert timing.paired_ratio('ratio', seconds['a'], seconds['b']) == {
        'ratio': 0.4,
        'ratio_min': 0.25,
        'ratio_max': 0.5,
    }


def test_json_is_the_last_line(tmp_path):
    done = command(tmp_path, 'input', '--config=configs/tiny.py', '--json')
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result['data_set'] == 'digits/1.0.0'
    assert [line.split()[0] for line in table] == list(result)
    assert 0 < result['images_per_second_min'] <= result['images_per_second']


def test_preparing_is_compared_with_decoding(monkeypatch):
    source = photographs.shared_file('imagenet_sample.tar')
    monkeypatch.setattr(prepare, '_DISTINCT', 12)  # fewer than are asked for
    result = prepare.measure(str(source), count=32, rounds=1)
    assert all(value > 0 for value in result.values())
    per_core = {
        part: result[f'{part}_per_second_per_core']
        for part in ('decode_resize', 'records_1', 'records_2', 'statistics')
    }
    assert result['records_1_to_decode_resize'] == pytest.approx(
        per_core['records_1'] / per_core['decode_resize']
    )
    both = 1 / (1 / per_core['records_1'] + 1 / per_core['statistics'])
    assert result['with_statistics_to_decode_resize'] == pytest.approx(
        both / per_core['decode_resize']
    )
    # Starting two processes takes longer than 32 photographs: their time is in it.
    assert per_core['records_2'] < per_core['records_1']
    assert result['speedup_of_2_workers'] == pytest.approx(
        result['records_2_per_second'] / result['records_1_per_second']
    )
