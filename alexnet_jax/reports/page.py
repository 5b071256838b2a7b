"""Gather what the page about one run says, and print it as HTML that needs no other file."""

import collections
import contextlib
import dataclasses
import datetime
import itertools
import json
import pathlib
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.reports import accounting, claims, figures, paper, workdirs
from alexnet_jax.reports.accounting import Speed, Start, Time
from alexnet_jax.reports.workdirs import METRICS, Run
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import is_integer, is_number
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import config as config_lib
from alexnet_jax.training.config import Config
from alexnet_jax.visualisation.drawing import Drawing

_TEMPLATE = pathlib.Path(__file__).with_name('page.html.jinja')
_CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
_MOST_CLASSES = 30  # of the table; the rest is in per_class.csv
_MOST_CONFUSIONS = 15
_IMAGE = re.compile(r'data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image of the evaluation and what the network says about it.

    Raises ValueError for an image that is not a PNG or JPEG as a data URI: the page loads no files.
    """

    image: str  # data:image/png;base64,...
    true_name: str
    predictions: Sequence[tuple[str, float]]  # names and probabilities, the best first

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            raise ValueError(f'the image is not a PNG or JPEG as a data URI: {self.image[:40]!r}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one evaluation."""

    step: int
    epoch: float
    errors: Mapping[str, float]  # those of `workdirs.METRICS` that it has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """A number of the paper beside that of this run; errors are in percent."""

    experiment: str
    metric: str
    paper: float | None
    run_2012: float | None
    ours: float
    source: str
    differs: Sequence[str]  # the fields in which the run may and does differ


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What was run, with which versions and on which devices."""

    command: Sequence[str]  # its words, quoted for a shell; none if they were not recorded
    config_file: str  # as the command names it, '' if it does not
    compared_with: str  # the file whose values `changes` begins with, '' for none
    changes: Mapping[str, tuple[str, str]]  # field -> its value in that file and in the run
    git: str
    python: str
    platform: str
    packages: Mapping[str, str]
    devices: str  # '' if they were not recorded
    mesh: str  # of the last start that the log has, '' if it has none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """One start of the run, in words."""

    number: int
    event: str
    first_step: int
    last_step: int
    logged_s: float
    end: str
    changes: Sequence[str]  # fields that it changed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassError:
    """The errors of one class."""

    name: str
    examples: int
    error: float  # the share of its examples that were taken for another class
    precision: float | None  # None if it was never predicted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confusion:
    """How many examples of one class were taken for another."""

    true_name: str
    predicted: str
    count: int
    share: float  # of the examples of the true class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """A report of each class, as `evaluation.report_dir` has it, worst first."""

    about: str
    classes: Sequence[ClassError]
    left_out: int  # classes that are not listed
    empty: int  # classes without examples
    confusions: Sequence[Confusion]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """An event of the log."""

    step: int
    epoch: float
    time_s: float
    name: str
    details: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """All that the page says about a run, without the figures and the examples."""

    name: str
    data: str
    step: int
    epoch: float
    is_finished: bool
    planned: str
    last: Evaluation | None
    best: Evaluation | None  # of all evaluations, by the top-1 error with one crop
    evaluations: int
    compared: Sequence[Compared]
    conditions: Conditions
    starts: Sequence[Begun]
    begun_at: Sequence[datetime.datetime]  # dates of the folders in `starts/`
    elapsed_s: float | None  # from the first of these to the last row, None if not known
    classes: Classes | None
    speed: Speed | None
    time: Time | None
    events: Sequence[Event]
    notes: Sequence[str]  # what the files of the run show that is not an event


def gather(path: epath.Path, class_report: epath.Path | None = None) -> Page:
    """Return what the page about a run says; it may still go on.

    Args:
      path: the workdir.
      class_report: the folder of a report of each class; by default `class_report` in the workdir,
        if that has one.

    Raises UserError, in one line, for a folder that is not a workdir and for damaged files.
    """
    return _gather(path, workdirs.read_run(path), class_report)


def write(
    path: epath.Path,
    output: epath.Path,
    class_report: epath.Path | None = None,
    examples: Callable[[], Sequence[Example]] = tuple,
) -> Page:
    """Write the page about a run to a file and return what it says; see `gather`.

    `examples` is called once the run was found to be one.
    """
    run = workdirs.read_run(path)
    page = _gather(path, run, class_report)
    with _damage_named(path):
        drawings = figures.draw_run(run)
    text = html(page, drawings, examples())
    with storage.writing(output):
        storage.replace(output, text.encode())
    return page


def html(page: Page, drawings: Sequence[Drawing], examples: Sequence[Example] = ()) -> str:
    """Return the page as HTML; it loads nothing, and all texts of the run are escaped.

    Raises UserError if Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError('the page needs Jinja2; pip install "jinja2>=3.1.6,<4"') from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        'percent': lambda share: f'{100 * share:.2f}\u00a0%',
        'whole_percent': lambda share: f'{100 * share:.1f}\u00a0%',
        'count': lambda number: f'{number:,}',
        'figure': lambda value: '' if value is None else f'{value:.4f}'.rstrip('0').rstrip('.'),
        'speed': lambda value: f'{value:,.0f}' if value >= 100 else f'{value:.1f}',
        'duration': duration,
        'date': lambda at: f'{at:%Y-%m-%d %H:%M:%S} UTC',
        'metric': _in_words,
    }
    template = environment.from_string(_TEMPLATE.read_text())
    return template.render(page=page, drawings=drawings, examples=examples) + '\n'


