"""Every change kept for speed is measured before and after, and is right in both."""

import json
from pathlib import Path

import pytest

from lesionrt.benchmarks import changes
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, STREAM_GRAPHS, load_bundle


def test_before_and_after_are_measured_and_compared_with_pytorch(
    tiny_bundle: Path, small_flair: Path, tmp_path: Path
) -> None:
    changes.command(tiny_bundle, small_flair, tmp_path / "changes.json", slices=4, repeats=1)
    report = json.loads((tmp_path / "changes.json").read_text())
    assert {*report["ways"], *report["not_run"]} == {*changes.WAYS}
    assert {"onnxruntime-chunks", "onnxruntime-state", "onnxruntime-blocks"} <= {*report["ways"]}
    for way in report["ways"].values():
        assert way["findings"] == []
        assert way["s_per_slice"]["median"] > 0
    found = report["changes"]["channels in whole blocks"]
    before, after = (report["ways"][found[end]]["s_per_slice"]["median"] for end in ("before", "after"))
    assert found["times_faster"] == pytest.approx(before / after, abs=1e-3)
    sizes = [report["files"][f"deflate-{level}"]["bytes"] for level in (1, 6, 9)]
    assert sizes == sorted(sizes, reverse=True)


def test_before_a_change_the_bundle_lacks_its_graphs(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    before = load_bundle(changes.lacking(bundle, (BLOCKED_GRAPHS,), tmp_path / "before"))
    assert bundle.stream_graph("fp32", BLOCKED_GRAPHS) is not None
    assert before.stream_graph("fp32", BLOCKED_GRAPHS) is None
    assert before.stream_graph("fp32", STREAM_GRAPHS) is not None
