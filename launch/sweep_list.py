"""Read the list of a sweep for launch/sweep.sh and launch/slurm/sweep.sbatch.

    python launch/sweep_list.py LIST OPTIONS          # all runs
    python launch/sweep_list.py --task=I LIST OPTIONS # run I, from 0, a task of a job array

It prints the arguments of alexnet_jax.main for each run, each argument ended by a NUL and each run
by one more; the last argument of a run is its workdir. launch/sweep.sh says what a list and the
options are. The runs have the order of the lines, and those of one line that of the seeds. A
mistake ends with one line and exit code 2.
"""

import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

OVERRIDE = '--config.'
_EXAMPLE = 'LIST --config=configs/digits.py --workdir=runs/sweep --seeds=0,1,2'


class Mistake(Exception):
    """A mistake in the list or in the options: one line that names it and the remedy."""


def runs(file: str, options: Sequence[str]) -> list[list[str]]:
    """Return the arguments of each run; raise Mistake."""
    if not file or file.startswith('-'):
        raise Mistake(f'the list of runs must come first, for example: {_EXAMPLE}')
    workdir, seeds, shared = _options(options)
    found = []
    for where, name, overrides in _lines(file):
        if not any(word.startswith('--config=') for word in (*shared, *overrides)):
            raise Mistake(f'{where}: --config=FILE is missing; give it after the list or here')
        for seed in seeds:
            place = f'--workdir={workdir}/{name}_seed{seed}'
            found.append([*shared, *overrides, f'{OVERRIDE}seed={seed}', place])
    return found


def _options(options: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Return the folder of the workdirs, the seeds, and the arguments that all runs share."""
    workdir, seeds, shared = '', '0', []
    for option in options:
        name, _, value = option.partition('=')
        if name == '--workdir':
            workdir = value.rstrip('/')
        elif name == '--seeds':
            seeds = value
        elif name == '--data_dir' and value:
            shared.append(option)
        else:
            shared.append(_override(option, 'the command line'))
    if not workdir:
        raise Mistake(f'--workdir=DIR, the folder of all runs, is missing; for example: {_EXAMPLE}')
    each = seeds.split(',')
    if not all(re.fullmatch('0|[1-9][0-9]*', seed) for seed in each) or len(set(each)) < len(each):
        raise Mistake(f'--seeds={seeds} must be different whole numbers, for example --seeds=0,1,2')
    return workdir, each, shared


def _lines(file: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the place, the name and the overrides of each line that is not empty or a comment."""
    try:
        text = pathlib.Path(file).read_text(encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not UTF-8'
        raise Mistake(f'the list {file} cannot be read: {reason}; name a text file') from error
    if '\0' in text:
        raise Mistake(f'the list {file} is not a text file: it contains a zero byte')
    names: dict[str, str] = {}
    for number, line in enumerate(text.split('\n'), start=1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        where = f'{file}, line {number}'
        try:
            name, *words = shlex.split(line)
        except ValueError as error:
            raise Mistake(f'{where}: {error}; quote values as in a shell') from error
        if not re.fullmatch('[A-Za-z0-9][A-Za-z0-9_.,=+-]*', name):
            raise Mistake(
                f'{where}: {name!r} is not a name; begin the line with one of letters, digits and '
                '_ . , = + -, the first a letter or a digit'
            )
        if name in names:
            raise Mistake(f'{where}: the name {name} is also that of {names[name]}; change one')
        names[name] = where
        yield where, name, [_override(word, where) for word in words]
    if not names:
        raise Mistake(f'the list {file} has no runs; write one a line: NAME {OVERRIDE}FIELD=VALUE')


def _override(word: str, where: str) -> str:
    """Return the word if it is --config=FILE or an override of a field; raise Mistake."""
    if re.match(f'{re.escape(OVERRIDE)}seed(=|$)', word):
        raise Mistake(f'{where}: {word}: give the seeds of all runs by --seeds=0,1,2')
    if word.startswith('#'):
        raise Mistake(f'{where}: a comment needs a line of its own')
    if not re.match(rf'(--config|{re.escape(OVERRIDE)}[a-z][\w.]*)=', word):
        known = f'--config=FILE or {OVERRIDE}FIELD=VALUE'
        if where == 'the command line':
            known = f'--workdir=DIR, --seeds=0,1,2, --data_dir=DIR, {known}'
        raise Mistake(f'{where}: {word!r} is not {known}; correct it')
    return word


def _task(found: Sequence[list[str]], task: str) -> list[str]:
    if not task.isdecimal() or int(task) >= len(found):
        last = len(found) - 1
        given = f'task {task} of the job array is not there' if task else 'there is no job array'
        raise Mistake(f'{given}; the list and the seeds make {last + 1} runs: --array=0-{last}')
    name = found[int(task)][-1].rpartition('/')[2]
    print(f'task {task} of 0 to {len(found) - 1}: {name}', file=sys.stderr)
    return found[int(task)]


def main(arguments: Sequence[str]) -> int:
    """Print the runs and return the exit code."""
    is_task = bool(arguments) and arguments[0].startswith('--task=')
    rest = arguments[1:] if is_task else arguments
    try:
        found = runs(''.join(rest[:1]), rest[1:])
        if is_task:
            found = [_task(found, arguments[0].removeprefix('--task='))]
    except Mistake as mistake:
        print(f'error: {mistake}', file=sys.stderr)
        return 2
    words = (word for run in found for word in (*run, ''))
    sys.stdout.buffer.write(b''.join(os.fsencode(word) + b'\0' for word in words))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