def duration(seconds: float) -> str:
    """Return seconds in words with two units: `42.1 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    if round(seconds, 1) < 60:
        return f'{seconds:.1f} s'
    for size, large, part, small in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min')):
        if seconds >= size - part / 2:
            whole, rest = divmod(round(seconds / part), size // part)
            return f'{whole} {large} {rest} {small}'
    whole, rest = divmod(round(seconds), 60)
    return f'{whole} min {rest} s'


def as_json(page: Page) -> dict[str, Any]:
    """Return the figures of the page for `--json`."""
    values = dataclasses.asdict(page)
    values['begun_at'] = [at.isoformat() for at in page.begun_at]
    if page.time:
        values['time'] |= {'wait_share': page.time.wait_share, 'goodput': page.time.goodput}
    return values


def _gather(path: epath.Path, run: Run, class_report: epath.Path | None) -> Page:
    environment = workdirs.read_json(path / 'environment.json')
    default = path / 'class_report'
    if class_report is None and (default / 'report.json').is_file():
        class_report = default
    with _damage_named(path):
        dates = _dates(path)
        starts = accounting.starts_of(run.rows)
        time = accounting.time_of(run.rows, run.fields['training.batch_size'], len(dates))
        evaluations = [_evaluation(row) for row in run.rows if row['kind'] == 'eval']
        known = [e for e in evaluations if METRICS[0] in e.errors]
        reason = workdirs.why_unfinished(run)
        page = Page(
            name=run.name,
            data=claims.data_of(run),
            step=run.step,
            epoch=run.epoch,
            is_finished=not reason,
            planned=_planned(run),
            last=evaluations[-1] if evaluations else None,
            best=min(known, key=lambda e: e.errors[METRICS[0]]) if known else None,
            evaluations=len(evaluations),
            compared=[] if reason else _compared(run),
            conditions=_conditions(run, environment, starts),
            starts=[_begun(start, not reason) for start in starts],
            begun_at=dates,
            elapsed_s=_elapsed_s(path, dates, time),
            classes=None,
            speed=accounting.speed_of(run.rows),
            time=time,
            events=[_event(row) for row in run.rows if row['kind'] == 'event'],
            notes=_notes(path, len(starts), len(dates)),
        )
    return dataclasses.replace(page, classes=_classes(class_report)) if class_report else page


@contextlib.contextmanager
def _damage_named(path: epath.Path) -> Iterator[None]:
    """Turn an error that damaged files of a run cause in the body into a UserError of one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise UserError(
            f'the files of the run {path} are damaged ({reason}); restore them from a copy'
        ) from error


def _in_words(metric: str) -> str:
    """Return `top-1 error with ten views` for `eval/top1_error_10_views`."""
    words = metric.removeprefix('eval/').replace('top1_', 'top-1 ').replace('top5_', 'top-5 ')
    return words.replace('error_10_views', 'error with ten views')


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    errors = {name: float(row[name]) for name in METRICS if name in row}
    return Evaluation(step=int(row['step']), epoch=float(row['epoch']), errors=errors)


def _planned(run: Run) -> str:
    steps, epochs = run.fields['training.total_steps'], run.fields['training.total_epochs']
    return f'{steps:,} steps' if steps else f'{epochs:g} epochs'


