"""`lesionrt inspect` and `lesionrt verify` through the installed command."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.backends import StreamingBackend, open_backend
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, STREAM_GRAPHS, load_bundle
from lesionrt.runtime.chunks import infer_in_chunks

# Put before all else on the path: torch is not installed, as far as Python can tell.
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ("torch", "onnx") else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
COMMAND = Path(sys.executable).parent / "lesionrt"
GRAPH, REFERENCE, MANIFEST = "model_fp32.onnx", "reference.npz", "manifest.json"
STREAM, BLOCKED = "stream_fp32.onnx", "blocked_fp32.onnx"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("torchless")
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    return with_first(folder)


def with_first(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(":")}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "linked":
        path.rename(path.parent.parent / "outside")
        path.symlink_to("../outside")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-1] if how == "cut" else content)


def one_error(result: subprocess.CompletedProcess[str]) -> str:
    """The message, which must be all that was said."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_inspect_shows_the_manifest_and_whole_checksums(run: Run, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    shown = run("inspect", tiny_bundle).stdout
    for name in (GRAPH, STREAM, BLOCKED, "model_fp16.onnx", REFERENCE):
        path = tiny_bundle / name
        assert f"{name}, {path.stat().st_size} bytes, sha256 {sha256(path)}: ok" in shown
    assert sha256(tiny_bundle / MANIFEST) in shown
    assert sha256(tiny_checkpoint) in shown
    for text in (
        "UNTRAINED",
        "growth_rate 4",
        "normalisation brain-quartile-z",
        "threshold    0.5",
        "opset        fp32 18, fp16 18, bf16 22",
    ):
        assert text in shown
    found = json.loads(run("inspect", tiny_bundle, "--json").stdout)
    assert found["manifest"] == json.loads((tiny_bundle / MANIFEST).read_text())
    assert (found["sha256"], found["damaged"]) == (sha256(tiny_bundle / MANIFEST), {})


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((GRAPH, how) for how in ("changed", "cut", "removed", "linked")),
        *((name, how) for name in (BLOCKED, REFERENCE) for how in ("changed", "removed")),
    ],
)
def test_damaged_file_of_a_bundle_is_named_and_not_used(
    run: Run, bundle: Path, small_flair: Path, name: str, how: str
) -> None:
    damage(bundle / name, how)
    shown = run("inspect", bundle, code=3).stdout
    assert re.search(rf"{name}.*: (its sha256 is [0-9a-f]{{64}}|has \d+ bytes|missing|leads out of the bundle)", shown)
    assert shown.count(": ok\n") == 5
    assert list(json.loads(run("inspect", bundle, "--json", code=3).stdout)["damaged"]) == [name]
    assert str(bundle / name) in one_error(run("verify", bundle, "--backend", "cpu", code=3))
    if name in (GRAPH, BLOCKED):
        out = bundle.parent / "out"
        command = ("segment", small_flair, "-o", out, "--model", bundle, "--backend", "cpu")
        assert str(bundle / name) in one_error(run(*command, code=3))
        assert not out.exists()


