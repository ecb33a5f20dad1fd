"""What each change that was kept for speed gains: before and after, in one run on one volume.

    python -m lesionrt.benchmarks.changes BUNDLE FLAIR -o changes.json [--slices 24] [--repeats 5]

Each way to compute has a process of its own, and they take turns. Before and after are the same bundle, less the graphs that
came with the change; each is compared with PyTorch's window forward, which the bundle's reference slices hold.
"""

import contextlib
import gzip
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lesionrt.benchmarks.cases import Case
from lesionrt.benchmarks.child import Child
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.machine import describe
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, MANIFEST, REFERENCE, STREAM_GRAPHS, Bundle, load_bundle
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.errors import LesionrtError, UnavailableError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.parity import TOLERANCES, compare, load_reference
from lesionrt.runtime.prepare import HALO, prepare_volume
from lesionrt.runtime.processor import cores
from lesionrt.runtime.volume import nonzero_brain, read_flair

# Name: backend, precision, and which graphs the bundle lacks.
WAYS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "onnxruntime-chunks": ("cpu", "fp32", (STREAM_GRAPHS, BLOCKED_GRAPHS)),
    "onnxruntime-state": ("cpu", "fp32", (BLOCKED_GRAPHS,)),
    "onnxruntime-blocks": ("cpu", "fp32", ()),
    "openvino-fp32": ("openvino", "fp32", ()),
    "openvino-bf16": ("openvino", "bf16", ()),
}
CHANGES = {
    "the state is kept between chunks": ("onnxruntime-chunks", "onnxruntime-state"),
    "channels in whole blocks": ("onnxruntime-state", "onnxruntime-blocks"),
    "OpenVINO": ("onnxruntime-blocks", "openvino-fp32"),
    "bfloat16": ("openvino-fp32", "openvino-bf16"),
}
GZIP_LEVELS = (1, 6, 9)


def lacking(bundle: Bundle, graphs: tuple[str, ...], copy: Path) -> Path:
    """The same bundle without some of its graphs, in a new folder."""
    shutil.copytree(bundle.path, copy)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in graphs}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def ways(bundle: Bundle, flair: Path, slices: int, repeats: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Seconds a slice, peak memory and parity of each way that runs here, and why the others do not."""
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    reference = load_reference(bundle.checked(REFERENCE))
    with tempfile.TemporaryDirectory(prefix="lesionrt-changes-") as name, contextlib.ExitStack() as stack:
        folder, children = Path(name), {}
        volume = read_flair(flair)
        total = len(prepare_volume(volume, nonzero_brain(volume), bundle.preparation, bundle.size_multiple).slices)
        count = min(slices + 2 * HALO, total)
        for way, (backend, precision, graphs) in WAYS.items():
            case = Case(way, "", precision, "backend", backend)
            path = str(lacking(bundle, graphs, folder / f"bundle-{way}"))
            order = Order(asdict(case), path, str(flair), None, "", cores(), ((total - count) // 2, count))
            child = stack.enter_context(Child(order, folder, way))
            try:
                child.ask("open")
                child.ask("slab")  # a warm-up
                children[way] = child
            except UnavailableError as error:
                failed[way] = str(error)
        asked: dict[str, Callable[[], float]] = {
            way: partial(lambda child: float(child.ask("slab")["seconds"]), child) for way, child in children.items()
        }
        for way, seconds in interleaved(asked, repeats).items():
            child = children[way]
            row: dict[str, Any] = {"s_per_slice": asdict(spread([value / (count - 2 * HALO) for value in seconds]))}
            row |= child.ask("memory")
            child.ask("reference", path=str(folder / f"{way}.npy"))
            parity = compare(reference.lesion, np.load(folder / f"{way}.npy"), bundle.threshold)
            row["parity"] = parity.as_dict()
            row["findings"] = parity.findings(TOLERANCES[WAYS[way][1]], bundle.model.trained)
            found[way] = row
    return found, failed


def files(flair: Path, repeats: int) -> dict[str, Any]:
    """Seconds to inflate the volume, with Python's own zlib and with ISA-L where it is installed; and to deflate its mask."""
    stored = flair.read_bytes()
    inflate: dict[str, Callable[[bytes], bytes]] = {"zlib": gzip.decompress}
    if find_spec("isal") is not None:
        from isal import igzip

        inflate["isal"] = igzip.decompress
    volume = read_flair(flair)
    mask = (volume.data > np.percentile(volume.data, 99)).astype(np.uint8).tobytes()  # as ragged as a mask may be

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    cases: dict[str, Callable[[], float]] = {}
    if flair.suffix == ".gz":
        cases |= {f"inflate-{name}": partial(timed, partial(call, stored)) for name, call in inflate.items()}
    cases |= {f"deflate-{level}": partial(timed, partial(gzip.compress, mask, level)) for level in GZIP_LEVELS}
    found: dict[str, Any] = {
        name: {"s": asdict(spread(seconds))} for name, seconds in interleaved(cases, repeats).items()
    }
    for level in GZIP_LEVELS:
        found[f"deflate-{level}"]["bytes"] = len(gzip.compress(mask, level))
    return found


def command(
    model: Annotated[Path, typer.Argument(help="A bundle.")],
    flair: Annotated[Path, typer.Argument(help="A real volume.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
    slices: Annotated[int, typer.Option(help="Output slices, from the middle of the brain.", min=1)] = 24,
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 5,
) -> None:
    """Measure every change."""
    check_new(out, force=True)  # before minutes of computing
    bundle = load_bundle(model)
    found, failed = ways(bundle, flair, slices, repeats)
    changes = {}
    for change, (before, after) in CHANGES.items():
        if before in found and after in found:
            seconds = [found[way]["s_per_slice"]["median"] for way in (before, after)]
            peaks = [found[way]["peak_mb"] for way in (before, after)]
            changes[change] = {
                "before": before,
                "after": after,
                "times_faster": round(seconds[0] / seconds[1], 3),
                "memory_ratio": round(peaks[1] / peaks[0], 3),
            }
    report = {
        "model": bundle.name,
        "volume": flair.name,
        "slices": slices,
        "rounds": repeats,
        "threads": cores(),
        "changes": changes,
        "ways": found,
        "not_run": failed,
        "files": files(flair, repeats),
        "machine": describe(),
    }
    write_atomically({out: (json.dumps(report, indent=2) + "\n").encode()})
    print(json.dumps({"changes": changes, "not_run": failed, "files": report["files"]}, indent=2))


if __name__ == "__main__":
    try:
        typer.run(command)
    except LesionrtError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