def _compared(run: Run) -> list[Compared]:
    """Return the claims about the run itself, without those that compare it with another run."""
    found = []
    for experiment in paper.EXPERIMENTS:
        if claims.is_of(experiment, run):
            differs = [] if experiment.members else claims.differences(experiment, run)
            for claim in paper.CLAIMS:
                of_run = claim.experiment == experiment.name and claim.metric in run.metrics
                has_number = claim.paper is not None or claim.run_2012 is not None
                if of_run and has_number and not claim.less and not claim.times:
                    scale = 100 if claim.metric in METRICS else 1
                    found.append(
                        Compared(
                            experiment=experiment.name,
                            metric=_in_words(claim.metric),
                            paper=claim.paper,
                            run_2012=claim.run_2012,
                            ours=scale * run.metrics[claim.metric],
                            source=claim.source,
                            differs=[f'{name} = {run.fields[name]}' for name in differs],
                        )
                    )
    return found


def _conditions(run: Run, environment: Mapping[str, Any], starts: Sequence[Start]) -> Conditions:
    arguments = [str(argument) for argument in environment.get('arguments', [])]
    named = _option(arguments, '--config')
    base, values = _base(named)
    changes = {}
    if base:
        names = sorted(name for name in {*values, *run.fields})
        pairs = {name: (values.get(name), run.fields.get(name)) for name in names}
        changes = {n: (_value(a), _value(b)) for n, (a, b) in pairs.items() if a != b}
    counts = collections.Counter(str(device) for device in environment.get('devices', []))
    meshes = [str(start.details['mesh']) for start in starts if 'mesh' in start.details]
    return Conditions(
        command=['python -m alexnet_jax.main', *map(shlex.quote, arguments)] if arguments else [],
        config_file=named,
        compared_with=base,
        changes=changes,
        git=str(environment.get('git', '')),
        python=str(environment.get('python', '')),
        platform=str(environment.get('platform', '')),
        packages={str(k): str(v) for k, v in environment.get('packages', {}).items()},
        devices=', '.join(f'{count} x {kind}' for kind, count in counts.items()),
        mesh=meshes[-1] if meshes else '',
    )


def _option(arguments: Sequence[str], name: str) -> str:
    """Return the value of an option, `--name=value` or `--name value`, or ''."""
    value = ''
    for argument, following in itertools.pairwise([*arguments, '']):
        if argument == name:
            value = following
        elif argument.startswith(f'{name}='):
            value = argument.partition('=')[2]
    return value


def _base(named: str) -> tuple[str, dict[str, Any]]:
    """Return the configuration file to compare with and its fields, or '' if there is none.

    Only a file of `configs/` is run: a workdir may come from someone else, and what it names is
    code. For any other it is `configs/alexnet.py`.
    """
    file = pathlib.PurePath(named)
    names = [file.name] if file.parent.name == _CONFIGS.name else []
    for name in (*names, 'alexnet.py'):
        if (_CONFIGS / name).is_file():
            try:
                loaded = config_lib.load(_CONFIGS / name)
            except UserError:  # written for another version, or configs/ cannot be imported here
                continue
            return f'configs/{name}', sections.with_off_values(
                Config, sections.flatten(loaded.to_dict())
            )
    return '', {}


def _value(value: Any) -> str:
    return 'absent' if value is None else repr(value)


def _begun(start: Start, is_finished: bool) -> Begun:
    if start.signal is not None:
        end = f'{_signal(start.signal)} stopped it, and it saved step {start.last_step:,}'
    elif not start.is_last:
        end = 'the log has no end: it was killed or failed'
    elif is_finished:
        end = 'it reached the end of training'
    else:
        end = 'the log has no end: it still goes on, or it was killed or failed'
    changes = [f'{name}: {value}' for name, value in start.details.items() if '.' in name]
    return Begun(
        number=start.number,
        event=start.event or 'not logged',
        first_step=start.first_step,
        last_step=start.last_step,
        logged_s=start.ended_s - start.began_s,
        end=end,
        changes=changes,
    )


def _signal(number: int) -> str:
    known = is_integer(number) and number in {s.value for s in signal.Signals}
    return signal.Signals(number).name if known else f'signal {number}'


