"""OpenVINO on the CPU: in bfloat16 where the processor is faster in it."""

import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays, Backend, Probe
from lesionrt.runtime.backends.onnx_cpu import device
from lesionrt.runtime.backends.onnx_stream import STATE, check_names
from lesionrt.runtime.bundle import STREAM_GRAPHS, Bundle
from lesionrt.runtime.chunks import default_chunk
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError, last_line
from lesionrt.runtime.prepare import HALO
from lesionrt.runtime.processor import cores, fast_bfloat16

HINTS = {"bf16": "bf16", "fp32": "f32"}
BEFORE = 2 * HALO  # slices of which the state is


def probe(name: str) -> Probe:
    """Whether it can run here."""
    if find_spec("openvino") is None:
        return Probe(name, "openvino", device(), "OpenVINO is not installed", "Run: pip install 'lesionrt[openvino]'")
    try:
        _has_bfloat16()
    except UnavailableError as error:
        return Probe(name, _library(), device(), str(error), "Run: pip install --force-reinstall openvino")
    return Probe(name, _library(), device())


def _library() -> str:
    """With its version, where it came as the package of that name."""
    try:
        return f"openvino {version('openvino')}"
    except PackageNotFoundError:
        return "openvino"


def slower_because() -> str | None:
    """Why `auto` should pass it by although it can run; None where it is faster than ONNX Runtime."""
    return (
        None
        if _has_bfloat16() and fast_bfloat16()
        else "the CPU is not faster in bfloat16, without which OpenVINO is hardly faster than ONNX Runtime"
    )


def bundle_problem(name: str, bundle: Bundle) -> tuple[str, str] | None:
    """Why it cannot run this bundle, and what would mend that."""
    if "fp32" not in bundle.manifest.get(STREAM_GRAPHS, {}):
        return (
            "the bundle has no fp32 graph that keeps the state between chunks",
            "Export it again with --precision fp32",
        )
    return None


def precisions(name: str, bundle: Bundle) -> list[str]:
    """Of the float32 graph, which it computes in bfloat16 where the processor can; the faster one first."""
    if not _has_bfloat16():
        return ["fp32"]
    return ["bf16", "fp32"] if fast_bfloat16() else ["fp32", "bf16"]


def open_backend(name: str, bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's float32 graph."""
    graph = bundle.stream_graph("fp32", STREAM_GRAPHS)
    if graph is None or precision not in precisions(name, bundle):
        raise BundleError(
            f"{bundle.path}: {name} runs {' and '.join(precisions(name, bundle))} of a bundle with an fp32 graph here, not {precision}"
        )
    return OpenvinoBackend(name, graph, precision, threads)


class OpenvinoBackend:
    """A graph in OpenVINO, compiled for one size of stack at a time: it plans memory and kernels for that size."""

    def __init__(self, name: str, graph: Path, precision: str, threads: int | None) -> None:
        self.name, self.device, self.precision, self.graph = name, device(), precision, graph.name
        self.library = _library()
        self._options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads or cores(),
        }
        try:
            self._model: Any = _core().read_model(graph)
            inputs = {value.any_name: int(value.partial_shape[1].get_length()) for value in self._model.inputs}
            outputs = [value.any_name for value in self._model.outputs]
        except RuntimeError as error:
            raise BundleError(f"{graph}: {self.library} cannot read it ({last_line(str(error))})") from error
        check_names(graph, [*inputs], outputs)
        del inputs["slices"]
        self._channels, self._next = inputs, dict(zip(inputs, outputs[1:], strict=True))
        self._lock = threading.Lock()  # one request, compiled for one size
        self._compiled: tuple[dict[str, list[int]], Any] | None = None

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.infer_stack(feed["slices"], None, None)}

    def infer_stack(
        self, slices: NDArray[np.float32], chunk: int | None, progress: Callable[[int, int], None] | None
    ) -> NDArray[np.float32]:
        """A whole stack (n + 2, 1, H, W) to (n, H, W), `chunk` slices at a time; one thread after the other.

        Every piece has the same size, so that one compilation serves all: the slices are spread evenly over the pieces, the last
        one is filled up with empty slices, and the first follows an empty state. What these give is dropped.
        """
        with self._lock:
            return self._infer_stack(slices, chunk, progress)

    def _infer_stack(
        self, slices: NDArray[np.float32], chunk: int | None, progress: Callable[[int, int], None] | None
    ) -> NDArray[np.float32]:
        if self._model is None:
            raise UsageError("the segmenter is closed; use it inside its `with` block")
        count, _, height, width = slices.shape
        total = count - BEFORE
        size = _even_size(count, chunk or default_chunk(height, width))
        request = self._request(size, height, width)
        state = {name: np.zeros(shape, np.float32) for name, shape in self._shapes(height, width).items()}
        found = []
        for first in range(0, count, size):
            piece = np.zeros((size, 1, height, width), np.float32)
            piece[: count - first] = slices[first : first + size]
            try:
                given = request.infer({"slices": piece, **state})
            except RuntimeError as error:
                raise UnavailableError(
                    f"OpenVINO failed on {self.device} ({last_line(str(error))}); try a smaller --chunk"
                ) from error
            state = {name: given[following] for name, following in self._next.items()}
            found.append(given["lesion"])
            if progress is not None:
                progress(max(0, min(first + size - BEFORE, total)), total)
        lesion: NDArray[np.float32] = np.concatenate(found)[BEFORE:][:total]
        return lesion

    def _shapes(self, height: int, width: int) -> dict[str, list[int]]:
        """Of the state; its names say how many pixels there are per value."""
        scales = {name: int(name.removeprefix(STATE)) for name in self._channels}
        return {name: [BEFORE, self._channels[name], height // d, width // d] for name, d in scales.items()}

    def _request(self, size: int, height: int, width: int) -> Any:
        """The graph, ready for stacks of this size."""
        shapes = {"slices": [size, 1, height, width], **self._shapes(height, width)}
        if self._compiled is None or self._compiled[0] != shapes:
            self._compiled = None  # frees its memory first
            try:
                model = self._model.clone()
                model.reshape(shapes)
                request = _core().compile_model(model, "CPU", self._options).create_infer_request()
            except RuntimeError as error:
                raise UnavailableError(
                    f"OpenVINO cannot prepare the network for {size} slices of {height}x{width} ({last_line(str(error))}); "
                    "try a smaller --chunk, or --backend cpu"
                ) from error
            self._compiled = shapes, request
        return self._compiled[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._compiled = self._model = None


def _even_size(count: int, most: int) -> int:
    """Slices of each piece of a stack, `most` of them at most, so that few are empty.

    With as many pieces as `most`, or more, it is `most`: volumes of any length then share one compilation.

    >>> _even_size(14, 8), _even_size(28, 8), _even_size(3, 8), _even_size(128, 8), _even_size(183, 8)
    (7, 7, 3, 8, 8)
    """
    pieces = -(-count // most)
    return -(-count // pieces)


def load() -> Any:
    """The OpenVINO module. Its import alone is told to its makers over the network, unless what tells them is not there."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def _core() -> Any:
    """OpenVINO's entry.

    Raises
    ------
    UnavailableError
        If it is installed and does not load.
    """
    try:
        return load().Core()
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(f"OpenVINO is installed but cannot be loaded ({last_line(str(error))})") from error


def _has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; OpenVINO names it only then.

    Raises
    ------
    UnavailableError
        If OpenVINO or its part for CPUs does not load.
    """
    core = _core()
    try:
        return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise UnavailableError(f"OpenVINO's part for CPUs cannot be loaded ({last_line(str(error))})") from error
