"""Account for the time of a run, from the rows of its metrics.jsonl."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BEGINNINGS = ('started', 'resumed')
_COMMON = ('step', 'epoch', 'kind', 'time_s', 'event')
_SPEED, _WAIT = 'perf/images_per_second', 'perf/data_wait'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run: its first event and the rows up to the next start."""

    number: int  # from 1, of those in the log
    event: str  # 'started', 'resumed', or '' where the log begins without an event
    details: Mapping[str, Any]  # of the event
    first_step: int  # the step from which it went on
    last_step: int  # of its last row
    began_s: float  # `time_s` of the last row before it
    ended_s: float  # `time_s` of its last row
    signal: int | None  # that stopped it, if the log says so
    is_last: bool
    rows: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """The images per second of the rows of training that have a speed."""

    rows: int
    median: float
    quartiles: tuple[float, float]
    least: float
    largest: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Time:
    """How the seconds in the log were spent: the first four add up to `logged_s`.

    `computing_s` and `waiting_s` are the training: steps * batch size / images per second, where
    the speed of a step is that of the row that counts it. The steps of each start that no row with
    a speed counts have the median speed of the run, but take no more time than passed. `waiting_s`
    is the share of the training, weighted by time, that the rows give as `perf/data_wait`.
    `starting_s` is the time of each start up to its first row of training, without the training in
    it. `other_s` is what is left: evaluations, saves, and any time in which nothing went on.
    """

    logged_s: float
    computing_s: float
    waiting_s: float
    starting_s: float
    other_s: float
    estimated_steps: int  # at the median speed
    evaluations: int
    timed_evaluations: int  # those that follow on the row of training of their own step
    evaluation_s: float | None  # the median of these
    longest_s: float  # the longest time between two rows of one start
    longest_steps: tuple[int, int]  # the steps of these two rows
    steps_again: int | None  # steps that were trained twice; None if the log cannot say

    @property
    def wait_share(self) -> float:
        """The share of the training in which the devices waited for data."""
        training = self.computing_s + self.waiting_s
        return self.waiting_s / training if training else 0.0

    @property
    def goodput(self) -> float:
        """The share of the logged time in which steps were computed."""
        return self.computing_s / self.logged_s


def starts_of(rows: Sequence[Mapping[str, Any]]) -> list[Start]:
    """Return the starts that the log holds, in their order."""
    first = [i for i, row in enumerate(rows) if row.get('event') in _BEGINNINGS]
    bounds = sorted({*first, 0, len(rows)}) if rows else []
    found = []
    for begin, end in itertools.pairwise(bounds):
        own = rows[begin:end]
        is_event = begin in first
        before = rows[begin - 1]['time_s'] if begin else 0.0
        found.append(
            Start(
                number=len(found) + 1,
                event=own[0]['event'] if is_event else '',
                details=details_of(own[0]) if is_event else {},
                first_step=int(own[0]['step']) if is_event else 0,
                last_step=int(own[-1]['step']),
                began_s=float(before),
                ended_s=float(own[-1]['time_s']),
                signal=own[-1]['signal'] if own[-1].get('event') == 'stopped' else None,
                is_last=end == len(rows),
                rows=own,
            )
        )
    return found


def details_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an event says besides its step, time and name."""
    return {name: value for name, value in event.items() if name not in _COMMON}


def speed_of(rows: Sequence[Mapping[str, Any]]) -> Speed | None:
    """Return the speed of training, or None if no row has one."""
    speeds = np.array([row[_SPEED] for row in rows if _SPEED in row], float)
    if not speeds.size:
        return None
    low, median, high = np.quantile(speeds, (0.25, 0.5, 0.75)).tolist()
    return Speed(
        rows=speeds.size,
        median=median,
        quartiles=(low, high),
        least=float(speeds.min()),
        largest=float(speeds.max()),
    )


def time_of(rows: Sequence[Mapping[str, Any]], batch_size: int, saved_starts: int) -> Time | None:
    """Return how the logged time was spent, or None if no row of training has a speed.

    Args:
      rows: of metrics.jsonl.
      batch_size: images in a step.
      saved_starts: the number of folders in `starts/`, 0 for a run that has none.
    """
    speed = speed_of(rows)
    if speed is None or not rows[-1]['time_s']:
        return None
    usual_s = batch_size / speed.median  # of one step
    known_s = waiting_s = training_s = starting_s = 0.0
    estimated = 0
    starts = starts_of(rows)
    for start in starts:
        step, at_s, first = start.first_step, start.began_s, None
        for row in start.rows:
            if row['kind'] != 'train':
                continue
            if first is None:
                # Its time includes the compilation, so it has no speed.
                first = row
                lead = row['step'] - step
                passed_s = row['time_s'] - at_s
                estimated += lead
                training_s += min(lead * usual_s, passed_s)
                starting_s += max(passed_s - lead * usual_s, 0.0)
                step, at_s = row['step'], row['time_s']
            elif _SPEED in row:
                seconds = (row['step'] - step) * batch_size / row[_SPEED]
                known_s += seconds
                waiting_s += row.get(_WAIT, 0.0) * seconds
                step, at_s = row['step'], row['time_s']
        if first is None:
            starting_s += start.ended_s - at_s
        else:
            estimated += start.last_step - step
            training_s += min((start.last_step - step) * usual_s, start.ended_s - at_s)
    training_s += known_s
    share = waiting_s / known_s if known_s else 0.0
    logged_s = float(rows[-1]['time_s'])
    pairs = itertools.pairwise(rows)
    longest_s, longest_steps = max(
        (
            (row['time_s'] - before['time_s'], (int(before['step']), int(row['step'])))
            for start in starts
            for before, row in zip(start.rows[:-1], start.rows[1:], strict=True)
        ),
        default=(0.0, (0, 0)),
    )
    timed = [
        row['time_s'] - before['time_s']
        for before, row in pairs
        if row['kind'] == 'eval' and before['kind'] == 'train' and row['step'] == before['step']
    ]
    return Time(
        logged_s=logged_s,
        computing_s=(1 - share) * training_s,
        waiting_s=share * training_s,
        starting_s=starting_s,
        other_s=max(logged_s - training_s - starting_s, 0.0),
        estimated_steps=estimated,
        evaluations=sum(row['kind'] == 'eval' for row in rows),
        timed_evaluations=len(timed),
        evaluation_s=float(np.median(timed)) if timed else None,
        longest_s=float(longest_s),
        longest_steps=longest_steps,
        steps_again=_steps_again(starts, saved_starts),
    )


def _steps_again(starts: Sequence[Start], saved_starts: int) -> int | None:
    """Return 0 if each start went on where a signal had stopped the one before, otherwise None.

    A resume deletes the rows after the checkpoint from which it goes on. So the log does not say
    how far a start had come that was killed.
    """
    saved_and_stopped = all(
        before.signal is not None and before.last_step == start.first_step
        for before, start in itertools.pairwise(starts)
    )
    return 0 if saved_and_stopped and saved_starts <= len(starts) else None