def _event(row: Mapping[str, Any]) -> Event:
    details = accounting.details_of(row)
    return Event(
        step=int(row['step']),
        epoch=float(row['epoch']),
        time_s=float(row['time_s']),
        name=str(row['event']),
        details=', '.join(f'{name} {value}' for name, value in details.items()),
    )


def _dates(path: epath.Path) -> list[datetime.datetime]:
    """Return the dates of the files that each start saved, in the order of their numbers."""
    folder = path / 'starts'
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    files = [folder / n / 'environment.json' for n in sorted(filter(str.isdigit, names), key=int)]
    return [_date(file) for file in files if file.is_file()]


def _date(file: epath.Path) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(pathlib.Path(file).stat().st_mtime, datetime.UTC)


def _elapsed_s(
    path: epath.Path, dates: Sequence[datetime.datetime], time: Time | None
) -> float | None:
    """Return the seconds from the first start to the last row, by the dates of the files.

    None where the dates cannot be right: a copy of a workdir may have those of the copying.
    """
    moments = [*dates, _date(path / 'metrics.jsonl')]
    if not dates or not time or moments != sorted(moments):
        return None
    elapsed = (moments[-1] - moments[0]).total_seconds()
    return elapsed if elapsed >= time.logged_s - 1 else None  # within a second: files have dates


def _notes(path: epath.Path, logged: int, saved: int) -> list[str]:
    notes = []
    if saved > logged:
        notes.append(
            f'starts/ has {saved} starts and the log {logged}: the others ended before their first '
            'row, or a resume deleted it.'
        )
    for file in sorted(p.name for p in path.iterdir() if re.fullmatch(r'hang-\d+\.txt', p.name)):
        notes.append(f'The watchdog ended a start that hung; the stacks are in {file}.')
    content = (path / 'metrics.jsonl').read_bytes()
    if content and not content.endswith(b'\n'):
        notes.append('The last line of metrics.jsonl is incomplete and is not counted.')
    return notes


def _classes(directory: epath.Path) -> Classes:
    """Read the report of each class; raise UserError if it is missing or damaged."""
    file = directory / 'report.json'
    if not file.is_file():
        raise UserError(
            f'{directory} has no report.json; name a folder that --mode=evaluate wrote as '
            '--config.evaluation.report_dir'
        )
    report = workdirs.read_json(file)
    try:
        return _classes_of(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'{file} is damaged ({reason}); evaluate the run again') from error


def _classes_of(report: Mapping[str, Any]) -> Classes:
    names = [str(row['name']) for row in report['classes']]
    counts = np.array(report['confusion'])
    if counts.shape != (len(names),) * 2 or counts.dtype.kind != 'i' or counts.min() < 0:
        raise ValueError('its confusion matrix does not fit its classes')
    rows = []
    for row in report['classes']:
        if row['recall'] is not None:
            if not is_number(row['recall']) or not 0 <= row['recall'] <= 1:
                raise ValueError(f'the recall of a class is {row["recall"]!r}')
            error = ClassError(
                name=str(row['name']),
                examples=int(row['examples']),
                error=1 - row['recall'],
                precision=None if row['precision'] is None else float(row['precision']),
            )
            rows.append(error)
    rows.sort(key=lambda row: -row.error)
    totals, wrong = counts.sum(axis=1), counts - np.diag(counts.diagonal())
    worst = np.argsort(-wrong, axis=None, kind='stable')[:_MOST_CONFUSIONS].tolist()
    cells = [divmod(cell, len(names)) for cell in worst]
    return Classes(
        about=_about(report),
        classes=rows[:_MOST_CLASSES],
        left_out=len(rows[_MOST_CLASSES:]),
        empty=len(names) - len(rows),
        confusions=[
            Confusion(
                true_name=names[true],
                predicted=names[predicted],
                count=int(wrong[true, predicted]),
                share=float(wrong[true, predicted] / totals[true]),
            )
            for true, predicted in cells
            if wrong[true, predicted]
        ],
    )


def _about(report: Mapping[str, Any]) -> str:
    network = f'the checkpoint of step {report["step"]:,}' if 'step' in report else 'an ensemble'
    return (
        f'These are the errors of {network} on the {report["examples"]:,} examples of '
        f'{report["data_set"]}, split {report["split"]}. The prediction is {report["predictions"]}.'
    )


def as_line(page: Page, output: epath.Path) -> str:
    """Return the last line of `--json`."""
    return json.dumps({'path': str(output), **as_json(page)})
