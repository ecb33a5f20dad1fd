"""Time and memory of one case against slices, chunk, threads and volumes."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lesionrt.benchmarks.child import Child, environment
from lesionrt.benchmarks.fit import power_law
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.errors import UnavailableError

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


def scaling(order: Order, folder: Path, points: Points, cores: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Rows and, over each, the fitted power law; every row is measured in a process of its own.

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
    say
        Told what is going on.
    """
    found: dict[str, Any] = {"case": order.case["name"], "steady_slices": points.steady}

    def rows(what: str, values: Iterable[int], measure: Callable[[int], dict[str, Any]]) -> None:
        measured = []
        for value in values:
            say(f"scaling: {value} {what}")
            try:
                measured.append({what: value, **measure(value)})
            except UnavailableError as error:
                measured.append({what: value, "failed": str(error)})
        right = [row for row in measured if "failed" not in row]
        x = [row[what] for row in right]
        ran = next((row["case"] for row in right if "case" in row), order.case["name"])
        found[what] = {"case": ran, "rows": measured}
        for name in ("seconds", "peak_mb"):
            law = power_law(x, [row[name] for row in right]) if all(name in row for row in right) else None
            found[what][f"{name}_fit"] = None if law is None else asdict(law)

    rows("slices", points.slices, lambda n: stack_row(order, folder, n, None))
    rows("chunk", points.chunks, lambda n: stack_row(order, folder, points.steady, n))
    rows("threads", thread_counts(cores), lambda n: stack_row(replace(order, threads=n), folder, points.steady, None))
    rows("volumes", points.volumes, lambda n: segment_row(order, folder, n))
    return found


def stack_row(order: Order, folder: Path, slices: int, chunk: int | None) -> dict[str, Any]:
    """Seconds of a stack after a warm-up on the same, and peak memory of the process that computed it."""
    with Child(order, folder, "scaling") as child:
        child.ask("open")
        child.ask("stack", slices=slices, chunk=chunk)
        return {**child.ask("stack", slices=slices, chunk=chunk), **child.ask("memory")}


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
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UnavailableError(f"`lesionrt segment` ended with code {answer.returncode}: {last}")
    report = json.loads(next(out.glob("*_report.json")).read_text())
    return {"seconds": seconds, "case": f"{report['backend']}-{report['precision']}"}
