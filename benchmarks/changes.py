"""What each change that was kept for speed gains: before and after, in one run on one volume.

    python -m lesionrt.benchmarks.changes BUNDLE FLAIR -o changes.json [--slices 30] [--repeats 3]

Each way to compute has a process of its own, and they take turns. Before and after are the same bundle, less the graphs that
came with the change. Every way's probabilities are compared with those of the authors' schedule in PyTorch, window by window.
Needs the extras `cpu`, `openvino` and `export`.
"""

import contextlib
import gzip
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lesionrt.benchmarks.cases import BASELINE, Case
from lesionrt.benchmarks.checkpoints import restored_checkpoint
from lesionrt.benchmarks.child import Child
from lesionrt.benchmarks.entry import run
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.machine import describe
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, MANIFEST, STREAM_GRAPHS, Bundle, load_bundle
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.errors import UnavailableError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.outputs import GZIP_LEVEL
from lesionrt.runtime.parity import TOLERANCES, compare
from lesionrt.runtime.prepare import HALO, prepare_volume
from lesionrt.runtime.processor import cores
from lesionrt.runtime.segmenter import Segmenter
from lesionrt.runtime.volume import nonzero_brain, read_flair


@dataclass(frozen=True)
class Way:
    """To compute a stack.

    Attributes
    ----------
    backend, precision
        Of the runtime.
    needs, lacks
        Graphs that the bundle must have, and that are taken from it.
    chunk
        Slices at a time; None for the default.
    """

    backend: str
    precision: str
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    chunk: int | None = None


CHUNKS = (2, 4, 8, 16)
WAYS = {
    "onnxruntime-chunks": Way("cpu", "fp32", lacks=(STREAM_GRAPHS, BLOCKED_GRAPHS)),
    "onnxruntime-state": Way("cpu", "fp32", needs=(STREAM_GRAPHS,), lacks=(BLOCKED_GRAPHS,)),
    "onnxruntime-blocks": Way("cpu", "fp32", needs=(BLOCKED_GRAPHS,)),
    "openvino-fp32": Way("openvino", "fp32"),
    "openvino-bf16": Way("openvino", "bf16"),
    **{f"onnxruntime-blocks, {n} at a time": Way("cpu", "fp32", needs=(BLOCKED_GRAPHS,), chunk=n) for n in CHUNKS},
    **{f"openvino-bf16, {n} at a time": Way("openvino", "bf16", chunk=n) for n in CHUNKS},
}
CHANGES = {
    "the state is kept between chunks": ("onnxruntime-chunks", "onnxruntime-state"),
    "channels in whole blocks, half the multiplications": ("onnxruntime-state", "onnxruntime-blocks"),
    "OpenVINO": ("onnxruntime-blocks", "openvino-fp32"),
    "bfloat16": ("openvino-fp32", "openvino-bf16"),
}
STARTS = ("onnxruntime-blocks", "openvino-bf16")
# With both neighbours a multiple of every chunk: else a backend that cuts a stack evenly would compute fewer at a time.
SLICES = 30
GZIP_LEVELS = (1, 6, 9)


def lacking(bundle: Bundle, graphs: Iterable[str], copy: Path) -> Path:
    """The same bundle without some of its graphs, in a new folder."""
    shutil.copytree(bundle.path, copy)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in graphs}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


