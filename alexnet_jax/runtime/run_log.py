"""Log a run to metrics.jsonl, TensorBoard and the console, and profile some of its steps."""

import collections
import contextlib
import dataclasses
import datetime
import errno
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import tqdm
from etils import epath

from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import (
    PLACE,
    Section,
    boolean,
    field,
    flatten,
    is_integer,
    text,
    tuple_of,
)
from alexnet_jax.runtime.errors import UserError, first_line
from alexnet_jax.runtime.wandb_log import WandbLog

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """The section `log`."""

    tensorboard: bool = field(boolean, role=PLACE)
    progress_bar: bool = field(boolean, role=PLACE)
    profile_steps: tuple[int, int] = field(
        tuple_of(
            lambda v: is_integer(v) and v >= 0,
            2,
            words='(first step, last step), or (0, 0) for none',
        ),
        role=PLACE,
    )
    wandb_project: str = field(text, role=PLACE, off='')

    def check(self) -> None:
        """Raise UserError for a profile that ends before it begins."""
        if self.profile_steps[0] > self.profile_steps[1]:
            raise UserError(
                f'config.log.profile_steps = {self.profile_steps} must be (first step, last step)'
            )


class RunLog:
    """Writes the log of a run; with several processes only process 0 writes.

    Each line of `metrics.jsonl` is a flat JSON object: step, epoch, kind ('train', 'eval' or
    'event'), time_s (the seconds of this run, including those before a restart), then the metrics
    under their names.

    A row that cannot be written ends the run, with a UserError; TensorBoard, Weights & Biases and
    the profile are given up with a warning.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: LogConfig,
        *,
        start_step: int,
        total_steps: int,
        described: Section,
    ) -> None:
        """Open the log; `described` is the whole configuration, which is shown with the run."""
        first = jax.process_index() == 0
        self._path = workdir / 'metrics.jsonl' if first else epath.Path(os.devnull)
        with storage.writing(f'a row to {self._path}'):
            earlier_s = _drop_rows_after(self._path, start_step) if first else 0.0
            self._file = open(self._path, 'a')  # noqa: SIM115
        self._began = time.monotonic() - earlier_s
        self._board: _Board | None = None
        if first and config.tensorboard:
            with self._optional('TensorBoard'):
                self._board = _Board(workdir / 'tensorboard', start_step, described)
        self._wandb: WandbLog | None = None
        if first and config.wandb_project:
            self._wandb = WandbLog(workdir, config.wandb_project, described)
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit='step',
            dynamic_ncols=True,
            # None: shown on a terminal only
            disable=None if first and config.progress_bar else True,
        )
        self._total_steps = total_steps
        self._profile_steps = config.profile_steps if first else (0, 0)
        self._profile_dir = workdir / 'profile'
        self._profiling = False
        self._stopped = False  # by a signal
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._started = start_step  # the step before the one that was dispatched last
        self._first: tuple[float, int] | None = None  # time and `_started` at the first row
        self._window: tuple[float, int] | None = None  # the same at the last row with a speed

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if self._profiling:
            with self._optional('the profile'):
                jax.profiler.stop_trace()
        self._bar.close()
        if self._board is not None:
            with self._optional('TensorBoard'):
                self._board.close()
        if self._wandb is not None:
            self._wandb.close(exit_code=0 if value is None else 1, stopped=self._stopped)
        try:
            with storage.writing(f'a row to {self._path}'):
                self._file.close()
        except UserError as error:
            if value is None:
                raise
            # Not raised, because the first error is the one that ends the run.
            _logger.warning('%s', error)

    @contextlib.contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Give up an output that the run can do without, with one warning, if the body fails."""
        try:
            yield
        except Exception as error:  # of the file system, or of the profiler
            if what == 'TensorBoard':
                self._board = None
            else:
                self._profile_steps = (0, 0)
            _logger.warning('%s is given up: %s', what, first_line(error))

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Count the time of the body as 'data' (waiting for a batch) or 'other' (not training)."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - began

    def train(self, step: int, epoch: float, metrics: Mapping[str, float], batch_size: int) -> None:
        """Write one step's metrics and the speed since the last row, without evaluations."""
        now = time.monotonic()
        words = f'loss {metrics["train/loss"]:.4f}  top-1 error {metrics["train/top1_error"]:.3f}'
        speed: dict[str, float] = {}
        # A row may come late, after further steps were dispatched, and several may come at once
        # before an evaluation. So the speed is that of the steps dispatched since the last speed.
        if self._window is None or self._first is None:  # its time would include the compilation
            self._first = self._window = (now, self._started)
            self._spent.clear()
        elif steps := self._started - self._window[1]:
            seconds = now - self._window[0] - self._spent['other']
            speed['perf/images_per_second'] = steps * batch_size / seconds
            speed['perf/data_wait'] = self._spent['data'] / seconds
            with_evaluations = (now - self._first[0]) / (self._started - self._first[1])
            left_s = round((self._total_steps - step) * with_evaluations)
            words += (
                f'  {speed["perf/images_per_second"]:.0f} images/s'
                f'  data wait {speed["perf/data_wait"]:.0%}'
                f'  time left {datetime.timedelta(seconds=left_s)}'
            )
            self._window = (now, self._started)
            self._spent.clear()
        self._write('train', step, epoch, {**metrics, **speed})
        with self._above_bar():
            _logger.info('step %d/%d  epoch %.2f  %s', step, self._total_steps, epoch, words)

    def evaluation(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation."""
        self._write('eval', step, epoch, metrics)
        words = '  '.join(f'{name[len("eval/") :]} {value:.4f}' for name, value in metrics.items())
        with self._above_bar():
            _logger.info('step %d  evaluation  %s', step, words)

    def event(self, step: int, epoch: float, name: str, **details: Any) -> None:
        """Write an event, such as `resumed`, with its details; `stopped` is the last one."""
        self._stopped = name == 'stopped'
        self._write('event', step, epoch, {'event': name, **details})
        words = '  '.join(f'{key} {value}' for key, value in details.items())
        with self._above_bar():
            _logger.info('step %d  %s  %s', step, name, words)

    def advance(self, step: int, state: Any) -> None:
        """Advance the progress bar, and start or stop the profiler before the next step.

        `state` is the state after `step`: the profiler stops only when it is computed, because
        steps are dispatched ahead.
        """
        self._started = step
        self._bar.update(step - self._bar.n)
        first, last = self._profile_steps
        if not self._profiling and first <= step + 1 <= last:
            with self._optional('the profile'):
                jax.profiler.start_trace(str(self._profile_dir))
                self._profiling = True
        elif self._profiling and step >= last:
            jax.block_until_ready(state)
            self._profiling = False
            with self._optional('the profile'):
                jax.profiler.stop_trace()
                _logger.info('profile of steps %d to %d in %s', first, last, self._profile_dir)

    def _write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        row = {
            'step': step,
            'epoch': round(epoch, 4),
            'kind': kind,
            'time_s': round(time.monotonic() - self._began, 3),
            **values,
        }
        with storage.writing(f'a row to {self._path}'):
            self._require_file()
            self._file.write(json.dumps(row, allow_nan=False) + '\n')
            self._file.flush()
        if self._board is not None and kind != 'event':
            with self._optional('TensorBoard'):
                self._board.write(step, values)
        if self._wandb is not None and kind != 'event':
            del row['kind']
            self._wandb.write(row)

    def _require_file(self) -> None:
        """Raise OSError if the file was deleted or replaced: nobody would find the row."""
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    @contextlib.contextmanager
    def _above_bar(self) -> Iterator[None]:
        """Clear the progress bar while a line is printed above it."""
        with tqdm.tqdm.external_write_mode():
            yield


class _Board:
    """Writes scalars for TensorBoard, and the configuration as text.

    The writer of tensorboardX that has no thread of its own: `SummaryWriter` has one, which dies of
    a full disk and then lets the training wait for it.
    """

    def __init__(self, directory: epath.Path, start_step: int, described: Section) -> None:
        # imported only here, because tensorboardX imports torch if that is installed
        from tensorboardX import event_file_writer, proto, summary

        self._scalar, self._event = summary.scalar, proto.event_pb2.Event  # pyright: ignore
        directory.mkdir(parents=True, exist_ok=True)
        # an absolute path: tensorboardX takes `s3:x` for a bucket
        self._writer = event_file_writer.EventsWriter(os.path.abspath(directory / 'events'))
        restart = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)  # pyright: ignore
        self._writer.write_event(self._event(step=start_step + 1, session_log=restart))
        values = flatten(dataclasses.asdict(described))
        lines = (f'    {name} = {value!r}\n' for name, value in values.items())
        shown = summary.text('config', ''.join(lines))  # indented: as it is, in Markdown
        event = self._event(step=start_step, wall_time=time.time(), summary=shown)
        self._writer.write_event(event)
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            event = self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, without a last line that a kill left incomplete.

    Raises UserError for any other damaged line, which a power cut can leave.
    """
    rows = []
    lines = path.read_bytes().split(b'\n') if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(dict(json.loads(line.decode())))
        except (ValueError, TypeError) as error:
            raise UserError(
                f'line {number} of {path} is damaged; look at it, then delete it: '
                f'sed -i {number}d {shlex.quote(str(path))}'
            ) from error
    return rows


def initial_data(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the data set of the run that gave the initial weights, or '' if there was none."""
    starts = [row for row in rows if row.get('event') == 'started']
    # The last start counts: one that was killed before its first save has left an event, too.
    return starts[-1].get('init_data', '') if starts else ''


def _drop_rows_after(path: epath.Path, step: int) -> float:
    """Delete the rows after `step`, which will be done again; return the last time_s kept."""
    rows = read_rows(path)
    kept = [row for row in rows if row['step'] <= step]
    if path.exists():
        storage.replace(path, ''.join(json.dumps(row) + '\n' for row in kept).encode())
    return kept[-1]['time_s'] if kept else 0.0
