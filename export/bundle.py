"""From a checkpoint to a bundle that has proven itself."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lesionrt.export.blocked import BlockedStream
from lesionrt.export.emulation import EMULATED_PRECISION, open_emulated
from lesionrt.export.graph import OPSETS, export_graph, graph_metadata, parts_in_float32, with_one_input_channel
from lesionrt.export.ranges import product_ranges
from lesionrt.export.reference import window_probabilities
from lesionrt.export.stream import Stream, export_stream_graph
from lesionrt.runtime.backends import choose, onnx_cpu, open_backend
from lesionrt.runtime.backends.onnx_stream import OnnxStream
from lesionrt.runtime.bundle import (
    BLOCKED_GRAPHS,
    FORMAT,
    MANIFEST,
    PRECISIONS,
    REFERENCE,
    STREAM_GRAPHS,
    TIMING_CACHES,
    VERSION,
    load_bundle,
)
from lesionrt.runtime.errors import OutputError, ParityError
from lesionrt.runtime.files import beside, sha256
from lesionrt.runtime.lock import locked
from lesionrt.runtime.parity import EXPORT_TOLERANCES, Reference, Tolerance, report_lines, save_reference
from lesionrt.runtime.verify import EMULATED, compare_backend
from lesionrt.train.checkpoint import Checkpoint
from lesionrt.train.inference import THRESHOLD
from lesionrt.train.model import Network
from lesionrt.train.untrained import phantom_slices

STACKS = (1, 2, 6)  # output slices
STREAMED = "fp32"  # half precision is for GPUs, which take a volume at once
PROOF_BACKEND = "cpu"

Say = Callable[[str], None]


def export_bundle(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    out: Path,
    precisions: Sequence[str],
    tolerances: dict[str, Tolerance] | None = None,
    slices: np.ndarray | None = None,
    force: bool = False,
    say: Say = lambda text: None,
    card: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Write a bundle, compare each graph with PyTorch, and keep the bundle only if all agree.

    Parameters
    ----------
    checkpoint, checkpoint_sha256
        What to export.
    out
        The bundle's folder.
    precisions
        Of :data:`lesionrt.export.graph.DTYPES`.
    tolerances
        By precision; None for :data:`lesionrt.runtime.parity.EXPORT_TOLERANCES`.
    slices
        Prepared slices (n, 1, H, W) of a real scan on which to look at the range of half-precision products;
        None for a phantom's.
    force
        Replace an existing bundle.
    say
        Told what is going on.
    card
        As :func:`lesionrt.export.card.read_card` gives it.

    Returns
    -------
    The parity rows that the manifest holds.

    Raises
    ------
    ParityError
        With the numbers, if a graph does not agree; there is then no bundle.
    OutputError
        If `out` exists or cannot be written.
    UnavailableError
        If ONNX Runtime is missing.
    """
    choose(PROOF_BACKEND)
    out = out.resolve()  # a link stays and what it names is replaced; the current folder has a name too
    _check_place(out, force)
    tolerances = tolerances or EXPORT_TOLERANCES
    partial = beside(out)
    try:
        try:
            partial.mkdir(parents=True)
            rows = _build(checkpoint, checkpoint_sha256, partial, precisions, tolerances, slices, say, card or {})
            _replace(out, partial, force)
        except OSError as error:
            raise OutputError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def _check_place(out: Path, force: bool) -> None:
    """Refuse to replace a bundle unasked, and what is no bundle or holds somebody's other files too; an empty folder may be.

    Raises
    ------
    OutputError
        Naming what it holds.
    """
    if out.is_mount():
        raise OutputError(f"{out}: a file system is mounted there, which cannot be replaced; give a folder below it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputError(f"{out} exists already; give --force to replace it, or another folder")
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *manifest["files"]} if manifest["format"] == FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    if not known:
        raise OutputError(f"{out} exists and is no bundle; it is not replaced")
    others = sorted(path.name for path in out.iterdir() if path.name not in known and not path.match(TIMING_CACHES))
    if others:
        raise OutputError(
            f"{out} holds more than a bundle: {', '.join(others)}; it is not replaced: move what is not in its manifest elsewhere"
        )


