"""The whole benchmark: every case on the same volume in one run."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lesionrt.benchmarks.bench_table import RESTORED
from lesionrt.benchmarks.cases import Case, find_cases, select
from lesionrt.benchmarks.checkpoints import check_preparation, restored_checkpoint
from lesionrt.benchmarks.child import Child, environment
from lesionrt.benchmarks.compared import compare_slabs, compare_volumes
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.machine import describe, device_memory_mb, device_peak
from lesionrt.benchmarks.rates import best_of
from lesionrt.benchmarks.roofline import Work, roofline, slab_in_volume, stack_work
from lesionrt.benchmarks.rows import STAGES, finite, relate, row_of
from lesionrt.benchmarks.running import Running, Say
from lesionrt.benchmarks.scaling import Points, scaling
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.bundle import Bundle, load_bundle
from lesionrt.runtime.errors import CheckpointError, UnavailableError, last_line
from lesionrt.runtime.files import sha256
from lesionrt.runtime.phantom import phantom
from lesionrt.runtime.prepare import HALO, Prepared, prepare_volume
from lesionrt.runtime.processor import cores
from lesionrt.runtime.volume import nonzero_brain, read_flair

SCHEMA = 1
SLAB, QUICK_SLAB = 26, 12  # output slices on which every case is measured
WARM_UP_S = 10.0  # with --quick, only a shorter volume is computed once before it is timed
QUICK_S = 270.0  # after which --quick begins nothing more
WHOLE_VOLUME_S = 100.0  # a case that would take longer for one volume is measured on the slab alone


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes
    ----------
    model
        A bundle's folder.
    flair
        A volume; None for a phantom.
    checkpoint
        The bundle's, for the cases in PyTorch and as the reference; None to restore it from the bundle.
    repeats
        Timed rounds.
    threads
        On the CPU; None for one a core.
    names
        Of the cases; none for all.
    """

    model: Path
    flair: Path | None = None
    checkpoint: Path | None = None
    quick: bool = False
    repeats: int = 3
    threads: int | None = None
    names: tuple[str, ...] = ()


