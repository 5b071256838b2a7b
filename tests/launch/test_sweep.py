"""launch/sweep_list.py reads the list of a sweep, and launch/sweep.sh trains its runs in turn."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_jax.training import config as config_lib
from configs import imagenette_small, modern
from tests.local_run import QUICK, losses, rows

ROOT = Path(__file__).resolve().parents[2]
SHARED = ['--config=x.py', '--workdir=DIR']


def read(*arguments: str) -> list[list[str]]:
    """Return the runs that the list makes."""
    command = [sys.executable, 'launch/sweep_list.py', *arguments]
    out = subprocess.check_output(command, cwd=ROOT)
    runs = out.decode().split('\0\0')
    assert runs.pop() == ''
    return [run.split('\0') for run in runs]


@pytest.fixture
def write(tmp_path):
    """Write a list and return its path."""

    def write(text: str) -> str:
        path = tmp_path / 'list of runs'
        path.write_text(text)
        return str(path)

    return write


def test_each_line_is_a_run_with_each_seed(write):
    path = write("# a comment, it's skipped\n\n  \na\n  b.2 --config.x.y=1 --config=y.py\n")
    shared = ['--data_dir=D E', '--config=x.py', '--config.z=2']
    assert read(path, '--seeds=0,12', '--workdir=DIR', *shared) == [
        [*shared, *overrides, f'--config.seed={seed}', f'--workdir=DIR/{name}_seed{seed}']
        for name, overrides in (('a', []), ('b.2', ['--config.x.y=1', '--config=y.py']))
        for seed in (0, 12)
    ]


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*.txt')), ids=lambda f: f.stem)
def test_the_lists_of_the_repository_load(file):
    config = file.with_suffix('.py')
    for run in read(str(file), f'--config={config}', '--workdir=DIR'):
        config_lib.load(config, [word for word in run if word.startswith('--config.')])


def test_the_small_modern_run_has_the_recipe_of_modern():
    runs = read('configs/imagenette_small.txt', *SHARED)
    (words,) = (run for run in runs if run[-1] == '--workdir=DIR/modern_seed0')
    overrides = [word for word in words if word.startswith('--config.')]
    got = config_lib.load(ROOT / 'configs/imagenette_small.py', overrides)
    want = modern.use_recipe(imagenette_small.get_config())
    want.optim.warmup_epochs = 1.33  # 40 epochs in place of 150
    assert got == config_lib.Config.from_dict(want.to_dict())


@pytest.mark.parametrize(
    ('written', 'value'),
    [
        ('(0.08,1.0)', '(0.08,1.0)'),
        ('"(0.08, 1.0)"', '(0.08, 1.0)'),
        ('\'a "b" $HOME `ls` *\'', 'a "b" $HOME `ls` *'),
        ('$HOME/*', '$HOME/*'),
        (r'a\ b', 'a b'),
        ('a#b=c', 'a#b=c'),
        ("''", ''),
        ('ü;|&', 'ü;|&'),
    ],
)
def test_values_are_quoted_as_in_a_shell_and_nothing_is_expanded(write, written, value):
    [[_, override, seed, workdir]] = read(write(f'a --config.x.y={written}'), *SHARED)
    assert override == f'--config.x.y={value}'
    assert (seed, workdir) == ('--config.seed=0', '--workdir=DIR/a_seed0')


def test_windows_line_ends_and_a_slash_at_the_end_of_the_workdir(write):
    runs = read(write('\ufeffa\r\nb\r\n'), '--config=x.py', '--workdir=DIR/')
    assert [run[-1] for run in runs] == ['--workdir=DIR/a_seed0', '--workdir=DIR/b_seed0']


@pytest.mark.parametrize(
    ('text', 'options', 'error'),
    [
        ('', SHARED, 'LIST has no runs; write one a line: NAME --config.FIELD=VALUE'),
        ('# a\n\n', SHARED, 'LIST has no runs; '),
        ('a\n\na', SHARED, 'LIST, line 3: the name a is also that of LIST, line 1; change one'),
        ('a/b', SHARED, "LIST, line 1: 'a/b' is not a name; "),
        ('..', SHARED, "LIST, line 1: '..' is not a name; "),
        ("''", SHARED, "LIST, line 1: '' is not a name; "),
        ('--config.x=1', SHARED, "LIST, line 1: '--config.x=1' is not a name; "),
        ('a x=1', SHARED, "LIST, line 1: 'x=1' is not --config=FILE or --config.FIELD=VALUE; "),
        ('a --config.x 1', SHARED, "LIST, line 1: '--config.x' is not --config=FILE or "),
        ('a --workdir=b', SHARED, "LIST, line 1: '--workdir=b' is not --config=FILE or "),
        ('a --config.seed=1', SHARED, 'LIST, line 1: --config.seed=1: give the seeds of all runs '),
        ('a # b', SHARED, 'LIST, line 1: a comment needs a line of its own'),
        ('a "b', SHARED, 'LIST, line 1: No closing quotation; quote values as in a shell'),
        ('a\0', SHARED, 'LIST is not a text file: it contains a zero byte'),
        ('a', SHARED[:1], '--workdir=DIR, the folder of all runs, is missing; '),
        ('a', SHARED[1:], 'LIST, line 1: --config=FILE is missing; '),
        ('a', [*SHARED, '--sedes=1'], "the command line: '--sedes=1' is not --workdir=DIR, "),
        ('a', [*SHARED, '--config.seed=1'], 'the command line: --config.seed=1: give the seeds '),
        *(
            ('a', [*SHARED, f'--seeds={seeds}'], f'--seeds={seeds} must be different whole numbers')
            for seeds in ('', '0,', '0,0', '01', '-1', '0 1')
        ),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_starts(write, text, options, error):
    path = write(text)
    run = subprocess.run(
        ['launch/sweep.sh', path, *options],
        cwd=ROOT,
        # Anything else that it started would be an error of its own.
        env=os.environ | {'PYTHON': sys.executable, 'PYTHONPATH': '/nowhere'},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (2, '')
    message = run.stderr.replace(f'the list {path}', 'LIST').replace(path, 'LIST')
    assert message.startswith(f'error: {error}')
    assert message.count('\n') == 1


@pytest.mark.parametrize(
    'arguments', [[], ['--workdir=DIR', '--config=x.py'], ['/no list', *SHARED]]
)
def test_without_a_list(arguments):
    command = [sys.executable, 'launch/sweep_list.py', *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert re.fullmatch('error: the list .*(must come first|cannot be read).*\n', run.stderr)


def test_the_list_of_the_page_can_be_trained(write):
    page = (ROOT / 'docs' / 'running.md').read_text()
    text = re.search(
        r'<!-- file: sweep.txt -->\n```\w*\n(.*?)^```$', page, re.DOTALL | re.MULTILINE
    )
    command = re.search(r'^launch/sweep\.sh sweep\.txt (.*)$', page, re.MULTILINE)
    assert text
    assert command
    runs = read(write(text[1]), *command[1].split())
    assert len({run[-1] for run in runs}) == 12
    for run in runs:
        file, *overrides = [word for word in run if word.startswith('--config')]
        config_lib.load(ROOT / file.removeprefix('--config='), overrides)


# In place of python: a run records its workdir and behaves as the file of its name says.
PYTHON = r"""#!/bin/bash
if [[ $1 == launch/* ]]; then exec "$REAL" "$@"; fi
if [[ $2 == alexnet_jax.report ]]; then echo "$*"; exit; fi
for word; do
  case $word in
    --workdir=*) name=${word##*/} ;;
    --first_step_file=*) first_step_file=${word#*=} ;;
  esac
done
echo "$name" >>"$RECORD/started"
if [[ -e $RECORD/$name ]]; then source "$RECORD/$name"; fi
"""
LIST = 'a\nb\nc\n'


@pytest.fixture
def sweep(tmp_path, write):
    """Start the sweep of `LIST` with stand-ins for python; `behaviour` is bash for each run."""
    python = tmp_path / 'python'
    python.write_text(PYTHON)
    python.chmod(0o755)
    path = write(LIST)

    def start(behaviour: dict[str, str], *options: str, **environment: str) -> subprocess.Popen:
        for name, text in behaviour.items():
            (tmp_path / name).write_text(text)
        return subprocess.Popen(
            [ROOT / 'launch' / 'sweep.sh', path, *SHARED, *options],
            cwd='/',
            env=os.environ
            | {'PYTHON': str(python), 'REAL': sys.executable, 'RECORD': str(tmp_path)}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def started(tmp_path: Path) -> list[str]:
    path = tmp_path / 'started'
    return path.read_text().split() if path.exists() else []


def test_the_runs_follow_one_another_and_the_table_comes_last(sweep, tmp_path):
    run = sweep({}, '--seeds=3,4')
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert out == '-m alexnet_jax.report compare --runs=DIR --baseline=a_seed3\n'
    names = [f'{name}_seed{seed}' for name in 'abc' for seed in (3, 4)]
    assert started(tmp_path) == names
    assert err.splitlines() == [
        f'launch/sweep.sh: run {number} of 6: {name}' for number, name in enumerate(names, 1)
    ]


def test_after_a_failure_the_sweep_goes_on_and_names_it_at_the_end(sweep, tmp_path):
    run = sweep({'b_seed0': 'exit 2', 'c_seed1': 'exit 1', 'a_seed0': 'exit 139'}, '--seeds=0,1')
    out, err = run.communicate(timeout=60)
    assert run.returncode == 139
    assert len(started(tmp_path)) == 6
    assert out.endswith('--baseline=a_seed1\n')
    assert err.splitlines()[-1] == (
        'error: these runs failed, the output above says why: '
        'a_seed0 (exit code 139), b_seed0 (exit code 2), c_seed1 (exit code 1)'
    )


@pytest.mark.parametrize('code', [75, 134, 137])
def test_a_run_that_may_go_on_is_started_again_so_many_times(sweep, tmp_path, code):
    run = sweep({'b_seed0': f'touch "$first_step_file"; exit {code}'}, MAX_RESTARTS='2')
    _, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert started(tmp_path) == ['a_seed0', *['b_seed0'] * 3, 'c_seed0']
    assert f'exit code {code}: restart 2 of at most 2' in err


def test_a_run_that_did_no_step_is_not_started_again(sweep, tmp_path):
    run = sweep({'b_seed0': 'exit 75'})
    _, err = run.communicate(timeout=60)
    assert run.returncode == 3
    assert started(tmp_path) == ['a_seed0', 'b_seed0', 'c_seed0']
    assert err.endswith('b_seed0 (exit code 3)\n')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('end', ['exit {code}', 'exit 0', 'exit 1'])
def test_a_signal_reaches_the_run_and_no_other_is_started(sweep, tmp_path, number, end):
    code = 128 + number
    save = f"trap 'sleep 0.3; touch {tmp_path}/saved; {end.format(code=code)}' TERM INT"
    run = sweep({'b_seed0': f'{save}; touch {tmp_path}/ready; while :; do sleep 0.05; done'})
    while not (tmp_path / 'ready').exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (code, '')
    assert started(tmp_path) == ['a_seed0', 'b_seed0']
    assert (tmp_path / 'saved').exists()
    assert err.endswith('launch/sweep.sh: stopped; to go on, run the same command again\n')


def test_when_someone_stops_the_run_itself_the_sweep_stops(sweep, tmp_path):
    run = sweep({'b_seed0': 'exit 143'})
    out, _ = run.communicate(timeout=60)
    assert (run.returncode, out) == (143, '')
    assert started(tmp_path) == ['a_seed0', 'b_seed0']


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_stopped_goes_on_and_what_is_finished_is_skipped(write, tmp_path):
    """Two lines and a wrong one between them; SIGTERM in the last run, then the same command."""
    path = write(
        'a\nwrong --config.model.dropuot=0\nb "--config.augment.resized_crop_area=(.5, 1)"'
    )
    command = [ROOT / 'launch' / 'sweep.sh', path, '--config=configs/tiny.py']
    command += [f'--workdir={tmp_path}/runs', f'--data_dir={tmp_path}/data']
    command += ['--config.log.tensorboard=false', '--config.training.eval_every_epochs=0']
    command += ['--config.evaluation.final_views=1', '--config.optim.schedule=constant']
    path_b = tmp_path / 'runs' / 'b_seed0'

    def start(*options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, *options],
            env=os.environ | QUICK | {'PYTHON': sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    steps = '--config.training.total_steps=150'  # so many that the signal comes in time
    first = start(steps)
    while not losses(path_b):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=200)
    assert first.returncode == 143, out
    [stopped] = [row['step'] for row in rows(path_b) if row.get('event') == 'stopped']
    assert 0 < stopped < 150

    second = start(steps)
    out, _ = second.communicate(timeout=400)
    assert second.returncode == 2, out
    assert out.count('nothing to train') == 1
    assert f'nothing to train: {tmp_path}/runs/a_seed0 is at step 150 of 150' in out
    assert [r['step'] for r in rows(path_b) if r.get('event') == 'resumed'] == [stopped]
    assert list(losses(path_b)) == list(range(1, 151))
    assert '\n| nothing: the baseline |' in out
    assert '\n| `augment.resized_crop_area = (0.5, 1)` |' in out
    assert out.endswith(
        'error: these runs failed, the output above says why: wrong_seed0 (exit code 2)\n'
    )
    assert 'did you mean config.model.dropout' in out
