"""Time and memory of one case against slices, chunk, threads and volumes."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionrt.benchmarks.child import Child, environment
from lesionrt.benchmarks.fit import power_law
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.errors import UnavailableError, last_line

SEGMENT = "from lesionrt.runtime.cli import main; main()"


@dataclass(frozen=True)
class Points:
    """At what is measured; `steady` output slices where it is not their number that changes.

    With their two neighbours they are a multiple of every chunk: otherwise a backend that cuts a stack evenly would compute
    fewer at a time than the row says.
    """

    slices: Sequence[int] = (16, 32, 64, 128, 256, 512)
    chunks: Sequence[int] = (1, 2, 4, 6, 8, 16, 24)
    volumes: Sequence[int] = (1, 2, 4)
    steady: int = 46


def thread_counts(cores: int) -> list[int]:
    """Powers of two up to all cores.

    >>> thread_counts(2), thread_counts(6)
    ([1, 2], [1, 2, 4, 6])
    """
    powers = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    return [*powers, cores]


@dataclass(frozen=True)
class Point:
    """One warm measurement that can be repeated: its seconds, and what else is known of it afterwards."""

    seconds: Callable[[], float]
    more: Callable[[], dict[str, Any]]


def scaling(
    order: Order, folder: Path, points: Points, cores: int, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rows and, over each, the fitted power law; every row has a process of its own, and the rounds are interleaved.

    Parameters
    ----------
    order
        For the case that is measured.
    folder
        For temporary files.
    points
        At what.
    cores
        Largest number of threads.
    repeats
        Rounds; the median counts.
    say
        Told what is going on.
    """
    found: dict[str, Any] = {"case": order.case["name"], "steady_slices": points.steady, "repeats": repeats}

    def rows(what: str, values: Sequence[int], open_point: Callable[[int], AbstractContextManager[Point]]) -> None:
        say(f"scaling: {', '.join(map(str, values))} {what}, {repeats} rounds")
        measured = _measure(values, open_point, repeats)
        right = [row for row in measured.values() if "failed" not in row]
        ran = next((row["case"] for row in right if "case" in row), order.case["name"])
        found[what] = {"case": ran, "rows": [{what: value, **row} for value, row in measured.items()]}
        x = [value for value, row in measured.items() if "failed" not in row]
        for name in ("seconds", "peak_mb"):
            law = power_law(x, [row[name] for row in right]) if all(name in row for row in right) else None
            found[what][f"{name}_fit"] = None if law is None else asdict(law)

    rows("slices", points.slices, lambda n: stack_point(order, folder, n, None))
    rows("chunk", points.chunks, lambda n: stack_point(order, folder, points.steady, n))
    rows("threads", thread_counts(cores), lambda n: stack_point(replace(order, threads=n), folder, points.steady, None))
    rows("volumes", points.volumes, lambda n: segment_point(order, folder, n))
    return found


def _measure(
    values: Sequence[int], open_point: Callable[[int], AbstractContextManager[Point]], repeats: int
) -> dict[int, dict[str, Any]]:
    """What was found for each value; where it fails, why."""
    measured: dict[int, dict[str, Any]] = {value: {} for value in values}

    def told(value: int, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except UnavailableError as error:
            measured[value] = {"failed": str(error)}

    with ExitStack() as stack:
        points = {value: told(value, partial(stack.enter_context, open_point(value))) for value in values}
        rounds = {value: partial(told, value, point.seconds) for value, point in points.items() if point is not None}
        for value, seconds in interleaved(rounds, repeats).items():
            times, more = spread(seconds), told(value, points[value].more)
            if more is not None:
                measured[value] = {"seconds": times.median, "least": times.least, "most": times.most, **more}
    return measured


@contextmanager
def stack_point(order: Order, folder: Path, slices: int, chunk: int | None) -> Iterator[Point]:
    """A stack after a warm-up on the same, and the peak memory of the process that computes it."""
    name = f"scaling-{slices}-{chunk}-{order.threads}"
    with Child(order, folder, name) as child:
        child.ask("open")
        again = partial(child.ask, "stack", slices=slices, chunk=chunk)
        again()
        yield Point(lambda: float(again()["seconds"]), partial(child.ask, "memory"))


@contextmanager
def segment_point(order: Order, folder: Path, volumes: int) -> Iterator[Point]:
    """`lesionrt segment` on several copies of the volume in one run, from its start to its end."""
    last: dict[str, Any] = {}

    def once() -> float:
        last.update(segment_row(order, folder, volumes))
        return float(last.pop("seconds"))

    yield Point(once, lambda: last)


def segment_row(order: Order, folder: Path, volumes: int) -> dict[str, Any]:
    """Seconds of `lesionrt segment` on several copies of the volume in one run, from its start to its end.

    The command takes the backend's own first precision, whatever the order's: the row names the case that ran.

    Raises
    ------
    UnavailableError
        If it fails.
    """
    scans, out = folder / "scans", folder / "segmented"
    for path in (scans, out):
        shutil.rmtree(path, ignore_errors=True)
    scans.mkdir()
    name = Path(order.flair).name
    for number in range(volumes):
        (scans / f"{number}_{name}").symlink_to(Path(order.flair).resolve())
    options = ["--model", order.bundle, "--backend", order.case["backend"], "--threads", str(order.threads)]
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", SEGMENT, "segment", scans, "-o", out, *options],
        capture_output=True,
        text=True,
        env=environment(order.threads, folder / "cache-segment"),
    )
    seconds = time.perf_counter() - start
    if answer.returncode:
        raise UnavailableError(f"`lesionrt segment` ended with code {answer.returncode}: {last_line(answer.stderr)}")
    reports = [json.loads(path.read_text()) for path in sorted(out.glob("*_report.json"))]
    # All that was done, the network's load once: more than the time it took where reading goes on beside computing.
    stages = sum(sum(report["seconds"].values()) for report in reports) - (volumes - 1) * reports[0]["seconds"]["load"]
    return {"seconds": seconds, "stages_s": stages, "case": f"{reports[0]['backend']}-{reports[0]['precision']}"}