def bench(request: Request, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure; plain values, ready for JSON.

    Raises
    ------
    LesionrtError
        If model, checkpoint or volume cannot be used, or a case is not known.  A case that fails does not raise: its
        row says why.
    """
    if request.checkpoint is not None and not request.checkpoint.is_file():
        raise CheckpointError(f"{request.checkpoint}: no such checkpoint")
    bundle = load_bundle(request.model)
    with tempfile.TemporaryDirectory(prefix="lesionrt-bench-") as name, contextlib.ExitStack() as stack:
        lacking = None
        if request.checkpoint is None:
            restored, lacking = restored_checkpoint(bundle, Path(name))
            lacking = lacking and f"{lacking}; or give --reference checkpoint.pt"
            request = replace(request, checkpoint=restored)
        cases = select(find_cases(bundle, request.checkpoint, request.quick, lacking), list(request.names))
        return _Bench(request, bundle, cases, Path(name), stack, say).run()


class _Bench:
    def __init__(
        self, request: Request, bundle: Bundle, cases: list[Case], folder: Path, stack: contextlib.ExitStack, say: Say
    ) -> None:
        self.request, self.bundle, self.cases = request, bundle, cases
        self.folder, self.stack, self.say = folder, stack, say
        self.begun = time.monotonic()
        self.deadline = self.begun + QUICK_S if request.quick else float("inf")
        self.threads = request.threads or cores()
        self.flair = request.flair or _write_phantom(folder)
        self.volume = read_flair(self.flair)
        self.prepared = self._prepare()
        total = len(self.prepared.brain)
        self.slab = min(QUICK_SLAB if request.quick else SLAB, total)
        self.first = (total - self.slab) // 2

    def _prepare(self) -> Prepared:
        if self.request.checkpoint is not None and find_spec("torch") is not None:
            check_preparation(self.bundle, self.request.checkpoint)
        brain = nonzero_brain(self.volume)
        return prepare_volume(self.volume, brain, self.bundle.preparation, self.bundle.size_multiple)

    def run(self) -> dict[str, Any]:
        self.say("what the machine can do")
        rates, work = self._rates(), self._work()
        rows = [row_of(case) for case in self.cases]
        running = [one for row, case in zip(rows, self.cases, strict=True) if (one := self._start(case, row))]
        self._time_slab(running, work)
        self._note_memory(running, "peak_mb")
        self._time_volumes([one for one in running if one.alive])
        self._note_memory([one for one in running if one.row["volume"]], "peak_volume_mb")
        # Last: the bundle's reference slices may have another shape.
        compared_with = compare_slabs(running, self.bundle, self.prepared.slices.shape[2:], self.folder)
        volume_reference = compare_volumes(running, self.bundle, self.folder, self.say)
        for one in running:
            one.child.close()
        if not self.request.quick:
            self._start_again(running)
        try:  # before and after: at a bad moment a limit would seem to be exceeded
            rates = best_of(rates, self._rates())
        except UnavailableError as error:  # what was measured stands
            self.say(f"once only: {error}")
        baseline = relate(rows, len(self.prepared.brain))
        self._limits(running, rates, work)
        report = {
            **self._described(),
            "baseline": baseline,
            "reference": compared_with,
            "volume_reference": volume_reference,
            "rates": rates,
            "work": work,
            "cases": rows,
            "scaling": None if self.request.quick else self._scaling(running),
        }
        report["elapsed_s"] = round(time.monotonic() - self.begun, 1)
        return finite(report)  # type: ignore[no-any-return]

    # What is measured.

    def _order(self, case: Case) -> Order:
        checkpoint = self.request.checkpoint
        return Order(
            case=asdict(case),
            bundle=str(self.bundle.path),
            flair=str(self.flair),
            checkpoint=None if checkpoint is None else str(checkpoint),
            window_graph=str(self.folder / "window.onnx"),
            threads=self.threads,
            slab=(self.first, self.slab + 2 * HALO),
        )

    def _start(self, case: Case, row: dict[str, Any]) -> Running | None:
        """Start a case's process, from nothing to warm; None if it cannot run."""
        if case.skip is not None:
            return None
        self.say(f"{case.name}: start and warm-up")
        if case.kind == "window" and not self._export_window_graph(row):
            return None
        before = device_memory_mb()
        one = Running(case, Child(self._order(case), self.folder, case.name), row, self.say)
        self.stack.push(one.child)
        with one.told():
            opened = one.child.ask("open")
            one.halo_chunk = opened.pop("halo_chunk")
            row.update(library=opened.pop("library"), device=opened.pop("device"), start_s=opened)
            row["first_s"] = one.child.ask("first")["seconds"]
            row["cold_s"] = time.monotonic() - one.child.begun
            # One window after the other, nothing grows with their number.
            with device_peak() as peak:
                if not (self.request.quick and case.window_by_window):
                    one.child.ask("slab")
            if before is not None:
                row["device_mb"] = (peak() or before) - before
                one.device_held_mb = (device_memory_mb() or before) - before
        if not one.alive:
            one.child.close()
            return None
        return one

    def _export_window_graph(self, row: dict[str, Any]) -> bool:
        height, width = self.prepared.slices.shape[2:]
        module = [sys.executable, "-m", "lesionrt.benchmarks.window_export"]
        paths = [str(self.request.checkpoint), str(self.folder / "window.onnx")]
        answer = subprocess.run([*module, *paths, str(height), str(width)], capture_output=True, text=True)
        if answer.returncode:
            row["skipped"] = f"its export failed: {last_line(answer.stderr)}"
        return answer.returncode == 0

    def _time_slab(self, running: list[Running], work: dict[str, Any] | None) -> None:
        self.say(f"{self.slab} slices, {self.request.repeats} rounds of {len(running)} cases")
        rounds = {one.case.name: partial(one.asked, "slab") for one in running}
        found = interleaved(rounds, self.request.repeats, self.deadline)
        for one in running:
            if one.case.name in found:
                seconds = found[one.case.name]
                one.row["slab"] = asdict(spread(seconds))
                one.row["s_per_slice"] = one.row["slab"]["median"] * self._share(one, work)

    def _share(self, one: Running, work: dict[str, Any] | None) -> float:
        """A slice of a whole volume's share in the slab's time."""
        if work is None:  # the slices beside the slab count as a whole volume's would: too much
            return 1 / self.slab
        total = len(self.prepared.brain)
        encode, decode = Work(**work["encode"]), Work(**work["decode"])
        return slab_in_volume(one.case.kind, encode, decode, self.slab, total, one.halo_chunk) / total

    def _note_memory(self, running: list[Running], key: str) -> None:
        """Each process's peak so far: of the slices, which all compute, and again of whole volumes, where they are."""
        for one in running:
            if one.alive:
                with one.told():
                    one.row[key] = one.child.ask("memory")["peak_mb"]

    def _time_volumes(self, running: list[Running]) -> None:
        """From file to files, for the cases that are fast enough; with --quick as far as the time goes."""
        slices = len(self.prepared.brain)
        chosen, warmed, left = [], set(), self.deadline - time.monotonic()
        for one in sorted(running, key=lambda one: one.row["s_per_slice"]):
            needed = one.row["s_per_slice"] * slices * 1.2 + 2  # reading and writing
            if not one.case.window_by_window and needed < min(WHOLE_VOLUME_S, left):
                chosen.append(one)
                left -= needed
                if not self.request.quick or needed < WARM_UP_S:
                    warmed.add(one.case.name)
        self.say(f"whole volumes of {slices} slices: {', '.join(one.case.name for one in chosen) or 'no case'}")
        answers: dict[str, list[dict[str, Any]]] = {one.case.name: [] for one in chosen}
        rounds = {
            one.case.name: partial(one.asked, "volume", answers[one.case.name], "volume_failed") for one in chosen
        }
        for one in chosen:
            with one.told("volume_failed"):  # at least made ready for as many slices as a volume's pieces have
                self._warm_up(one, "volume" if one.case.name in warmed else "warm_up")
        beside = next((one for one in running if one.case.window_by_window), None)
        if beside is not None and left < beside.row["slab"]["median"]:
            beside = None
        if chosen and beside is not None:  # its slab once more, so that the volumes' ratios are of one time too
            rounds[beside.case.name] = partial(beside.asked, "slab")
        found = interleaved(rounds, self.request.repeats, self.deadline)
        if beside is not None and beside.case.name in found:
            beside.row["slab_beside_volumes"] = asdict(spread(found[beside.case.name]))
        for one in chosen:
            if one.case.name in found:
                kept = answers[one.case.name]
                one.row["volume"] = asdict(spread(found[one.case.name]))
                one.row["stages"] = {stage: _median([answer["stages"][stage] for answer in kept]) for stage in STAGES}

    def _warm_up(self, one: Running, do: str) -> None:
        before = device_memory_mb()
        with device_peak() as peak:
            one.child.ask(do)
        if before is not None:
            most = one.device_held_mb + (peak() or before) - before
            one.row["device_mb"] = max(one.row["device_mb"] or 0.0, most)

    def _start_again(self, running: list[Running]) -> None:
        """The second start finds the caches that the first one filled."""
        for one in running:
            if one.alive:
                self.say(f"{one.case.name}: second start")
                try:
                    with Child(self._order(one.case), self.folder, f"{one.case.name}-again") as child:
                        child.ask("open")
                        child.ask("first")
                        one.row["cold_again_s"] = time.monotonic() - child.begun
                except UnavailableError as error:  # what was measured stands
                    self.say(f"{one.case.name}: second start failed: {error}")

    def _scaling(self, running: list[Running]) -> dict[str, Any] | None:
        """Of the fastest of this toolkit's backends that is right."""
        able = [
            one
            for one in running
            if one.case.kind == "backend" and one.row["parity"] is not None and not one.row["wrong"]
        ]
        if not able:
            return None
        fastest = min(able, key=lambda one: one.row["s_per_slice"])
        return scaling(self._order(fastest.case), self.folder, Points(), self.threads, self.request.repeats, self.say)

    def _rates(self) -> dict[str, Any]:
        answer = subprocess.run(
            [sys.executable, "-m", "lesionrt.benchmarks.rates", str(self.threads)],
            capture_output=True,
            text=True,
            env=environment(self.threads, self.folder / "cache-rates"),
        )
        if answer.returncode:
            raise UnavailableError(f"the machine's rates could not be measured: {last_line(answer.stderr)}")
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def _work(self) -> dict[str, Any] | None:
        """FLOPs and values of one slice; None without onnx or a float32 graph."""
        if find_spec("onnx") is None or "fp32" not in self.bundle.precisions:
            return None
        from lesionrt.benchmarks.flops import slice_work

        height, width = self.prepared.slices.shape[2:]
        encode, decode, weights = slice_work(self.bundle.graph("fp32"), height, width)
        return {"encode": asdict(encode), "decode": asdict(decode), "weights": asdict(weights)}

    # What follows from it.

    def _limits(self, running: list[Running], rates: dict[str, Any], work: dict[str, Any] | None) -> None:
        if work is None:
            return
        encode, decode, weights = (Work(**work[part]) for part in ("encode", "decode", "weights"))
        for one in running:
            row = one.row
            device = "cpu" if "cpu" in (row["device"] or "cpu").lower() else "cuda"
            if one.alive and device in rates:
                done = stack_work(one.case.kind, encode, decode, self.slab, one.halo_chunk) + weights
                row["roofline"] = roofline(done, one.case.precision, row["slab"]["median"], rates[device])

    def _described(self) -> dict[str, Any]:
        checkpoint, height_width = self.request.checkpoint, list(self.prepared.slices.shape[2:])
        restored = checkpoint is not None and checkpoint.parent == self.folder
        exported = self.bundle.manifest["checkpoint"]["sha256"]
        notes = []
        if self.request.names:
            notes.append(f"only these cases were asked for: {', '.join(case.name for case in self.cases)}")
        if not self.bundle.model.trained:
            notes.append("the model has random weights: its masks mean nothing and are not judged")
        if checkpoint is not None and not restored and sha256(checkpoint) != exported:
            notes.append(f"{checkpoint} is not the checkpoint that the bundle was exported from")
        return {
            "schema": SCHEMA,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "lesionrt": version("lesionrt"),
            "machine": describe(),
            "model": {**self.bundle.model.as_dict(), "sha256": self.bundle.sha256},
            "checkpoint": None if checkpoint is None else RESTORED if restored else checkpoint.name,
            "volume": {
                "name": "phantom" if self.request.flair is None else self.request.flair.name,
                "sha256": self.volume.sha256,
                "shape": list(self.volume.shape),
                "slices": len(self.prepared.brain),
                "height_width": height_width,
            },
            "quick": self.request.quick,
            "slab_slices": self.slab,
            "repeats": self.request.repeats,
            "threads": self.threads,
            "notes": notes,
        }


def _median(values: list[float | None]) -> float | None:
    """Of what could be timed; None where nothing could."""
    known = [value for value in values if value is not None]
    return spread(known).median if known else None


def _write_phantom(folder: Path) -> Path:
    flair, _ = phantom()
    path = folder / "phantom_flair.nii.gz"
    nib.save(nib.Nifti1Image(flair, np.eye(4)), path)
    return path
