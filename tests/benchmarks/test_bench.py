"""`lesionrt bench` on a tiny network: what it reports, what it leaves out, and what it calls wrong."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import onnx
import pytest

from lesionrt.benchmarks.bench import Request
from lesionrt.benchmarks.bench import bench as measure
from lesionrt.benchmarks.bench_table import readme_table
from lesionrt.benchmarks.cases import find_cases
from lesionrt.benchmarks.child import Child
from lesionrt.benchmarks.readme import BEGIN, END, with_tables
from lesionrt.benchmarks.scaling import Points, scaling
from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.chunks import default_chunk
from lesionrt.runtime.errors import InputError, UnavailableError
from lesionrt.runtime.files import sha256
from lesionrt.runtime.prepare import HALO

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    screen: str
    report: dict[str, Any]
    page: str

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.report["cases"] if row["name"] == name)


@pytest.fixture(scope="session")
def bench(run: Any, small_flair: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command with --quick and one thread."""

    def call(bundle: Path, *options: object, code: int = 0) -> Result:
        out = tmp_path_factory.mktemp("bench")
        found = run("bench", bundle, small_flair, "-o", out, "--quick", "--threads", 1, *options, code=code)
        return Result(found.stdout, json.loads((out / "bench.json").read_text()), (out / "bench.html").read_text())

    return call


@pytest.fixture(scope="module")
def quick(bench: Any, tiny_bundle: Path) -> Result:
    return bench(tiny_bundle, "--repeats", 2)  # type: ignore[no-any-return]