class Changes:
    """A measurement of one bundle on one volume; what it finds, and why ways could not run."""

    def __init__(self, bundle: Bundle, flair: Path, slices: int, folder: Path) -> None:
        self.bundle, self.flair, self.folder = bundle, flair, folder
        volume = read_flair(flair)
        prepared = prepare_volume(volume, nonzero_brain(volume), bundle.preparation, bundle.size_multiple)
        total = len(prepared.slices)
        count = min(slices + 2 * HALO, total)
        self.slab = ((total - count) // 2, count)
        self.slices = count - 2 * HALO
        self.ways: dict[str, Way] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def _child(self, name: str, case: Case, bundle: Path, checkpoint: Path | None = None) -> Child:
        checkpoint_path = None if checkpoint is None else str(checkpoint)
        order = Order(asdict(case), str(bundle), str(self.flair), checkpoint_path, "", cores(), self.slab)
        return Child(order, self.folder, name)

    def reference(self) -> np.ndarray:
        """Probabilities of the authors' schedule, window by window.

        Raises
        ------
        UnavailableError
            If PyTorch is missing or fails.
        """
        checkpoint, lacks = restored_checkpoint(self.bundle, self.folder)
        if checkpoint is None:
            raise UnavailableError(f"nothing to compare with: {lacks}")
        path = self.folder / "reference.npy"
        with self._child(BASELINE, Case(BASELINE, "", "fp32", "authors"), self.bundle.path, checkpoint) as child:
            child.ask("open")
            child.ask("slab")
            child.ask("save", path=str(path))
        expected: np.ndarray = np.load(path)
        return expected

    def _why_not(self, way: Way) -> str | None:
        missing = [graphs for graphs in way.needs if "fp32" not in self.bundle.manifest.get(graphs, {})]
        if missing:
            return f"the bundle has no {', '.join(missing)}: export it again"
        if BLOCKED_GRAPHS in way.needs and platform.machine() not in ("x86_64", "AMD64"):
            return "blocks are for x86 processors"
        return None

    def run(self, ways: dict[str, Way], repeats: int) -> None:
        """Measure and compare."""
        self.ways = ways
        expected = self.reference()
        with contextlib.ExitStack() as stack:
            children: dict[str, Child] = {}
            for name, way in ways.items():
                reason = self._why_not(way)
                if reason is not None:
                    self.failed[name] = reason
                    continue
                bundle = self.bundle.path
                if way.lacks:
                    bundle = lacking(self.bundle, way.lacks, self.folder / f"bundle-{len(children)}")
                case = Case(name, "", way.precision, "backend", way.backend)
                children[name] = stack.enter_context(self._child(name, case, bundle))
                try:
                    children[name].ask("open")
                except UnavailableError as error:
                    self.failed[name] = str(error)
                self._seconds(name, children[name])  # a warm-up
            running = {name: partial(self._seconds, name, child) for name, child in children.items()}
            for name, seconds in interleaved(running, repeats).items():
                try:
                    self.found[name] = self._row(name, children[name], seconds, expected)
                except UnavailableError as error:
                    self.failed[name] = str(error)

    def _seconds(self, name: str, child: Child) -> float | None:
        if name in self.failed:
            return None
        try:
            return float(child.ask("stack", slices=self.slices, chunk=self.ways[name].chunk)["seconds"])
        except UnavailableError as error:
            self.failed[name] = str(error)
            return None

    def _row(self, name: str, child: Child, seconds: list[float], expected: np.ndarray) -> dict[str, Any]:
        path = self.folder / f"{name}.npy"
        child.ask("save", path=str(path))
        parity = compare(expected, np.load(path), self.bundle.threshold)
        return {
            "s_per_slice": asdict(spread([value / self.slices for value in seconds])),
            **child.ask("memory"),
            "parity": parity.as_dict(),
            "findings": parity.findings(TOLERANCES[self.ways[name].precision], self.bundle.model.trained),
        }

    def starts(self, repeats: int) -> dict[str, Any]:
        """Seconds from a process's start until the network is loaded and the volume prepared, in turn and at once."""

        def seconds(way: Way, meanwhile: bool) -> float | None:
            with self._child(
                "start", Case("start", "", way.precision, "backend", way.backend), self.bundle.path
            ) as child:
                try:
                    child.ask("open", meanwhile=meanwhile)
                except UnavailableError:
                    return None
                return time.monotonic() - child.begun

        rounds = {
            f"{name}, {'at once' if meanwhile else 'in turn'}": partial(seconds, WAYS[name], meanwhile)
            for name in STARTS
            for meanwhile in (False, True)
        }
        return {name: asdict(spread(found)) for name, found in interleaved(rounds, repeats).items()}

    def changes(self) -> dict[str, Any]:
        """Each change's gain."""
        gains = {}
        for change, ends in CHANGES.items():
            if all(end in self.found for end in ends):
                before, after = (self.found[end] for end in ends)
                gains[change] = {
                    "before": ends[0],
                    "after": ends[1],
                    "times_faster": round(before["s_per_slice"]["median"] / after["s_per_slice"]["median"], 3),
                    "memory_ratio": round(after["peak_mb"] / before["peak_mb"], 3),
                }
        return gains


def files(bundle: Bundle, flair: Path, repeats: int) -> dict[str, Any]:
    """Seconds to read the volume, to inflate it with Python's zlib and with ISA-L, and to write its mask at several levels."""
    with Segmenter(bundle.path) as segmenter:
        mask = segmenter(flair).mask.to_bytes()
    stored = flair.read_bytes()
    cases: dict[str, Callable[[], object]] = {"read": partial(read_flair, flair)}
    if stored[:2] == b"\x1f\x8b":
        cases["inflate, zlib"] = partial(gzip.decompress, stored)
        if find_spec("isal") is not None:
            from isal import igzip

            cases["inflate, isal"] = partial(igzip.decompress, stored)
    levels: dict[str, Callable[[], bytes]] = {
        f"write mask, level {level}": partial(gzip.compress, mask, level, mtime=0) for level in GZIP_LEVELS
    }

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    rounds = {name: partial(timed, work) for name, work in {**cases, **levels}.items()}
    found: dict[str, Any] = {name: asdict(spread(seconds)) for name, seconds in interleaved(rounds, repeats).items()}
    for name, write in levels.items():
        found[name]["bytes"] = len(write())
    return {"seconds": found, "level_in_use": GZIP_LEVEL}


def command(
    model: Annotated[Path, typer.Argument(help="A bundle.")],
    flair: Annotated[Path, typer.Argument(help="A real volume.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
    slices: Annotated[int, typer.Option(help="Output slices, from the middle of the brain.", min=1)] = SLICES,
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
) -> None:
    """Measure every change."""
    check_new(out, force=True)  # before minutes of computing
    bundle = load_bundle(model)
    with tempfile.TemporaryDirectory(prefix="lesionrt-changes-") as folder:
        measured = Changes(bundle, flair, slices, Path(folder))
        measured.run(WAYS, repeats)
        starts = measured.starts(repeats)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": bundle.name,
        "volume": flair.name,
        "slices": measured.slices,
        "rounds": repeats,
        "threads": cores(),
        "changes": measured.changes(),
        "ways": measured.found,
        "start_s": starts,
        "not_run": measured.failed,
        "files": files(bundle, flair, repeats),
        "machine": describe(),
    }
    write_atomically({out: (json.dumps(report, indent=2) + "\n").encode()})
    print(json.dumps({key: report[key] for key in ("changes", "start_s", "not_run", "files")}, indent=2))


if __name__ == "__main__":
    run(command)
