"""Timing that a change of the machine's load does not favour."""

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def median_seconds(cases: dict[str, Callable[[], Array]], repeats: int) -> tuple[dict[str, float], dict[str, Array]]:
    """Median seconds of each case, interleaved after a warm-up, and what each gave."""
    results = {name: case() for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results
