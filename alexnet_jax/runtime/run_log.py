"""What a run shows: metrics.jsonl always, TensorBoard files, a console line, a profiler window."""

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
            words='(first step, last step); (0, 0) for none',
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
    """Writes what happens in a run; of several processes only the first one writes.

    `metrics.jsonl` has one flat object a line: step, epoch, kind ('train', 'eval' or 'event'),
    time_s (seconds of this run, earlier starts included), then the metrics under their names.
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
        self._started = start_step  # the step before the one that was started last
        self._first: tuple[float, int] | None = None  # time and `_started` at the first line
        self._window: tuple[float, int] | None = None  # and at the last line with a speed

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
        """Count the time inside as 'data' (waiting for a batch) or as 'other' than training."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - began

    def train(self, step: int, epoch: float, metrics: Mapping[str, float], batch_size: int) -> None:
        """Write one step's metrics, with the speed since the last one, evaluations left out."""
        now = time.monotonic()
        words = f'loss {metrics["train/loss"]:.4f}  top-1 error {metrics["train/top1_error"]:.3f}'
        speed: dict[str, float] = {}
        # A line may come late, after further steps were started, or several at once before an
        # evaluation: what counts is how many steps were started in the time since the last speed.
        if self._window is None or self._first is None:  # the first line holds the compilation
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
        """Write the errors of an evaluation."""
        self._write('eval', step, epoch, metrics)
        words = '  '.join(f'{name[len("eval/") :]} {value:.4f}' for name, value in metrics.items())
        with self._above_bar():
            _logger.info('step %d  evaluation  %s', step, words)

    def event(self, step: int, epoch: float, name: str, **details: Any) -> None:
        """Write what happened, such as `resumed`."""
        self._write('event', step, epoch, {'event': name, **details})
        words = '  '.join(f'{key} {value}' for key, value in details.items())
        with self._above_bar():
            _logger.info('step %d  %s  %s', step, name, words)

    def advance(self, step: int, state: Any) -> None:
        """Move the progress bar, and open or close the profiler window before the next step.

        `state` is that after `step`: the window waits for it, as steps are dispatched ahead.
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
        """Let a console line pass without tearing the progress bar."""
        with tqdm.tqdm.external_write_mode():
            yield


def _open_board(directory: epath.Path, start_step: int) -> Any:
    import tensorboardX  # it imports torch where torch is installed

    return tensorboardX.SummaryWriter(str(directory), purge_step=start_step + 1)


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line torn by a kill is left out.

    Raises UserError for another line that is damaged, as a loss of power can leave it.
    """
    rows = []
    lines = path.read_bytes().split(b'\n') if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(dict(json.loads(line.decode())))
        except (ValueError, TypeError) as error:
            raise UserError(
                f'line {number} of {path} is damaged; look at it, then take it out: '
                f'sed -i {number}d {shlex.quote(str(path))}'
            ) from error
    return rows


def initial_data(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the data set of the run that this one took its first weights from; '' for none."""
    starts = [row for row in rows if row.get('event') == 'started']
    # The last one: a start that was killed before its first save has left an event, too.
    return starts[-1].get('init_data', '') if starts else ''


def _drop_rows_after(path: epath.Path, step: int) -> float:
    """Keep what led to `step`, so that steps done again stand once; return the last time_s kept."""
    rows = read_rows(path)
    kept = [row for row in rows if row['step'] <= step]
    if path.exists():
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
        temporary.replace(path)
    return kept[-1]['time_s'] if kept else 0.0
