"""The command line: what is printed, where files go, and one line for each mistake."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax import main

ROOT = Path(__file__).resolve().parents[1]
TINY = '--config=configs/tiny.py'


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command in this process; return (exit code, standard output, standard error)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main.main(arguments)
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], r'--config is missing; for example --config=configs/digits\.py'),
        (['--config=configs/none.py'], r'--config=configs/none\.py is not a file'),
        ([TINY, '--config.sed=1'], r'config\.sed is not a field; did you mean config\.seed\?'),
        ([TINY, '--config.model.towrs=1'], r'did you mean config\.model\.towers\?'),
        ([TINY, '--config.modl.towers=1'], r'did you mean config\.model\.towers\?'),
        ([TINY, '--config.model=1'], r'config\.model is not a field'),
        ([TINY, '--config.model.towers=two'], r'--config\.model\.towers=two: invalid literal'),
        ([TINY, '--config.log.tensorboard=maybe'], r'--config\.log\.tensorboard=maybe'),
        ([TINY, '--mode=check', '--check_steps=0'], r'check_steps'),
        ([TINY, '--config.training.batch_size=15'], r'batch_size = 15 must be a multiple of 2'),
        ([TINY, '--config.parallel.model=3'], r'parallel\.model = 3 must be one of 1, 2, 4, 8'),
        ([TINY, '--config.parallel.backend=xmap'], r'backend = .xmap. must be one of shard_map, p'),
        ([TINY, '--config.parallel.data=7'], r'needs 14 devices and there are 8'),
        ([TINY, '--config.model.num_classes=7'], r'set --config\.model\.num_classes=10'),
        ([TINY, '--config.seedd', '1'], r'did you mean config\.seed\?'),
        ([TINY, '-config.seed=1'], r'unknown option -config\.seed'),
        ([TINY, '--config.augment.crop_px=2'], r'crop_px = 2 is too small: .* has no output'),
        (
            [TINY, '--config.data.image_shape=()', '--config.augment.crop_px=9'],
            r'crop_px = 9 is lar',
        ),
        ([TINY, '--workdir=/proc/no/such'], r'cannot write to /proc/no/such'),
        ([TINY, '--workdir=gs://bucket/run'], r'--workdir: gs://bucket/run is not a path in'),
        ([TINY, '--config.seed'], r'--config\.seed has no value'),
        ([TINY, '--config.data.name', '--config.seed=1'], r'--config\.data\.name has no value'),
        (['--config.seed=-1', TINY], r'config\.seed = -1 must be an integer from 0 to'),
        ([TINY, '--config.seed', '-1'], r'config\.seed = -1 must be an integer from 0 to'),
        ([TINY, '--config'], r'argument --config: expected one argument'),
        ([TINY, '--mode=fly'], r"--mode: invalid choice: 'fly' .*train'?, '?evaluate'?, '?check"),
        ([TINY, '--wrkdir=x'], r'unknown option --wrkdir; did you mean --workdir\?'),
        ([TINY, '--work=x'], r'unknown option --work;'),
        ([TINY, 'extra'], r'unexpected argument extra'),
        ([TINY, '--check_steps=many'], r"--check_steps: invalid int value: 'many'"),
        ([TINY, '--config.data.name=nothing'], r"data set 'nothing' is not in "),
        ([TINY, '--config.data.name=[d]*'], r"data set '\[d\]\*' is not in "),
        (
            [TINY, '--data_dir=/dev/null', '--config.data.name=x'],
            r'/dev/null: Not a dir',
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, arguments, words):
    code, out, err = command(*arguments)
    lines = [line for line in err.splitlines() if not re.match(r'\d\d:\d\d:\d\d ', line)]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith('error: ')
    assert re.search(words, lines[0]), lines[0]
    assert not out


def test_imagenet_absent_is_one_line_with_the_command_that_makes_it(command, tmp_path):
    code, _, err = command('--config=configs/alexnet.py', f'--workdir={tmp_path / "run"}')
    assert code == 2
    assert err.count('\n') == 1
    assert "data set 'imagenet2012' is not in" in err
    assert str(tmp_path / 'data') in err
    assert 'to prepare it: python -m alexnet_jax.prepare imagenet --source DIR --data_dir=' in err
    assert not (tmp_path / 'run').exists()


def test_a_broken_config_file_is_one_line(command, tmp_path):
    broken = tmp_path / 'broken.py'
    broken.write_text('def get_config():\n    return undefined_name\n')
    code, _, err = command(f'--config={broken}')
    assert code == 2
    assert err.count('\n') == 1
    assert 'undefined_name' in err


@pytest.mark.slow
def test_dry_run_of_the_paper_s_network_without_its_data(command, tmp_path):
    code, out, err = command(
        '--config=configs/alexnet.py',
        '--dry_run',
        '--config.parallel.model=2',
        '--config.parallel.data=1',
        '--config.training.batch_size=8',
        f'--workdir={tmp_path / "run"}',
    )
    assert code == 0, err
    assert json.loads(out[: out.index('\n}\n') + 2])['training']['batch_size'] == 8
    assert 'mesh: data 1 x tower 2 x shard 1, 2 of 8 devices (cpu)' in out
    assert re.search(r'conv2\.kernel +\(5, 5, 48, 256\) +axis 3: tower +307,200 +153,600', out)
    assert re.search(r'total +60,965,224 +30,483,112', out)
    assert re.search(r'total +724,406,816', out)
    assert 'training step: 4.1356 GFLOP an image' in out
    # Half of the parameters and as much velocity, float32: 232.6 MiB; 8 images and the mean image.
    state = float(re.search(r'state, batch, statistics +([\d.,]+) MiB', out).group(1))  # pyright: ignore
    assert state == pytest.approx(
        (2 * 30_483_112 * 4 + 8 / 2 * 196_608 + 3 * 262_144) / 2**20, abs=0.2
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_train_evaluate_and_train_again(command, tmp_path):
    """One life of a run: train, evaluate, nothing to train, more steps, another mesh, refusals."""
    workdir = Path(os.path.relpath(tmp_path / 'a run', ROOT))  # as most people give one
    code, out, err = command(TINY, f'--workdir={workdir}')
    assert (code, out) == (0, '')
    assert 'step 12/12' in err
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows if row['kind'] == 'train'] == list(range(1, 13))
    assert [row['step'] for row in rows if row['kind'] == 'eval'] == [5, 9, 12]
    assert rows[0]['event'] == 'started'
    last = rows[-1]
    assert set(last) >= {'eval/top1_error', 'eval/top5_error', 'eval/top1_error_10_views'}
    assert json.loads((workdir / 'config.json').read_text())['training']['total_steps'] == 12
    environment = json.loads((workdir / 'environment.json').read_text())
    assert environment['devices'] == ['cpu', 'cpu']
    assert environment['packages']['jax']
    assert json.loads((workdir / 'data' / 'data.json').read_text())['class_names'][9] == '9'

    another = '--config.optim.lars_trust_coefficient=0.001'  # no matter of an evaluation
    code, out, err = command(TINY, f'--workdir={workdir}', '--mode=evaluate', another)
    assert code == 0, err
    match = re.fullmatch(
        r'step 12 sha256 ([0-9a-f]{64}) top1_error (\d\.\d{4}) top5_error (\d\.\d{4}) '
        r'top1_error_10_views \d\.\d{4} top5_error_10_views \d\.\d{4}',
        out.splitlines()[-1],
    )
    assert match
    assert float(match[2]) == pytest.approx(last['eval/top1_error'], abs=1e-4)

    code, out, err = command(TINY, f'--workdir={workdir}')
    assert code == 0, err
    assert out == f'nothing to train: {workdir} is at step 12 of 12\n'

    code, out, err = command(
        TINY,
        f'--workdir={workdir}',
        '--config.training.total_steps=13',
        '--config.parallel.model=1',
        '--config.optim.learning_rate=0.0001',
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    resumed = next(row for row in rows if row.get('event') == 'resumed')
    assert resumed['step'] == 12
    assert resumed['mesh'] == '1x1x1'
    assert resumed['devices'] == '1 of 8'
    assert resumed['parallel.model'] == '2 -> 1'
    assert resumed['training.total_steps'] == '12 -> 13'
    assert [row['step'] for row in rows if row['kind'] == 'train'] == list(range(1, 14))
    starts = {path.name: path for path in (workdir / 'starts').iterdir()}
    assert starts.keys() == {'1', '2'}, 'where there was nothing to train no run was started'
    for start, steps in (('1', 12), ('2', 13)):
        saved = json.loads((starts[start] / 'config.json').read_text())
        assert saved['training']['total_steps'] == steps
    environment = json.loads((starts['2'] / 'environment.json').read_text())
    assert environment['devices'] == ['cpu']

    before = sorted((workdir / 'checkpoints').rglob('*'))
    for override in ('seed=1', 'training.batch_size=32', 'model.dropout=0.1', 'augment.crop_px=6'):
        code, _, err = command(TINY, f'--workdir={workdir}', f'--config.{override}')
        assert code == 2
        assert f'config.{override.partition("=")[0]} is ' in err
        assert 'choose another --workdir' in err
    assert sorted((workdir / 'checkpoints').rglob('*')) == before


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_the_run_and_saves_nothing_of_it(command, tmp_path):
    workdir = tmp_path / 'run'
    code, _, err = command(TINY, f'--workdir={workdir}', '--config.optim.learning_rate=1e30')
    assert code == 2
    assert re.search(
        r'error: the loss is nan (\(learning rate 1e\+30\)|in the evaluation) at step \d+; ', err
    )
    assert '--config.optim.learning_rate' in err
    steps = [int(p.name) for p in (workdir / 'checkpoints').iterdir()]
    assert all(step <= 1 for step in steps)


def test_evaluate_without_a_checkpoint_is_one_line(command, tmp_path):
    code, _, err = command(TINY, f'--workdir={tmp_path / "none"}', '--mode=evaluate')
    assert code == 2
    assert 'no checkpoint in' in err
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('module', ['main', 'benchmark'])
def test_help_is_short_and_no_mistake(module):
    done = subprocess.run(
        [sys.executable, '-m', f'alexnet_jax.{module}', TINY, '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert 'Exit codes' in done.stdout
    for flag in {'main': ('workdir', 'mode'), 'benchmark': ('json',)}[module]:
        assert f'  --{flag} ' in done.stdout
    assert '  --config ' in done.stdout
    assert '  --data_dir ' in done.stdout
    assert 'verbosity' not in done.stdout  # one of absl's own flags
    assert len(done.stdout.splitlines()) < 40
