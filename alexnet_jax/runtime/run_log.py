"""Log a run to metrics.jsonl, TensorBoard and the console, and profile some of its steps."""

import collections
import contextlib
import dataclasses
import datetime
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

from alexnet_jax.runtime.config import PLACE, Section, boolean, field, is_integer, tuple_of
from alexnet_jax.runtime.errors import UserError

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
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: LogConfig,
        *,
        start_step: int,
        total_steps: int,
    ) -> None:
        first = jax.process_index() == 0
        path = workdir / 'metrics.jsonl'
        earlier_s = _drop_rows_after(path, start_step) if first else 0.0
        self._file = path.open('a') if first else open(os.devnull, 'w')  # noqa: SIM115
        self._began = time.monotonic() - earlier_s
        with_board = first and config.tensorboard
        self._board = _open_board(workdir / 'tensorboard', start_step) if with_board else None
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
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._started = start_step  # the step before the one that was dispatched last
        self._first: tuple[float, int] | None = None  # time and `_started` at the first row
        self._window: tuple[float, int] | None = None  # the same at the last row with a speed

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, *exception: object) -> None:
        if self._profiling:
            jax.profiler.stop_trace()
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

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
        """Write an event, such as `resumed`, with its details."""
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
            jax.profiler.start_trace(str(self._profile_dir))
            self._profiling = True
        elif self._profiling and step >= last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._profiling = False
            _logger.info('profile of steps %d to %d in %s', first, last, self._profile_dir)

    def _write(self, kind: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        row = {
            'step': step,
            'epoch': round(epoch, 4),
            'kind': kind,
            'time_s': round(time.monotonic() - self._began, 3),
            **values,
        }
        self._file.write(json.dumps(row, allow_nan=False) + '\n')
        self._file.flush()
        if self._board is not None and kind != 'event':
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _above_bar(self) -> Iterator[None]:
        """Clear the progress bar while a line is printed above it."""
        with tqdm.tqdm.external_write_mode():
            yield


def _open_board(directory: epath.Path, start_step: int) -> Any:
    import tensorboardX  # imported only here, because it imports torch if that is installed

    return tensorboardX.SummaryWriter(str(directory), purge_step=start_step + 1)


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
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
        temporary.replace(path)
    return kept[-1]['time_s'] if kept else 0.0
