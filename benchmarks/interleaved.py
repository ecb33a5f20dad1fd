"""Timing that a change of the machine's load does not favour."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: their median, least and most, and how many there were."""

    median: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Median and ends.

    >>> spread([3.0, 1.0, 2.0, 10.0])
    Spread(median=2.5, least=1.0, most=10.0, count=4)
    """
    return Spread(statistics.median(values), min(values), max(values), len(values))


def interleaved(
    cases: Mapping[Name, Callable[[], float | None]], repeats: int, deadline: float = float("inf")
) -> dict[Name, list[float]]:
    """What each case gives, round after round (A B C A B C ...).

    Parameters
    ----------
    cases
        Each gives a measurement, or None where it failed; it is then not asked again.
    repeats
        Rounds; the first is always done.
    deadline
        Of ``time.monotonic()``: no round is begun that would end after it if it took as long as the last one.
    """
    found: dict[Name, list[float]] = {name: [] for name in cases}
    failed: set[Name] = set()
    took = 0.0
    for number in range(repeats):
        begun = time.monotonic()
        if number and begun + took > deadline:
            break
        for name, case in cases.items():
            value = None if name in failed else case()
            if value is None:
                failed.add(name)
            else:
                found[name].append(value)
        took = time.monotonic() - begun
    return {name: values for name, values in found.items() if name not in failed}