def one_pass(quick: Result, slices: int, chunk: int | None) -> float:
    """FLOPs of so many output slices, for each chunk of which two more are encoded."""
    encode, decode = (quick.report["work"][part]["flops"] for part in ("encode", "decode"))
    return float(encode * (slices + 2 * -(-slices // (chunk or slices))) + decode * slices)


def test_every_case_that_runs_has_its_figures(quick: Result) -> None:
    assert quick.report["baseline"] == "authors"
    assert quick.report["slab_slices"] == 12
    total = quick.report["volume"]["slices"]
    for name in ("authors", "window-onnx", "torch-fp32", "torch-bf16", "cpu-fp32", "cpu-fp16"):
        row = quick.row(name)
        assert row["skipped"] is None, row
        assert row["slab"]["count"] in (1, 2)
        assert row["slab"]["least"] <= row["slab"]["median"] <= row["slab"]["most"]
        # That case alone keeps its state.
        chunk = None if name == "cpu-fp32" else default_chunk(*quick.report["volume"]["height_width"])
        one = 1 / 12 if name in ("authors", "window-onnx") else None
        share = one or one_pass(quick, total, chunk) / one_pass(quick, 12, chunk) / total
        assert row["s_per_slice"] == pytest.approx(row["slab"]["median"] * share)
        assert row["times_faster"] == pytest.approx(quick.row("authors")["s_per_slice"] / row["s_per_slice"])
        assert row["volumes_per_minute"] == pytest.approx(60 / row["volume_s"])
        assert row["cold_s"] > row["first_s"] > 0
        assert set(row["start_s"]) == {"read", "prepare", "load"}
        assert row["peak_mb"] > 30
        assert not row["wrong"], row["findings"]
        assert row["parity"]["percentile_difference"] <= (5e-2 if row["precision"] == "bf16" else 1e-2)
    assert quick.row("cpu-fp32")["parity"]["percentile_difference"] <= 1e-4
    chunk = default_chunk(*quick.report["volume"]["height_width"])
    for name, halo in (("cpu-fp32", None), ("cpu-fp16", chunk)):
        assert quick.row(name)["roofline"]["gflop"] == pytest.approx(one_pass(quick, 12, halo) / 1e9)
    # Counted as the float32 in which it computes, and with what it encodes again.
    assert quick.row("cpu-fp16")["roofline"]["gbyte"] > quick.row("cpu-fp32")["roofline"]["gbyte"]
    assert "computes fp16 largely in fp32" in quick.page
    assert quick.row("authors")["roofline"]["gflop"] > quick.row("window-onnx")["roofline"]["gflop"]
    assert quick.report["scaling"] is None


def test_without_a_checkpoint_it_is_restored_from_the_bundle(quick: Result) -> None:
    assert quick.report["checkpoint"] == "restored from the bundle"
    for text in (quick.screen, quick.page):
        assert "restored from the bundle" in text
        assert "is not the checkpoint" not in text


def test_window_by_window_cases_are_scaled_and_the_fast_ones_measured_whole(quick: Result) -> None:
    slices = quick.report["volume"]["slices"]
    authors, fast = quick.row("authors"), quick.row("cpu-fp32")
    assert authors["volume_scaled"]
    assert authors["volume_s"] == pytest.approx(authors["s_per_slice"] * slices)
    assert authors["times_faster_volume"] == 1
    # Its slab is timed again in turns with the volumes.
    beside = authors["slab_beside_volumes"]["median"] / 12 * slices
    assert fast["times_faster_volume"] == pytest.approx(beside / fast["volume_s"])
    assert not fast["volume_scaled"]
    assert set(fast["stages"]) == {"read", "prepare", "transfer", "compute", "restore", "write"}
    assert fast["stages"]["transfer"] == 0  # nothing leaves the CPU
    assert sum(fast["stages"].values()) <= fast["volume"]["most"] + 0.01


def test_memory_is_read_after_the_slices_and_again_after_the_volume(quick: Result) -> None:
    for row in quick.report["cases"]:
        if row["skipped"] is None:
            assert (row["peak_volume_mb"] is None) == (row["volume"] is None)
    fast = quick.row("cpu-fp32")
    assert 30 < fast["peak_mb"] <= fast["peak_volume_mb"]  # reading, restoring and writing come on top
    assert "peak after whole volumes, MB" in quick.page


def test_whole_volumes_are_compared_too(quick: Result) -> None:
    whole = [row for row in quick.report["cases"] if row["volume"]]
    assert len(whole) >= 2
    assert quick.report["volume_reference"] == "torch-fp32"
    for row in whole:
        if row["name"] == quick.report["volume_reference"]:
            assert row["volume_parity"] is None
        else:
            assert row["volume_parity"]["max_difference"] <= (1e-1 if row["precision"] == "bf16" else 1e-2)
    assert f"whole volumes are compared with {quick.report['volume_reference']}" in quick.page


def test_a_volume_that_is_not_warmed_leaves_the_slabs_probabilities(
    tiny_bundle: Path, tiny_checkpoint: Path, small_flair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesionrt.benchmarks.bench.WARM_UP_S", 0)  # as where a volume takes long
    names = ("authors", "cpu-fp32")
    report = measure(Request(tiny_bundle, small_flair, tiny_checkpoint, quick=True, repeats=1, threads=1, names=names))
    assert report["checkpoint"] == tiny_checkpoint.name
    assert any("only these cases were asked for: authors, cpu-fp32" in note for note in report["notes"])
    row = next(row for row in report["cases"] if row["name"] == "cpu-fp32")
    assert row["volume"] is not None
    assert row["parity"]["shape"][0] == 12
    assert not row["wrong"]


def test_cases_that_cannot_run_say_why(quick: Result) -> None:
    assert "not with --quick" in quick.row("torch-compile-fp32")["skipped"]
    for name in ("tensorrt", "onnx-tensorrt"):
        rows = [row for row in quick.report["cases"] if row["name"].startswith(name)]
        assert rows
        for row in rows:
            if row["skipped"] is not None:
                assert escape(row["skipped"]) in quick.page
                assert f"not measured: {row['name']}: " in quick.screen


def test_machine_and_measurement_are_described(quick: Result) -> None:
    machine = quick.report["machine"]
    assert machine["cores"] >= 1
    assert "numpy" in machine["versions"]
    assert quick.report["threads"] == 1
    assert quick.report["rates"]["cpu"]["flops_per_s"]["fp32"] > 1e8
    assert quick.report["rates"]["cpu"]["bytes_per_s"] > 1e8
    assert any("random weights" in note for note in quick.report["notes"])
    assert not any("asked for" in note for note in quick.report["notes"])
    assert 1 < quick.report["elapsed_s"] < 600
    assert "measured on 12 slices" in quick.screen
    assert "measured on 12 slices" in quick.page


def test_the_page_asks_nothing_of_any_server(quick: Result) -> None:
    assert not re.search(r"(src|href)=[\"'](?!data:)", quick.page)
    assert "<script" not in quick.page
    assert quick.page.count("<svg") >= 3


@pytest.fixture(scope="module")
def tampered(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose weights are not those of its checkpoint, with a manifest that vouches for them."""
    folder = tmp_path_factory.mktemp("tampered") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    path = folder / "model_fp32.onnx"
    content = path.read_bytes()
    largest = max(onnx.load(path).graph.initializer, key=lambda tensor: len(tensor.raw_data))
    path.write_bytes(content.replace(largest.raw_data, bytes(len(largest.raw_data))))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name]["sha256"] = sha256(path)
    del manifest["stream_graphs"], manifest["blocked_graphs"]  # in which a small network's weights stand once more
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_wrong_case_is_shown_as_wrong_everywhere(bench: Any, tampered: Path) -> None:
    found = bench(tampered, "--repeats", 1, "--case", "authors", "--case", "cpu-fp32", code=5)
    row = found.row("cpu-fp32")
    assert row["wrong"]
    assert any("99.9th percentile difference" in finding for finding in row["findings"])
    assert re.search(r"cpu-fp32 .*WRONG", found.screen)
    assert "WRONG: cpu-fp32: " in found.screen
    assert "<b>WRONG</b>: cpu-fp32" in found.page
    assert "WRONG" in readme_table(found.report)
    assert "--reference checkpoint.pt" in found.row("authors")["skipped"]  # and then the bundle's own slices judge
    assert found.report["checkpoint"] is None  # the changed weights do not give what PyTorch gave at export
    assert found.report["reference"].endswith("in the bundle")
    assert found.report["baseline"] == "cpu-fp32"


def test_an_unknown_case_is_wrong_usage(run: Any, tiny_bundle: Path, small_flair: Path, tmp_path: Path) -> None:
    found = run("bench", tiny_bundle, small_flair, "-o", tmp_path, "--case", "abacus", code=2)
    assert "abacus" in found.stderr
    assert "cpu-fp32" in found.stderr


def order(bundle: Path, flair: Path, name: str = "cpu-fp32") -> Order:
    case = next(case for case in find_cases(load_bundle(bundle), None, True) if case.name == name)
    return Order(asdict(case), str(bundle), str(flair), None, "", 1, (0, 4))


def test_scaling_has_rows_and_fits(tiny_bundle: Path, flake: Path, tmp_path: Path) -> None:
    found = scaling(order(tiny_bundle, flake), tmp_path, Points((1, 3), (2,), (1, 2), 2), 1, 2, lambda line: None)
    assert [row["slices"] for row in found["slices"]["rows"]] == [1, 3]
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in found["slices"]["rows"])
    assert all(row["seconds"] > 0 and row["peak_mb"] > 30 for row in found["slices"]["rows"])
    assert set(found["slices"]["seconds_fit"]) == {"factor", "exponent", "r2"}
    assert found["chunk"]["seconds_fit"] is None  # one point
    assert [row["threads"] for row in found["threads"]["rows"]] == [1]
    assert all("failed" not in row for row in found["volumes"]["rows"])


def test_a_point_that_fails_says_why_and_the_others_stand(tiny_bundle: Path, flake: Path, tmp_path: Path) -> None:
    found = scaling(order(tiny_bundle, flake), tmp_path, Points((-3, 1), (), (), 2), 1, 1, lambda line: None)
    failed, right = found["slices"]["rows"]
    assert failed["slices"] == -3
    assert set(failed) == {"slices", "failed"}
    assert right["seconds"] > 0


def test_volumes_are_named_by_the_precision_in_which_the_command_segments(
    tiny_bundle: Path, flake: Path, tmp_path: Path
) -> None:
    half = order(tiny_bundle, flake, "cpu-fp16")
    found = scaling(half, tmp_path, Points((), (), (1,), 1), 1, 1, lambda line: None)
    assert (found["threads"]["case"], found["volumes"]["case"]) == ("cpu-fp16", "cpu-fp32")


def test_every_chunk_that_is_measured_fits_its_stack() -> None:
    points = Points()
    assert {(points.steady + 2 * HALO) % chunk for chunk in points.chunks} == {0}


def test_a_process_that_fails_says_why(tiny_bundle: Path, flake: Path, tmp_path: Path) -> None:
    with Child(order(tiny_bundle, tmp_path / "none.nii.gz"), tmp_path, "x") as child:
        with pytest.raises(UnavailableError, match=r"none\.nii\.gz"):
            child.ask("open")
        with pytest.raises(UnavailableError, match="AttributeError"):
            child.ask("sing")


def test_tables_stand_between_the_markers(quick: Result, tmp_path: Path) -> None:
    path = tmp_path / "bench-here.json"
    path.write_text(json.dumps(quick.report))
    text = with_tables(f"before\n{BEGIN}old\n{END}after\n", [path])
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "| authors (baseline) |" in text
    assert "old" not in text
    with pytest.raises(InputError, match="bench"):
        with_tables("no markers", [path])


@pytest.mark.parametrize("names", [[], ["README.md"]])
def test_tables_of_no_results_are_wrong_usage(names: list[str], tmp_path: Path) -> None:
    text = f"{BEGIN}old\n{END}"
    (tmp_path / "README.md").write_text(text)
    command = [sys.executable, "-m", "lesionrt.benchmarks.readme", *names]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert re.fullmatch(
        r"error: no (README|results); expected: .* README\.md benchmarks/results/bench-\*\.json\n", found.stderr
    )
    assert (tmp_path / "README.md").read_text() == text


def test_the_readmes_tables_are_those_of_the_stored_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_tables(text, sorted((ROOT / "benchmarks" / "results").glob("bench-*.json"), reverse=True)) == text
