"""Time several programs so that they can be compared even on a machine that others use."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(
    cases: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Run every case once in each round, and return a list of seconds for each case.

    Each round starts with another case, so that none is always the first. The cases of one round
    run close together in time, so that `paired_ratio` compares like with like. A case must not
    return before its work is done (`jax.block_until_ready`). A case that times itself returns its
    seconds as a float. `warmup` rounds are not counted.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            result = cases[name]()
            if number >= 0:
                own = isinstance(result, float)
                seconds[name].append(result if own else time.perf_counter() - began)
    return seconds


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return `{name: median, name_min: ..., name_max: ...}`."""
    return {name: statistics.median(values), f'{name}_min': min(values), f'{name}_max': max(values)}


def rates(name: str, amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """Return the spread of `amount` per second."""
    return spread(name, [amount / value for value in seconds])


def paired_ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of above / below, computed within each round."""
    return spread(name, [a / b for a, b in zip(above, below, strict=True)])
