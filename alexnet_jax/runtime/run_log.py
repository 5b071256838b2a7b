"""What a run shows: metrics.jsonl always, TensorBoard files, a console line, a profiler window."""

import collections
import contextlib
import datetime
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)


class RunLog:
    """Writes what happens in a run, of several processes the first one; fed by the `log` section.

    `metrics.jsonl` has one flat object a line: step, epoch, kind ('train', 'eval' or 'event'),
    time_s (seconds of this run, earlier starts included), then the metrics under their names.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start_step: int,
        total_steps: int,
        tensorboard: bool,
        progress_bar: bool,
        profile_steps: tuple[int, int],
    ) -> None:
        first = jax.process_index() == 0
        path = workdir / 'metrics.jsonl'
        earlier_s = _drop_rows_after(path, start_step) if first else 0.0
        self._file = path.open('a') if first else open(os.devnull, 'w')  # noqa: SIM115
        self._began = time.monotonic() - earlier_s
        with_board = first and tensorboard
        self._board = _open_board(workdir / 'tensorboard', start_step) if with_board else None
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit='step',
            dynamic_ncols=True,
            disable=None if first and progress_bar else True,  # None: shown on a terminal only
        )
        self._total_steps = total_steps
        self._profile_steps = profile_steps if first else (0, 0)
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


def epoch_means(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each epoch, the mean of where its steps ended and the mean of their values.

    `epochs` [n] is where each step ended, so epoch e (from 0) holds those in (e, e + 1].
    """
    which = np.ceil(epochs).astype(int) - 1
    of_epoch = [which == epoch for epoch in np.unique(which)]
    where, means = (np.array([x[steps].mean() for steps in of_epoch]) for x in (epochs, values))
    return where, means


def training_error(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each epoch and the mean top-1 error of its logged steps.

    It is of the batches as they were learned from, not of one network on the whole set. An epoch
    with less than half of the steps of another is left out: a last step may reach into the next.
    """
    logged = [(row['epoch'], row['train/top1_error']) for row in rows if 'train/top1_error' in row]
    epochs, errors = np.array(logged, float).reshape(-1, 2).T
    _, which, steps = np.unique(np.ceil(epochs), return_inverse=True, return_counts=True)
    whole = (2 * steps >= steps.max(initial=0))[which]
    return epoch_means(epochs[whole], errors[whole])


def epochs_to_error(rows: Sequence[Mapping[str, Any]], error: float) -> float | None:
    """Return the epoch at which `training_error` falls to `error`; None if it does not.

    Between the means of the epochs are straight lines (Paper, Fig. 1).
    """
    epochs, errors = training_error(rows)
    below = np.flatnonzero(errors <= error)
    if not below.size:
        return None
    around = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.interp(-error, -errors[around], epochs[around]))


def _drop_rows_after(path: epath.Path, step: int) -> float:
    """Keep what led to `step`, so that steps done again stand once; return the last time_s kept."""
    rows = read_rows(path)
    kept = [row for row in rows if row['step'] <= step]
    if path.exists():
        temporary = path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
        temporary.replace(path)
    return kept[-1]['time_s'] if kept else 0.0