def _build(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    folder: Path,
    precisions: Sequence[str],
    tolerances: dict[str, Tolerance],
    slices: np.ndarray | None,
    say: Say,
    card: dict[str, Any],
) -> list[dict[str, Any]]:
    network, multiple = checkpoint.network, checkpoint.network.config.size_multiple
    say("PyTorch float32, window by window, on phantom slices")
    large = phantom_slices(checkpoint.preparation, multiple, max(STACKS) + 2)
    # A quarter of the phantom holds neither with more than six levels.
    small = _centre(large, 2 * multiple, 3 * multiple) if multiple <= 64 else _centre(large, multiple, 2 * multiple)
    probabilities = [window_probabilities(network, stack) for stack in (large, small)]
    reference = Reference(large, probabilities[0], checkpoint_sha256, "phantom slices")
    save_reference(reference, folder / REFERENCE)

    ranges = None
    if "fp16" in precisions and network.config.attention:
        ranges = _checked_ranges(
            checkpoint, large if slices is None else slices, "phantom" if slices is None else "a real scan", say
        )
    wide = [] if ranges is None else ranges["in_float32"]
    in_float32 = {precision: parts_in_float32(network, precision, wide) for precision in precisions}
    graphs = _write_graphs(network, checkpoint_sha256, folder, in_float32, say)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": {**checkpoint.model.as_dict(), **card.get("model", {})},
        "card": {key: value for key, value in card.items() if key != "model"},
        "network": network.config.as_dict(),
        "input": {
            **checkpoint.preparation.as_dict(),
            "region": checkpoint.preparation.region,
            "size_multiple": multiple,
        },
        "threshold": THRESHOLD,
        "graphs": graphs,
        "opset": max(OPSETS[precision] for precision in precisions),
        "opsets": {precision: OPSETS[precision] for precision in precisions},
        "checkpoint": {"sha256": checkpoint_sha256},
        "versions": {name: version(name) for name in ("lesionrt", "torch", "onnx", "onnxscript", "numpy")},
        "attention_products": ranges,
        "in_float32": in_float32,
        "files": {name: _entry(folder / name) for name in (*graphs.values(), REFERENCE)},
    }
    references = [
        Reference(stack, lesion, checkpoint_sha256, "x".join(map(str, stack.shape[2:])))
        for stack, lesion in zip((large, small), probabilities, strict=True)
    ]
    _write_manifest(manifest, folder)
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        say(f"parity, {precision}")
        rows += _prove(folder, precision, tolerances[precision], references)
    _check_findings(rows)  # before more graphs are made
    for kind, name in _write_streams(network, checkpoint_sha256, folder, graphs, say).items():
        say(f"parity, {name}")
        rows += _prove_stream(folder, STREAMED, name, tolerances[STREAMED], references)
        manifest[kind] = {STREAMED: name}
        manifest["files"][name] = _entry(folder / name)
    _check_findings(rows)
    _write_manifest({**manifest, "parity": rows}, folder)
    return rows


def _check_findings(rows: Sequence[dict[str, Any]]) -> None:
    failed = [row for row in rows if row["findings"]]
    if failed:
        raise ParityError(
            "the exported graph does not agree with PyTorch; no bundle was written\n" + "\n".join(report_lines(failed))
        )


def _write_graphs(
    network: Network, checkpoint_sha256: str, folder: Path, in_float32: dict[str, list[str]], say: Say
) -> dict[str, str]:
    """Names by precision of the graphs for whole stacks."""
    graphs: dict[str, str] = {}
    for precision in sorted(in_float32, key=PRECISIONS.index):  # float32 first: its file holds the weights
        say(f"ONNX graph, {precision}")
        weights = folder / graphs["fp32"] if "fp32" in graphs else None
        graphs[precision] = f"model_{precision}.onnx"
        metadata = graph_metadata(network, checkpoint_sha256, precision)
        export_graph(network, precision, folder / graphs[precision], metadata, in_float32[precision], weights)
    return graphs


