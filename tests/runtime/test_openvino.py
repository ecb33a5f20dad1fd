"""OpenVINO: the same masks as ONNX Runtime's, whatever the chunk."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionrt.runtime.backends import choose, open_backend, openvino_cpu, precisions
from lesionrt.runtime.bundle import MANIFEST, load_bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError
from lesionrt.runtime.parity import TOLERANCES

pytest.importorskip("openvino", reason="OpenVINO is not installed")

BFLOAT16 = pytest.mark.skipif(not openvino_cpu._has_bfloat16(), reason="this CPU has no bfloat16")
Slices = NDArray[np.float32]


@pytest.fixture(scope="module")
def slices() -> Slices:
    return np.random.default_rng(7).standard_normal((13, 1, 16, 24)).astype(np.float32)


def probabilities(bundle: Path, backend: str, precision: str, slices: Slices, chunk: int | None = None) -> Slices:
    with open_backend(backend, load_bundle(bundle), precision) as network:
        assert (network.name, network.precision) == (backend, precision)
        return infer_in_chunks(network, slices, chunk)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=BFLOAT16)])
def test_it_gives_onnx_runtimes_probabilities_whatever_the_chunk(
    tiny_bundle: Path, slices: Slices, precision: str
) -> None:
    expected = probabilities(tiny_bundle, "cpu", "fp32", slices)
    found = probabilities(tiny_bundle, "openvino", precision, slices)
    assert np.percentile(np.abs(found - expected), 99.9) <= TOLERANCES[precision].percentile
    for chunk in (1, 2, 5, 11, 100):
        assert np.array_equal(probabilities(tiny_bundle, "openvino", precision, slices, chunk), found)


def test_a_part_for_cpus_that_does_not_load_is_a_problem_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, *_: str) -> None:
            raise RuntimeError("Cannot load library 'libopenvino_intel_cpu_plugin.so'")

    monkeypatch.setattr(openvino_cpu, "_core", Core)
    found = openvino_cpu.probe("openvino")
    assert found.problem is not None
    assert "part for CPUs cannot be loaded (Cannot load library" in found.problem


def test_a_stack_of_one_window_and_one_size_after_another(tiny_bundle: Path, slices: Slices) -> None:
    parts = [slices[:3], slices[:, :, :8, :12], slices[2:8]]
    with open_backend("openvino", load_bundle(tiny_bundle), "fp32") as network:
        found = [network.infer({"slices": part})["lesion"] for part in parts]
    for part, lesion in zip(parts, found, strict=True):
        np.testing.assert_allclose(lesion, probabilities(tiny_bundle, "cpu", "fp32", part), atol=1e-5)


@pytest.mark.parametrize(("count", "size", "pieces"), [(14, 7, 2), (28, 7, 4), (57, 8, 8), (3, 3, 1)])
def test_slices_are_spread_evenly_over_the_pieces(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, count: int, size: int, pieces: int
) -> None:
    sizes: list[int] = []
    with open_backend("openvino", load_bundle(tiny_bundle), "fp32") as network:
        request = network._request  # type: ignore[attr-defined]
        monkeypatch.setattr(network, "_request", lambda size, *rest: sizes.append(size) or request(size, *rest))
        done: list[int] = []
        lesion = infer_in_chunks(network, np.zeros((count, 1, 8, 8), np.float32), 8, lambda now, _: done.append(now))
    assert (sizes, len(done), done[-1]) == ([size], pieces, count - 2)
    assert lesion.shape == (count - 2, 8, 8)


@BFLOAT16
@pytest.mark.parametrize(("fast", "expected"), [(True, ["bf16", "fp32"]), (False, ["fp32", "bf16"])])
def test_bfloat16_is_taken_unasked_where_the_processor_is_faster_in_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(openvino_cpu, "fast_bfloat16", lambda: fast)
    bundle = load_bundle(tiny_bundle)
    assert precisions("openvino", bundle) == expected
    assert choose("auto", bundle)[0] == ("openvino" if fast else "cpu")
    with open_backend("openvino", bundle) as network:
        assert network.precision == expected[0]


def test_the_report_says_what_computed_in_which_precision(
    run: Callable[..., object], tiny_bundle: Path, flake: Path, tmp_path: Path
) -> None:
    run("segment", flake, "-o", tmp_path, "--model", tiny_bundle, "--backend", "openvino")
    report = json.loads((tmp_path / "flair_report.json").read_text())
    assert (report["backend"], report["precision"]) == ("openvino", precisions("openvino", load_bundle(tiny_bundle))[0])
    assert report["versions"]["backend"].startswith("openvino 20")


def test_auto_passes_it_by_where_it_is_not_faster(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_cpu, "_has_bfloat16", lambda: False)
    bundle = load_bundle(tiny_bundle)
    name, why = choose("auto", bundle)
    assert name == "cpu"
    assert "not openvino: the CPU is not faster in bfloat16" in why
    assert choose("openvino", bundle) == ("openvino", "asked for")
    assert choose("auto", bundle, {"cpu": "broken"})[0] == "openvino"  # slower is better than not at all
    assert precisions("openvino", bundle) == ["fp32"]
    with pytest.raises(BundleError, match=r"openvino runs fp32 of a bundle .* not bf16"):
        open_backend("openvino", bundle, "bf16")


def test_a_bundle_without_the_graph_that_keeps_the_state_is_left_to_others(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / MANIFEST).read_text())
    del manifest["stream_graphs"]
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    bundle = load_bundle(tmp_path / "bundle")
    name, why = choose("auto", bundle)
    assert name == "cpu"
    assert "not openvino: the bundle has no fp32 graph that keeps the state" in why
    with pytest.raises(UnavailableError, match="Export it again with --precision fp32"):
        choose("openvino", bundle)


def test_a_library_that_did_not_come_as_a_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(openvino_cpu, "version", version)
    found = openvino_cpu.probe("openvino")
    assert (found.library, found.problem) == ("openvino", None)


def test_a_closed_one_says_so(tiny_bundle: Path, slices: Slices) -> None:
    with open_backend("openvino", load_bundle(tiny_bundle), "fp32") as network:
        pass
    with pytest.raises(UsageError, match="the segmenter is closed"):
        network.infer({"slices": slices})


def test_a_graph_that_is_none_is_named(tmp_path: Path) -> None:
    graph = tmp_path / "model_fp32.onnx"
    graph.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model_fp32\.onnx: openvino .* cannot read it"):
        openvino_cpu.OpenvinoBackend("openvino", graph, "fp32", None)


def test_a_stack_beyond_the_memory_is_an_error_that_says_what_to_do(tiny_bundle: Path, slices: Slices) -> None:
    with open_backend("openvino", load_bundle(tiny_bundle), "fp32") as network:
        network._request = _failing  # type: ignore[attr-defined]
        with pytest.raises(UnavailableError, match=r"OpenVINO failed on CPU .*out of memory.*smaller --chunk"):
            network.infer({"slices": slices})


def _failing(*shape: int) -> object:
    class Request:
        def infer(self, feed: object) -> None:
            raise RuntimeError("Exception from src/x.cpp:1:\nout of memory")

    return Request()
