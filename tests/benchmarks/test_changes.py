"""Every change kept for speed is measured before and after, and is right in both."""

from pathlib import Path

import pytest

from lesionrt.benchmarks.changes import CHANGES, WAYS, Changes, files, lacking
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, STREAM_GRAPHS, load_bundle


def test_before_and_after_are_measured_and_compared_with_pytorch(
    tiny_bundle: Path, small_flair: Path, tmp_path: Path
) -> None:
    measured = Changes(load_bundle(tiny_bundle), small_flair, 6, tmp_path)
    measured.run({name: WAYS[name] for name in ("onnxruntime-chunks", "onnxruntime-state", "openvino-bf16")}, 1)
    for name, row in measured.found.items():
        assert row["findings"] == [], name
        assert row["peak_mb"] > 30
    (change,) = measured.changes().values()
    assert (change["before"], change["after"]) == CHANGES["the state is kept between chunks"]
    before, after = (measured.found[change[end]]["s_per_slice"]["median"] for end in ("before", "after"))
    assert change["times_faster"] == pytest.approx(before / after, abs=1e-3)
    starts = measured.starts(1)
    assert {f"onnxruntime-blocks, {how}" for how in ("in turn", "at once")} <= {*starts}
    assert all(row["median"] > 0 for row in starts.values())


def test_before_a_change_the_bundle_lacks_its_graphs(tiny_bundle: Path, small_flair: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    before = load_bundle(lacking(bundle, (BLOCKED_GRAPHS,), tmp_path / "before"))
    assert bundle.stream_graph("fp32", BLOCKED_GRAPHS) is not None
    assert before.stream_graph("fp32", BLOCKED_GRAPHS) is None
    assert before.stream_graph("fp32", STREAM_GRAPHS) is not None
    # What a bundle never had is no change: the same graph would be measured twice.
    measured = Changes(before, small_flair, 6, tmp_path)
    assert "no blocked_graphs" in str(measured._why_not(WAYS["onnxruntime-blocks"]))
    assert measured._why_not(WAYS["onnxruntime-state"]) is None


def test_reading_and_writing_are_timed_at_every_level(tiny_bundle: Path, small_flair: Path) -> None:
    found = files(load_bundle(tiny_bundle), small_flair, 1)
    assert found["level_in_use"] == 6
    seconds = found["seconds"]
    assert {"read", "inflate, zlib"} <= {*seconds}
    sizes = [seconds[f"write mask, level {level}"]["bytes"] for level in (1, 6, 9)]
    assert sizes == sorted(sizes, reverse=True)