def _write_streams(
    network: Network, checkpoint_sha256: str, folder: Path, graphs: dict[str, str], say: Say
) -> dict[str, str]:
    """Names by kind of the graphs that take and give the state between chunks."""
    if STREAMED not in graphs:
        return {}
    grey, metadata = with_one_input_channel(network), graph_metadata(network, checkpoint_sha256, STREAMED)
    streams: dict[str, str] = {}
    for kind, stream in ((STREAM_GRAPHS, Stream(grey)), (BLOCKED_GRAPHS, BlockedStream(grey))):
        streams[kind] = f"{kind.removesuffix('_graphs')}_{STREAMED}.onnx"
        say(f"ONNX graph, {streams[kind]}")
        export_stream_graph(stream, folder / streams[kind], metadata, folder / graphs[STREAMED])
    return streams


def _prove(folder: Path, precision: str, tolerance: Tolerance, references: Sequence[Reference]) -> list[dict[str, Any]]:
    """One graph against PyTorch, at every length of stack and both sizes."""
    bundle = load_bundle(folder)
    rows = []
    with (
        open_emulated(bundle)
        if precision == EMULATED_PRECISION
        else open_backend(PROOF_BACKEND, bundle, precision) as backend
    ):
        for whole in references:
            for count in STACKS:
                what = f"{count} output slices of {whole.source}"
                part = replace(whole, slices=whole.slices[: count + 2], lesion=whole.lesion[:count], source=what)
                # In one run: a chunked one would show the graph shorter stacks only. Masks are compared of all slices together:
                # those of one hold few lesion voxels, of which one more or less is beyond any tolerance.
                masks = count == len(whole.lesion)
                rows.append(compare_backend(bundle, backend, part, tolerance, chunk=count, masks=masks))
    return rows


def _prove_stream(
    folder: Path, precision: str, name: str, tolerance: Tolerance, references: Sequence[Reference]
) -> list[dict[str, Any]]:
    """The graph that takes and gives its state against PyTorch, at every length of chunk and both sizes."""
    bundle = load_bundle(folder)
    rows = []
    # By its name: which of the graphs a backend takes depends on the machine.
    with OnnxStream(PROOF_BACKEND, onnx_cpu.device(), folder / name, precision, onnx_cpu.PROVIDER, None) as backend:
        for whole in references:
            for chunk in STACKS:
                what = f"{len(whole.lesion)} output slices of {whole.source}, streamed {chunk} at a time by {name}"
                rows.append(compare_backend(bundle, backend, replace(whole, source=what), tolerance, chunk))
    return rows


def _checked_ranges(checkpoint: Checkpoint, slices: np.ndarray, source: str, say: Say) -> dict[str, Any]:
    say(f"range of the squeeze-and-attention products, {source}")
    ranges = product_ranges(checkpoint.network, slices)
    overflown = [found for found in ranges if not found.finite_in_half]
    if overflown:
        listed = "\n".join(f"  {found.name}: largest magnitude {found.largest:.4g}" for found in overflown)
        raise ParityError(
            f"squeeze-and-attention products overflow half precision (largest number 65504) on slices of {source}; "
            f"no bundle was written; export with --precision fp32, or with bf16, whose range is float32's\n{listed}"
        )
    return {
        "slices": source,
        "largest": max(found.largest for found in ranges),
        "blocks": {found.name: found.largest for found in ranges},
        "in_float32": [found.name for found in ranges if found.large],
        "note": EMULATED,
    }


def _centre(stack: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of each slice, or more around it, which repeats its edge."""
    pads = [max(0, wanted - have) for wanted, have in zip((height, width), stack.shape[2:], strict=True)]
    stack = np.pad(stack, ((0, 0), (0, 0), *((pad // 2, pad - pad // 2) for pad in pads)), mode="edge")
    top, left = (stack.shape[2] - height) // 2, (stack.shape[3] - width) // 2
    return np.ascontiguousarray(stack[:, :, top : top + height, left : left + width])


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _replace(out: Path, partial: Path, force: bool) -> None:
    """Put the finished folder in place; the old one is there until the moment of the swap."""
    if not out.exists():
        partial.rename(out)
        return
    old = beside(out)
    with locked(out):  # an engine may be being added
        _check_place(out, force)  # much may have come there since the export began
        out.rename(old)
        try:
            partial.rename(out)
        except BaseException:
            old.rename(out)
            raise
    shutil.rmtree(old, ignore_errors=True)  # the new one is in place, whoever still reads the old one