def test_a_loaded_bundle_keeps_the_sha256_of_what_was_read(full_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(full_bundle / MANIFEST, tmp_path)
    loaded, read = load_bundle(tmp_path), sha256(tmp_path / MANIFEST)
    edit(tmp_path, lambda manifest: manifest["model"].update(version="another"))
    assert loaded.sha256 == read != load_bundle(tmp_path).sha256


def rename(name: str) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop(GRAPH)
        manifest["graphs"]["fp32"] = name

    return change


def without(*path: str) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return change


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", MANIFEST])
def test_file_name_that_leaves_the_bundle_is_refused(run: Run, bundle: Path, name: str) -> None:
    edit(bundle, rename(name))
    assert f"{bundle / MANIFEST}: file name {name!r}" in one_error(run("inspect", bundle, code=3))


@pytest.mark.parametrize(
    "path",
    [
        *([key] for key in ("format", "version", "model", "network", "input", "threshold", "graphs", "opset", "files")),
        *(["checkpoint"], ["checkpoint", "sha256"], ["versions"], ["model", "trained"], ["input", "size_multiple"]),
        *(["input", "spacing_mm"], ["files", REFERENCE], ["files", GRAPH], ["files", GRAPH, "sha256"]),
    ],
    ids="/".join,
)
def test_manifest_without_an_entry_is_one_clear_error(run: Run, bundle: Path, path: list[str]) -> None:
    edit(bundle, without(*path))
    assert str(bundle / MANIFEST) in one_error(run("inspect", bundle, code=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2; this lesionrt reads version 1"),
        ({"format": "something else"}, "not the manifest of a lesionrt bundle"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": None}, ""),
        ({"graphs": {}}, "names no graph"),
        ({"graphs": {"fp32": "other.onnx"}}, "'other.onnx', of which it has no sha256"),
        ({"graphs": [GRAPH]}, ""),
        ({"stream_graphs": {"tf32": STREAM}}, "expected a file for some of fp32, fp16, bf16"),
        ({"stream_graphs": {"fp32": "other.onnx"}}, "'other.onnx', of which it has no sha256"),
        ({"stream_graphs": [STREAM]}, "stream_graphs"),
        ({"blocked_graphs": {"fp32": "other.onnx"}}, "'other.onnx', of which it has no sha256"),
        ({"files": []}, ""),
        ({"model": {"name": "x", "version": 1, "trained": "yes"}}, "model"),
        ({"network": None}, ""),
        ({"checkpoint": "0123"}, ""),
        ({"versions": []}, ""),
    ],
)
def test_manifest_with_a_wrong_entry_is_one_clear_error(
    run: Run, bundle: Path, change: dict[str, Any], message: str
) -> None:
    edit(bundle, lambda manifest: manifest.update(change))
    error = one_error(run("inspect", bundle, code=3))
    assert str(bundle / MANIFEST) in error
    assert message in error


def test_graph_of_a_precision_that_is_not_known_is_one_clear_error(run: Run, bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(graphs={"int3": GRAPH}))
    assert "int3" in one_error(run("verify", bundle, code=3))


def test_a_bundle_without_a_graph_that_streams_gives_the_same(bundle: Path) -> None:
    slices = np.random.default_rng(0).normal(size=(7, 1, 8, 12)).astype(np.float32)
    found = []
    for _ in range(2):
        with open_backend("cpu", load_bundle(bundle), "fp32") as backend:
            found.append((isinstance(backend, StreamingBackend), infer_in_chunks(backend, slices, 2)))
        for entry in ("stream_graphs", "blocked_graphs"):
            edit(bundle, lambda manifest, entry=entry: manifest.pop(entry, None))
    assert [streams for streams, _ in found] == [True, False]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\0", b"3", b"[" * 100_000], ids=len)
def test_manifest_that_is_no_json_object_is_one_clear_error(run: Run, bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    assert str(bundle / MANIFEST) in one_error(run("inspect", bundle, code=3))


@pytest.mark.parametrize("make", [Path.absolute, Path.mkdir, Path.touch], ids=["nothing", "empty folder", "file"])
def test_what_is_no_bundle_is_one_clear_error(run: Run, tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "bundle")
    assert f"{tmp_path / 'bundle'}: " in one_error(run("inspect", tmp_path / "bundle", code=3))


def test_network_that_gives_nan_is_an_error_and_no_empty_mask(bundle: Path, small_flair: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(bundle / GRAPH)
    for weights in graph.graph.initializer:
        if len(weights.dims) == 4:
            nan = np.full(weights.dims, np.nan, np.float32)
            weights.CopyFrom(onnx.numpy_helper.from_array(nan, weights.name))
    onnx.save(graph, bundle / GRAPH)
    entry = {"bytes": (bundle / GRAPH).stat().st_size, "sha256": sha256(bundle / GRAPH)}
    edit(bundle, lambda manifest: manifest["files"].update({GRAPH: entry}))
    command = [COMMAND, "segment", small_flair, "-o", tmp_path / "out", "--model", bundle]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result.stdout
    assert "probabilities that are not numbers" in result.stderr
    assert not (tmp_path / "out").exists()


def test_verify_passes_without_torch_and_gives_its_numbers(
    run: Run, tiny_bundle: Path, tiny_checkpoint: Path, torchless: dict[str, str]
) -> None:
    answer = json.loads(run("verify", tiny_bundle, "--backend", "cpu", "--json", env=torchless).stdout)
    assert answer["passed"] is True
    graphs = [(row["precision"], row["graph"]) for row in answer["results"]]
    assert graphs == [("fp32", BLOCKED), ("fp32", GRAPH), ("fp16", "model_fp16.onnx")]  # and the one that GPUs take
    names = {"shape", "max_difference", "mean_difference", "percentile_difference", "dice", "flipped_voxels"}
    names |= {f"{side}_{what}" for side in ("reference", "candidate") for what in ("lesions", "ml")}
    for row in answer["results"]:
        assert names <= set(row["comparison"])
        assert 0 < row["comparison"]["mean_difference"] <= row["comparison"]["max_difference"] < 0.1
        assert set(row["tolerance"]) == {"maximum", "percentile", "dice", "flipped_share"}
        assert row["findings"] == []
    assert [len(row["notes"]) for row in answer["results"]] == [0, 0, 1]
    assert "emulated" in answer["results"][2]["notes"][0]
    shown = run("verify", tiny_bundle, "--backend", "cpu", "--precision", "fp32", env=torchless).stdout
    for text in (
        "maximum",
        "mean",
        "99.9th percentile",
        "Dice",
        "flipped voxels",
        "lesions",
        "volume",
        "at most 0.001",
    ):
        assert text in shown
    assert "fp16" not in shown


def test_verify_of_nothing_is_no_success(run: Run, bundle: Path, torchless: dict[str, str]) -> None:
    edit(bundle, lambda manifest: manifest.update({"graphs": {"bf16": GRAPH}, STREAM_GRAPHS: {}, BLOCKED_GRAPHS: {}}))
    result = run("verify", bundle, "--backend", "cpu", "--json", env=torchless, code=4)
    assert "nothing can be compared here" in result.stderr
    assert "cpu bf16: emulating it needs onnx" in result.stderr
    assert not result.stdout


def test_verify_out_of_tolerance_is_exit_code_5_with_the_numbers(run: Run, tiny_bundle: Path) -> None:
    shown = run("verify", tiny_bundle, "--backend", "cpu", "--max-difference", 0, code=5).stdout
    assert len(re.findall(r"out of tolerance: maximum difference \S+ is over 0\n", shown)) == 4
    assert "OUT OF tolerance" in shown
    answer = json.loads(run("verify", tiny_bundle, "--percentile-difference", 0, "--json", code=5).stdout)
    assert answer["passed"] is False
    assert all(len(row["findings"]) == 1 and row["tolerance"]["percentile"] == 0 for row in answer["results"])


def test_verify_compares_with_pytorch_on_a_volume_and_keeps_that_for_others(
    run: Run, tiny_bundle: Path, tiny_checkpoint: Path, small_flair: Path, torchless: dict[str, str], tmp_path: Path
) -> None:
    flair = tmp_path / "flair.nii.gz"
    nib.save(nib.load(small_flair).slicer[:, :, 16:24], flair)
    fixed = ("verify", tiny_bundle, "--backend", "cpu", "--precision", "fp32", "--json")
    on_slices = json.loads(run(*fixed, "--reference", tiny_checkpoint).stdout)["results"][0]
    stored = json.loads(run(*fixed).stdout)["results"][0]
    assert on_slices["notes"] == []
    assert on_slices["what"] == stored["what"] == "phantom slices"
    assert on_slices["comparison"]["reference_lesions"] == stored["comparison"]["reference_lesions"]
    volume = ("--reference", tiny_checkpoint, "--input", flair, "--save-reference", tmp_path / "out.npz")
    computed = json.loads(run(*fixed, *volume).stdout)["results"][0]
    assert sha256(flair) in computed["what"]
    kept = json.loads(run(*fixed, "--reference", tmp_path / "out.npz", env=torchless).stdout)["results"][0]
    assert kept == computed
    assert "--force" in one_error(run(*fixed, *volume, code=3))
    (tmp_path / "out.npz").write_bytes((tmp_path / "out.npz").read_bytes()[:5000])
    assert "out.npz: not a reference" in one_error(run(*fixed, "--reference", tmp_path / "out.npz", code=3))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--input", "flair.nii.gz"], 2),
        (["--input", "flair.nii.gz", "--reference", "known.npz"], 2),
        (["--save-reference", "out.npz"], 2),
        (["--precision", "fp8"], 2),
        (["--max-difference", "-1"], 2),
        (["--max-difference", "inf"], 2),
        (["--percentile-difference", "nan"], 2),
        (["--bisect", "--bisect-tolerance", "inf"], 2),
        (["--min-dice", "2"], 2),
        (["--backend", "abacus"], 2),
        (["--input", "f.nii", "--reference", "no.pt", "--save-reference", "/proc/x.npz"], 3),  # which takes no files
        (["--reference", "no.npz"], 3),
        (["--reference", "no.pt"], 3),
    ],
)
def test_verify_refuses_options_that_do_not_fit(run: Run, tiny_bundle: Path, options: list[str], code: int) -> None:
    result = run("verify", tiny_bundle, *options, code=code)
    assert result.stderr.lower().count("error") == 1
    assert not result.stdout
