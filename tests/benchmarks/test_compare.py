"""With what the cases are compared, and that comparing takes no time from those that were measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionrt.benchmarks.cases import Case
from lesionrt.benchmarks.compared import compare_slabs, compare_volumes
from lesionrt.benchmarks.rows import row_of
from lesionrt.benchmarks.running import Running
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.errors import UnavailableError
from lesionrt.runtime.parity import load_reference

AUTHORS = Case("authors", "authors' schedule, PyTorch", "fp32", "authors")
TORCH = Case("torch-fp32", "one pass, PyTorch", "fp32", "torch")
HALF = Case("torch-bf16", "one pass, PyTorch autocast", "bf16", "torch")
WINDOW = Case("window-onnx", "window network", "fp32", "window")
CPU = Case("cpu-fp32", "backend cpu", "fp32", "backend", "cpu")


class Child:
    """Answers with 0.25 on the slab, and with the reference's own probabilities on its slices."""

    def __init__(self, reference: np.ndarray, broken: bool = False) -> None:
        self._reference, self._broken = reference, broken
        self.asked: list[str] = []

    def ask(self, do: str, path: str) -> dict[str, Any]:
        self.asked.append(do)
        if self._broken:
            raise UnavailableError("its process ended with code 1")
        np.save(path, np.full((2, 8, 8), 0.25, np.float32) if do == "save" else self._reference)
        return {}


@pytest.fixture
def compared(tiny_bundle: Path, tmp_path: Path) -> Any:
    """What the cases are compared with, and the cases."""

    def call(*cases: Case, broken: str = "") -> tuple[str, dict[str, Running]]:
        lesion = load_reference(tiny_bundle / "reference.npz").lesion
        running = [
            Running(case, Child(lesion, case.name == broken), row_of(case), print)  # type: ignore[arg-type]
            for case in cases
        ]
        what = compare_slabs(running, load_bundle(tiny_bundle), (8, 8), tmp_path)
        return what, {one.case.name: one for one in running}

    call.volumes = lambda found: compare_volumes([*found.values()], load_bundle(tiny_bundle), tmp_path, print)  # type: ignore[attr-defined]
    return call


def test_another_case_of_pytorch_in_float32_stands_in_for_the_authors(compared: Any) -> None:
    assert compared(AUTHORS, TORCH, CPU)[0] == "authors' schedule, PyTorch float32, the same slices"
    what, found = compared(HALF, WINDOW, TORCH, CPU)
    assert what == "one pass, PyTorch float32, the same slices"
    for one in found.values():
        assert "reference" not in one.child.asked
        assert one.row["parity"]["max_difference"] == 0


def test_what_was_compiled_is_not_the_truth(compared: Any) -> None:
    compiled = Case("torch-compile-fp32", "one pass, torch.compile", "fp32", "torch", compiled=True)
    assert compared(compiled, CPU)[0].endswith("in the bundle")


def test_the_bundles_reference_is_asked_only_of_cases_that_take_its_shape(compared: Any) -> None:
    what, found = compared(WINDOW, CPU)
    assert what.endswith("in the bundle")
    assert found["window-onnx"].child.asked == []
    assert found["window-onnx"].row["skipped"] is None
    assert "height and width" in found["window-onnx"].row["not_compared"]
    assert found["cpu-fp32"].row["parity"]["max_difference"] == 0


def test_whole_volumes_are_compared_with_another_case_that_was_not_compiled(compared: Any) -> None:
    compiled = Case("torch-compile-fp32", "one pass, torch.compile", "fp32", "torch", compiled=True)
    found = compared(AUTHORS, compiled, CPU)[1]
    for one in found.values():
        one.row["volume"] = {"median": 1.0} if one.case is not AUTHORS else None
    assert compared.volumes(found) == "cpu-fp32"
    assert found["torch-compile-fp32"].row["volume_parity"]["max_difference"] == 0
    assert found["cpu-fp32"].row["volume_parity"] is None  # it would be compared with itself


def test_a_case_that_fails_at_a_whole_volume_is_wrong(compared: Any) -> None:
    found = compared(AUTHORS, CPU)[1]
    with found["cpu-fp32"].told("volume_failed"):
        raise UnavailableError("the probabilities are not finite")
    assert found["cpu-fp32"].alive
    assert compared.volumes(found) is None
    assert found["cpu-fp32"].row["wrong"]
    assert found["cpu-fp32"].row["findings"] == ["whole volume: failed: the probabilities are not finite"]


def test_a_case_that_fails_when_it_is_compared_keeps_its_times(compared: Any) -> None:
    what, found = compared(AUTHORS, TORCH, CPU, broken="authors")
    assert what.startswith("one pass")
    assert found["authors"].row["skipped"] is None
    assert "ended with code 1" in found["authors"].row["not_compared"]
    assert found["cpu-fp32"].row["parity"] is not None
