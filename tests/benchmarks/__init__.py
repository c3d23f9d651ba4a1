"""Speed and memory, as ratios to a loop or a formula that one would write by hand: `python -m tests.benchmarks`.

A module of this package with a function `run() -> list[Row]` is a benchmark. Both sides run in turns in one process, on
one thread, so that whatever else the computer does slows both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_tasks.engine.progress import track


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what was measured.
        ours: seconds of each round, or another quantity of which less is better.
        reference: the same of what it is compared with.
        limit: the ratio of the smallest values that is promised; None if it is only reported.
        unit: of the values: `s` for seconds, `B` for bytes, empty for a plain number.
    """

    name: str
    ours: list[float]
    reference: list[float]
    limit: float | None = None
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Smallest value against smallest value: of times, the fastest rounds."""
        return min(self.ours) / min(self.reference)

    @property
    def median_ratio(self) -> float:
        """Median of the ratios of the rounds."""
        return statistics.median(a / b for a, b in zip(self.ours, self.reference, strict=True))

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.limit is None or self.ratio <= self.limit


def in_turns(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    limit: float | None = None,
    rounds: int = 15,
    warm_up: int = 2,
) -> Row:
    """Time `ours` and `reference` in turns; which one begins changes from round to round."""
    for _ in range(warm_up):
        ours()
        reference()
    times: dict[Callable[[], object], list[float]] = {ours: [], reference: []}
    for number in track(range(rounds), name):
        for side in (ours, reference) if number % 2 else (reference, ours):
            times[side].append(seconds(side))
    return Row(name, times[ours], times[reference], limit)


def geometric_mean(name: str, rows: Sequence[Row], limit: float | None = None) -> Row:
    """The geometric mean of the fastest rounds of `rows`."""
    ours = statistics.geometric_mean(min(row.ours) for row in rows)
    return Row(name, [ours], [statistics.geometric_mean(min(row.reference) for row in rows)], limit)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
