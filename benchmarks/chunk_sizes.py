"""Seconds and memory by chunk size: the state kept between chunks against neighbours computed anew.

    python -m lesionrt.benchmarks.chunk_sizes BUNDLE FLAIR [--chunk 2 --chunk 8 ...]

Repetitions are interleaved (A B A B ...) after a warm-up of all; the medians are reported. Each peak of memory is that
of a program of its own.
"""

import json
import multiprocessing
import os
import platform
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from lesionrt.benchmarks.interleaved import Array, median_seconds
from lesionrt.runtime.backends import Backend, onnx_cpu
from lesionrt.runtime.backends.onnx_session import OnnxSession
from lesionrt.runtime.bundle import Bundle, load_bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import BundleError, LesionrtError
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.volume import nonzero_brain, read_flair

CHUNKS = (2, 4, 6, 8, 12)
WAYS = ("halo", "stream")


def open_way(bundle: Bundle, way: str) -> Backend:
    """A bundle's float32 graph on the CPU, with neighbours computed anew (``halo``) or with state (``stream``).

    Raises
    ------
    BundleError
        If the bundle has no graph with state.
    """
    if way == "halo":
        return OnnxSession(way, onnx_cpu.device(), bundle.graph("fp32"), "fp32", onnx_cpu.PROVIDER, None)
    if bundle.stream_graph("fp32") is None:
        raise BundleError(f"{bundle.path}: has no fp32 graph that streams; export it again")
    return onnx_cpu.open_backend("cpu", bundle, "fp32", None)


def peak_megabytes(path: Path, way: str, chunk: int, stack: Array) -> int:
    """Peak resident memory of this process after the stack went through."""
    with open_way(load_bundle(path), way) as backend:
        infer_in_chunks(backend, stack, chunk)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) * 1024 / 1e6)


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle, with an fp32 graph that streams.")],
    flair: Annotated[Path, typer.Argument(help="A real volume.")],
    chunk: Annotated[list[int] | None, typer.Option(help="May be repeated.", min=1, show_default="2 4 6 8 12")] = None,
    slices: Annotated[int, typer.Option(help="Output slices from the middle of the brain.", min=1)] = 24,
    repeats: Annotated[int, typer.Option(help="Timed repetitions of each case.", min=1)] = 3,
) -> None:
    """Time both ways at every chunk size on the same slices, and measure their memory."""
    model = load_bundle(bundle)
    volume = read_flair(flair)
    stack = prepare_volume(volume, nonzero_brain(volume), model.preparation, model.size_multiple).slices
    first = max(0, (len(stack) - slices - 2) // 2)
    stack = np.ascontiguousarray(stack[first : first + slices + 2])
    count = len(stack) - 2
    with open_way(model, "halo") as halo, open_way(model, "stream") as stream:
        backends = {"halo": halo, "stream": stream}
        cases = {
            f"{way} {size}": lambda way=way, size=size: infer_in_chunks(backends[way], stack, size)
            for size in chunk or CHUNKS
            for way in WAYS
        }
        seconds, results = median_seconds(cases, repeats)
        library = stream.library
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for size in chunk or CHUNKS:
        for way in WAYS:
            with spawn.Pool(1) as pool:
                peak = pool.apply(peak_megabytes, (bundle, way, size, stack[: 2 * size + 2]))
            case = f"{way} {size}"
            rows.append(
                {
                    "way": way,
                    "chunk": size,
                    "s_per_slice": round(seconds[case] / count, 4),
                    "peak_megabytes": peak,
                    "max_difference": float(np.abs(results[case] - results[f"halo {size}"]).max()),
                }
            )
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    report = {
        "slices": flair.name,
        "output_slices": count,
        "height_width": list(stack.shape[2:]),
        "by": f"{library} float32",
        "rows": rows,
        "repeats": repeats,
        "machine": machine,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        typer.run(command)
    except LesionrtError as error:
        raise SystemExit(f"error: {error}") from error
