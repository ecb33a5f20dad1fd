"""Which backend runs a volume that is beyond the engines. The engine backend is a stand-in: there is no GPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lesionrt.runtime import backends
from lesionrt.runtime.backends import Backend, Probe, choice, onnx_cuda
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.errors import StackError
from lesionrt.runtime.segmenter import Segmenter


class Small:
    """An engine backend that was built for smaller slices."""

    name, library, device, precision = "tensorrt", "tensorrt 11", "GPU", "fp16"
    closed = False

    def infer_stack(self, slices: np.ndarray, chunk: int | None, progress: object) -> np.ndarray:
        raise StackError(f"slices are {slices.shape[2]}x{slices.shape[3]} pixels; build one with a larger --max-size")

    def __enter__(self) -> "Small":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


def test_a_bundle_of_bfloat16_alone_is_nothing_for_onnx_runtime_on_a_gpu() -> None:
    lacking = onnx_cuda.bundle_problem("cuda", SimpleNamespace(precisions=["bf16"]))  # type: ignore[arg-type]
    assert lacking is not None
    assert "--precision fp32" in lacking[1]
    assert onnx_cuda.bundle_problem("cuda", SimpleNamespace(precisions=["bf16", "fp16"])) is None  # type: ignore[arg-type]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """A machine on which that backend can run; ONNX Runtime is the real one."""
    engine, real_probe, real_open = Small(), backends.probe, backends.open_backend

    def probe(name: str, bundle: Bundle | None = None) -> Probe:
        found = real_probe(name, bundle)
        return replace(found, problem=None) if name == "tensorrt" else found

    def open_backend(name: str, bundle: Bundle, threads: int | None) -> Backend:
        return engine if name == "tensorrt" else real_open(name, bundle, threads=threads)  # type: ignore[return-value]

    monkeypatch.setattr(backends, "probe", probe)
    monkeypatch.setattr(choice, "open_backend", open_backend)
    yield engine
    assert engine.closed


def test_auto_gives_a_volume_beyond_the_engines_to_the_next_backend_and_says_why(
    small: Small, tiny_bundle: Path, flake: Path
) -> None:
    with Segmenter(tiny_bundle) as segmenter:
        assert segmenter.backend is small
        report = segmenter(flake).report
    assert report["backend"] in ("cuda", "openvino", "cpu")
    assert "; not tensorrt: slices are " in report["backend_chosen"]
    assert any("; not tensorrt: slices are " in warning for warning in report["warnings"])


def test_an_engine_backend_that_was_asked_for_is_not_replaced(small: Small, tiny_bundle: Path, flake: Path) -> None:
    with Segmenter(tiny_bundle, backend="tensorrt") as segmenter, pytest.raises(StackError, match="--max-size"):
        segmenter(flake)
