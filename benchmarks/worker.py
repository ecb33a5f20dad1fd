"""One case in a process of its own, told line by line what to do: JSON orders in, JSON answers out.

    python -m lesionrt.benchmarks.worker ORDER

So its start, its memory and its threads are its own, and the repetitions of several cases can be interleaved.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesionrt.benchmarks.cases import Case, open_case
from lesionrt.benchmarks.transfer import transfer_seconds
from lesionrt.runtime.backends import StreamingBackend
from lesionrt.runtime.bundle import REFERENCE, load_bundle
from lesionrt.runtime.chunks import default_chunk, infer_in_chunks
from lesionrt.runtime.outputs import plan_jobs, write_results
from lesionrt.runtime.parity import load_reference
from lesionrt.runtime.prepare import HALO
from lesionrt.runtime.segmenter import Segmenter, load_volume


@dataclass(frozen=True)
class Order:
    """What a process is for; paths as text.

    Attributes
    ----------
    slab
        First prepared slice and number of slices (with both neighbours) that are computed.
    """

    case: dict[str, Any]
    bundle: str
    flair: str
    checkpoint: str | None
    window_graph: str
    threads: int
    slab: tuple[int, int]


class Worker:
    """Answers orders by name; times are in seconds."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._bundle = load_bundle(Path(order.bundle))
        self._result = np.empty(0, np.float32)  # of the last stack, and of the last whole volume
        self._volume = np.empty(0, np.float32)

    def open(self, meanwhile: bool = True) -> dict[str, Any]:
        """Load the network, read and prepare the volume meanwhile, as ``lesionrt segment`` does, or before."""
        order = self._order
        checkpoint = None if order.checkpoint is None else Path(order.checkpoint)
        case = Case(**order.case)
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(load_volume, self._bundle, Path(order.flair))
            if not meanwhile:
                reading.result()
            start = time.perf_counter()
            opened = open_case(case, self._bundle, checkpoint, Path(order.window_graph), order.threads)
            self._backend = opened.__enter__()
            load = time.perf_counter() - start
            loaded = reading.result()
        self._slices = loaded.prepared.slices
        first, count = order.slab
        self._slab = np.ascontiguousarray(self._slices[first : first + count])
        return {
            **loaded.seconds,
            "load": load,
            "library": self._backend.library,
            "device": self._backend.device,
            "halo_chunk": self._halo_chunk(),
        }

    def _halo_chunk(self) -> int | None:
        """After how many output slices two are encoded again; None where none is."""
        if hasattr(self._backend, "backend_for"):  # engines encode two again each time that they run
            return int(self._backend.backend_for(self._slices).most_slices)
        keeps_state = isinstance(self._backend, StreamingBackend) or hasattr(self._backend, "infer_stack")
        return None if keeps_state else default_chunk(*self._slab.shape[2:])

    def first(self) -> dict[str, Any]:
        """One output slice."""
        return self._timed(self._slab[: 2 * HALO + 1], None)

    def slab(self) -> dict[str, Any]:
        """All slices of the slab, through the network alone."""
        return self._timed(self._slab, None)

    def stack(self, slices: int, chunk: int | None) -> dict[str, Any]:
        """A stack of as many output slices, the slab's over and over."""
        index = np.arange(slices + 2 * HALO) % len(self._slab)
        return self._timed(self._slab[index], chunk)

    def warm_up(self) -> dict[str, Any]:
        """Two pieces of a size that a volume's pieces have; the last stack's probabilities stay what they were."""
        result = self._result
        self.stack(max(1, 2 * default_chunk(*self._slab.shape[2:]) - 2 * HALO), None)
        self._result = result
        return {}

    def reference(self, path: str) -> dict[str, Any]:
        """The bundle's own reference slices; their probabilities are saved."""
        self._timed(load_reference(self._bundle.checked(REFERENCE)).slices, None)
        return self.save(path)

    def save(self, path: str) -> dict[str, Any]:
        """The last stack's probabilities, into a file."""
        np.save(path, self._result)
        return {}

    def save_volume(self, path: str) -> dict[str, Any]:
        """The last whole volume's probabilities, into a file."""
        np.save(path, self._volume)
        return {}

    def volume(self) -> dict[str, Any]:
        """From file to files, once."""
        self._volume = np.empty(0, np.float32)
        segmenter = Segmenter(self._order.bundle, backend=self._backend)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = segmenter(self._order.flair)
            segmented = time.perf_counter()
            write_results(found, plan_jobs([Path(self._order.flair)], Path(folder)).jobs[0])
            end = time.perf_counter()
        self._volume = np.asarray(found.probability.dataobj)
        stages = found.report["seconds"]
        stages = {
            "read": stages["read"],
            "prepare": stages["prepare"],
            "transfer": self._transfer(),
            "compute": stages["infer"],
            "restore": stages["restore"],
            "write": end - segmented,
        }
        return {"seconds": end - start, "stages": stages}

    def _transfer(self) -> float | None:
        """Of the whole volume's slices, which are part of compute; 0 where nothing leaves the CPU."""
        if "CPU" in self._backend.device.upper():
            return 0.0
        return transfer_seconds(self._slices)

    def memory(self) -> dict[str, Any]:
        """Peak resident memory so far, in MB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return {"peak_mb": int(peak.split()[1]) * 1024 / 1e6}

    def _timed(self, slices: np.ndarray, chunk: int | None) -> dict[str, Any]:
        start = time.perf_counter()
        self._result = infer_in_chunks(self._backend, slices, chunk)
        return {"seconds": time.perf_counter() - start}


def main() -> None:
    """Answer until the orders end."""
    # What a library prints to stdout must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            worker = worker or Worker(Order(**json.loads(sys.argv[1])))
            verb: Callable[..., dict[str, Any]] = getattr(worker, order.pop("do"))
            answer = verb(**order)
        except Exception as error:  # whatever a library raises is told where the table is made
            text = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
