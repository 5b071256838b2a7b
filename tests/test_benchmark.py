"""The benchmark command: what it prints and how it refuses; what its timing computes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_jax.benchmarks import end_to_end, prepare, startup, timing
from alexnet_jax.input import pipeline
from configs import tiny
from tests import photographs
from tests.typed_config import typed

ROOT = Path(__file__).resolve().parents[1]


def command(data_dir, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'alexnet_jax.benchmark', *arguments],
        cwd=ROOT,
        env=os.environ | {'TFDS_DATA_DIR': str(data_dir)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'the following arguments are required: WHAT'),
        (['prepare'], "--source='' does not exist; name a folder or a tar"),
        (['prepare', '--source=configs'], 'configs contains no JPEG or PNG files'),
        (['flying'], "argument WHAT: invalid choice: 'flying' (choose from "),
        (['input', 'output'], 'unexpected argument output'),
        (['layers', '--against=torch'], '--against is an option of step, not of layers'),
        (['step', '--synthetic=20'], '--synthetic is an option of input, not of step'),
        (['prediction', '--sweep'], '--sweep is an option of step, not of prediction'),
        (['step', '--against=caffe'], "argument --against: invalid choice: 'caffe'"),
        (['input', '--synthetic=-1'], '--synthetic=-1 must be at least 1'),
        (['step', '--config.data.image_shape=()'], 'config.data.image_shape must be set here'),
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


def test_preparing_is_compared_with_decoding(tmp_path, monkeypatch):
    source = tmp_path / 'photographs.tar'
    files = [(f'{synset}.JPEG', data) for synset, data in photographs.sample(16)]
    source.write_bytes(photographs.tar_bytes(files))
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


@pytest.mark.slow
def test_synthetic_images(tmp_path):
    """As pixels and as JPEG; the temporary files are gone afterwards."""
    done = command(
        tmp_path,
        'input',
        '--synthetic=20',
        '--config.data.image_shape=(24, 32, 3)',
        '--config.augment.crop_px=24',
        '--config.training.batch_size=8',
        '--json',
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['synthetic_images'] == 20
    for kind in ('raw', 'jpeg'):
        assert result[f'{kind}_images_per_second'] > 0
        assert result[f'{kind}_images_per_second_per_core'] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_is_measured(tmp_path, monkeypatch):
    values = tiny.get_config()
    values.data.dir = str(tmp_path)
    config = typed(values)
    monkeypatch.setattr(startup, '_import_s', lambda: 1.5)
    result = startup.measure(config)
    parts = ('imports_s', 'build_s', 'init_s', 'first_batch_s', 'first_step_s')
    assert result['imports_s'] == 1.5
    assert result['total_s'] == pytest.approx(sum(result[part] for part in parts))
    assert result['second_step_s'] < result['first_step_s']  # which compiled

    monkeypatch.setattr(end_to_end, '_ROUND_S', 0.05)
    batches = pipeline.train_batches
    delay_s = 0.1  # of each batch: a step takes less

    def slow(*arguments, **named):
        for batch in batches(*arguments, **named):
            time.sleep(delay_s)
            yield batch

    monkeypatch.setattr(pipeline, 'train_batches', slow)
    result = end_to_end.measure(config)
    assert result['end_to_end_images_per_second'] <= config.training.batch_size / delay_s
    assert result['step_images_per_second'] > result['end_to_end_images_per_second']
    assert 0 < result['ratio_min'] <= result['ratio'] <= result['ratio_max'] < 1
    assert 0.2 < result['data_wait'] < 1


CACHE = """
import sys, jax
from alexnet_jax import main
seen = {'hits': 0, 'misses': 0}
def listen(event, **_):
    kind = event.removeprefix('/jax/compilation_cache/cache_')
    seen[kind] = seen.get(kind, 0) + 1
jax.monitoring.register_event_listener(listen)
try:
    main.main()
finally:
    print(seen['hits'], seen['misses'])
"""


@pytest.mark.slow
def test_the_second_start_compiles_less(tmp_path):
    cache = f'--config.training.compilation_cache_dir={tmp_path / "cache"}'

    def start() -> tuple[list[int], set[str]]:
        done = subprocess.run(
            [sys.executable, '-c', CACHE, '--config=configs/tiny.py', '--dry_run', cache],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(word) for word in done.stdout.splitlines()[-1].split()], {
            path.name for path in (tmp_path / 'cache').iterdir()
        }

    (hits, misses), kept = start()
    assert hits == 0
    assert misses > 0
    assert any('train_step' in name for name in kept)
    (hits, misses), kept_then = start()
    assert hits > 0
    assert misses == 0
    assert kept_then == kept
