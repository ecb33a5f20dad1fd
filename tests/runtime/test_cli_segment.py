"""`lesionrt segment` through the installed command."""

import contextlib
import csv
import hashlib
import json
import os
import pty
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
from PIL import Image
from scipy import ndimage

COMMAND = Path(sys.executable).parent / "lesionrt"
RESULTS = {
    "mask": "flair_lesions.nii.gz",
    "table": "flair_lesions.csv",
    "report": "flair_report.json",
    "probability": "flair_probability.nii.gz",
    "overlay": "flair_overlay.png",
}
ALWAYS = {RESULTS[kind] for kind in ("mask", "table", "report")}
Segment = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def done(segment: Segment, small_flair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is written for the small volume."""
    out = tmp_path_factory.mktemp("done")
    segment(small_flair, "-o", out, "--probabilities", "--overlay")
    return out


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_mask_table_and_report_are_written_always(segment: Segment, flake: Path, tmp_path: Path) -> None:
    result = segment(flake, "-o", tmp_path)
    assert set(files(tmp_path)) == ALWAYS
    assert all(str(tmp_path / name) in result.stdout for name in ALWAYS)
    assert f"warning: {flake}: the model is untrained" in result.stderr
    assert not set("\r\x1b━") & set(result.stdout + result.stderr), "a progress bar in a pipe"


def test_probability_and_overlay_are_written_on_request(done: Path) -> None:
    assert set(files(done)) == set(RESULTS.values())
    with Image.open(done / RESULTS["overlay"]) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("kind", "name"), [(nib.Nifti1Image, "flair.nii.gz"), (nib.Nifti2Image, "flair.nii")], ids=["nifti1", "nifti2"]
)
def test_mask_and_probability_lie_on_the_grid_of_the_input(
    segment: Segment, flake: Path, tmp_path: Path, kind: type[nib.Nifti1Image], name: str
) -> None:
    tilt = np.deg2rad(10)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = nib.affines.from_matvec(turn @ np.diag([-0.9, -0.9, 3.0]), [21, 25, -7])
    image = kind(voxels(flake)[..., None].astype(np.int16), affine)  # a trailing axis of 1
    image.header.set_slope_inter(2.0, -1.0)
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    nib.save(image, tmp_path / name)
    segment(tmp_path / name, "-o", tmp_path / "out", "--probabilities")
    given = nib.load(tmp_path / name)
    for result, dtype in (("mask", np.uint8), ("probability", np.float32)):
        found = nib.load(tmp_path / "out" / RESULTS[result])
        assert isinstance(found, kind)
        assert found.get_data_dtype() == dtype
        assert found.shape == given.shape
        np.testing.assert_array_equal(found.affine, given.affine)
        np.testing.assert_equal(found.get_qform(coded=True), given.get_qform(coded=True))
        np.testing.assert_equal(found.get_sform(coded=True), given.get_sform(coded=True))
        assert np.isfinite(voxels(tmp_path / "out" / RESULTS[result])).all()
    report = json.loads((tmp_path / "out" / RESULTS["report"]).read_text())
    lesion_ml = voxels(tmp_path / "out" / RESULTS["mask"]).sum() * 0.9 * 0.9 * 3.0 / 1000
    assert report["lesion_volume_ml"] == pytest.approx(lesion_ml, abs=1e-4)


def test_mask_is_where_the_probability_is_over_the_threshold(done: Path) -> None:
    mask, probability = voxels(done / RESULTS["mask"]), voxels(done / RESULTS["probability"])
    np.testing.assert_array_equal(mask, probability > 0.5)
    assert 0 < mask.sum() < mask.size
    assert 0 <= probability.min() < probability.max() <= 1


def test_table_agrees_with_the_components_of_the_mask_and_with_the_report(done: Path) -> None:
    mask, probability = voxels(done / RESULTS["mask"]), voxels(done / RESULTS["probability"])
    affine = nib.load(done / RESULTS["mask"]).affine
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    expected = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        centroid = nib.affines.apply_affine(affine, ndimage.center_of_mass(labels == number))
        size = int((labels == number).sum())
        ends = [end for axis in box for end in (axis.start, axis.stop - 1)]
        expected.append([*ends, size, float(size), *centroid, probability[labels == number].mean(dtype=float), 26])
    rows = list(csv.DictReader((done / RESULTS["table"]).read_text().splitlines()))
    names = ["i_first", "i_last", "j_first", "j_last", "k_first", "k_last", "voxels", "volume_mm3"]
    names += ["centroid_r_mm", "centroid_a_mm", "centroid_s_mm", "mean_probability", "connectivity"]
    found = [[float(row[name]) for name in names] for row in rows]
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=0, atol=0.00501)
    assert [row["lesion"] for row in rows] == [str(number) for number in range(1, count + 1)]
    sizes = [int(row["voxels"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    report = json.loads((done / RESULTS["report"]).read_text())
    assert report["lesion_count"] == count
    assert report["lesion_volume_ml"] == pytest.approx(mask.sum() / 1000, abs=1e-4)


def test_report_says_what_was_done_with_what(done: Path, small_flair: Path, tiny_bundle: Path) -> None:
    import onnxruntime

    report = json.loads((done / RESULTS["report"]).read_text())
    assert report["schema"] == 1
    assert report["input"] == str(small_flair)
    assert report["input_sha256"] == hashlib.sha256(small_flair.read_bytes()).hexdigest()
    assert (report["model"]["name"], report["model"]["trained"]) == ("untrained", False)
    assert report["model_sha256"] == hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    assert (report["backend"], report["backend_chosen"], report["device"][:3]) == ("cpu", "asked for", "CPU")
    assert report["versions"]["backend"] == f"onnxruntime {onnxruntime.__version__}"
    assert report["versions"]["numpy"] == np.__version__
    assert {"lesionrt", "python"} <= set(report["versions"])
    assert set(report["seconds"]) == {"load", "read", "prepare", "infer", "restore"}
    assert all(0 <= seconds < 600 for seconds in report["seconds"].values())
    assert [warning for warning in report["warnings"] if "untrained" in warning]
    assert (report["threshold"], report["min_lesion_mm3"], report["connectivity"]) == (0.5, 0, 26)


def test_auto_says_what_it_chose_and_why(segment: Segment, flake: Path, tmp_path: Path) -> None:
    result = segment(flake, "-o", tmp_path, "--backend", "auto")
    report = json.loads((tmp_path / RESULTS["report"]).read_text())
    assert report["backend"] in ("cuda", "openvino", "cpu")
    assert report["backend_chosen"].startswith("auto: ")
    assert f"backend {report['backend']} ({report['backend_chosen']})" in result.stderr


def test_bids_input_gives_bids_derivatives(segment: Segment, flake: Path, tmp_path: Path) -> None:
    scan = shutil.copy(flake, tmp_path / "sub-01_ses-2_desc-preproc_FLAIR.nii.gz")
    segment(scan, "-o", tmp_path / "out", "--probabilities", "--overlay")
    endings = ("mask.nii.gz", "table.csv", "report.json", "probseg.nii.gz", "overlay.png")
    assert set(files(tmp_path / "out")) == {f"sub-01_ses-2_desc-lesions_{ending}" for ending in endings}


def test_json_is_one_line_a_volume_also_for_a_failing_one(segment: Segment, flake: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.nii.gz", tmp_path / "out"
    bad.write_bytes(b"not a scan")
    good, failed = lines(segment(flake, bad, "-o", out, "--json", code=3))
    target = next(out.rglob(RESULTS["report"]))
    outputs = good.pop("outputs")
    assert good == json.loads(target.read_text())
    assert outputs == {kind: str(target.with_name(RESULTS[kind])) for kind in ("report", "table", "mask")}
    assert failed["input"] == str(bad)
    assert str(bad) in failed["error"]


def test_json_alone_stands_on_stdout_also_where_stderr_is_closed(
    tiny_bundle: Path, flake: Path, tmp_path: Path
) -> None:
    line = '"$@" 2>&-'
    command = [COMMAND, "segment", flake, tmp_path / "none.nii.gz", "-o", tmp_path / "out", "--model", tiny_bundle]
    found = subprocess.run(["sh", "-c", line, "sh", *command, "--json"], capture_output=True, text=True)
    assert found.returncode == 3
    assert len([json.loads(line) for line in found.stdout.splitlines()]) == 2


def test_mask_is_identical_bytes_whatever_the_chunk_and_in_every_run(
    segment: Segment, small_flair: Path, done: Path, tmp_path: Path
) -> None:
    for number, options in enumerate([(), ("--chunk", 1), ("--chunk", 3), ("--chunk", 100)]):
        segment(small_flair, "-o", tmp_path / str(number), *options)
        found = (tmp_path / str(number) / RESULTS["mask"]).read_bytes()
        assert found == (done / RESULTS["mask"]).read_bytes(), options


def test_threshold_and_smallest_lesion_act(segment: Segment, small_flair: Path, done: Path, tmp_path: Path) -> None:
    segment(small_flair, "-o", tmp_path, "--threshold", 0.6, "--min-lesion-mm3", 5)
    labels, count = ndimage.label(voxels(done / RESULTS["probability"]) > 0.6, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    assert 5 in sizes, "no lesion at the bound"
    large = [number for number in range(1, count + 1) if sizes[number] >= 5]
    np.testing.assert_array_equal(voxels(tmp_path / RESULTS["mask"]), np.isin(labels, large))
    report = json.loads((tmp_path / RESULTS["report"]).read_text())
    assert (report["threshold"], report["min_lesion_mm3"], report["lesion_count"]) == (0.6, 5, len(large))


def test_brain_mask_restricts_the_mask(segment: Segment, flake: Path, tmp_path: Path) -> None:
    flair = nib.load(flake)
    half = np.zeros(flair.shape, np.uint8)
    half[:24] = 1
    nib.save(nib.Nifti1Image(half, flair.affine), tmp_path / "brain.nii.gz")
    segment(flake, "-o", tmp_path / "out", "--brain-mask", tmp_path / "brain.nii.gz")
    mask = voxels(tmp_path / "out" / RESULTS["mask"])
    assert mask[:24].any()
    assert not mask[24:].any()
    report = json.loads((tmp_path / "out" / RESULTS["report"]).read_text())
    assert report["brain_mask_sha256"] == hashlib.sha256((tmp_path / "brain.nii.gz").read_bytes()).hexdigest()


@pytest.mark.parametrize(("slices", "shift_mm"), [(5, 0), (4, 1)], ids=["shape", "affine"])
def test_brain_mask_of_another_grid_is_refused(
    segment: Segment, flake: Path, tmp_path: Path, slices: int, shift_mm: int
) -> None:
    affine = nib.load(flake).affine
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(np.ones((48, 56, slices), np.uint8), affine), tmp_path / "brain.nii.gz")
    result = segment(flake, "-o", tmp_path / "out", "--brain-mask", tmp_path / "brain.nii.gz", code=3)
    assert re.search("brain mask .* resample the mask to the image's grid", result.stderr)
    assert not (tmp_path / "out").exists()


def test_one_bad_volume_does_not_stop_the_others(segment: Segment, flake: Path, tmp_path: Path) -> None:
    scans = [Path(shutil.copy(flake, tmp_path / f"{name}.nii.gz")) for name in ("first", "bad", "last")]
    scans[1].write_bytes(flake.read_bytes()[:-100])
    result = segment(*scans, "-o", tmp_path / "out", code=3)
    assert {name.partition("_")[0] for name in files(tmp_path / "out")} == {"first", "last"}
    assert "2 of 3 inputs segmented" in result.stdout
    assert result.stderr.endswith(f"1 of 3 failed:\n  {scans[1]}\n")
    assert f"error: {scans[1]}: " in result.stderr


def test_an_empty_folder_does_not_stop_the_others(segment: Segment, flake: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = segment(flake, tmp_path / "empty", "-o", tmp_path / "out", "--json", code=3)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [("error" in line, line["input"]) for line in lines] == [
        (True, str(tmp_path / "empty")),
        (False, str(flake)),
    ]


def test_forcing_a_run_leaves_no_picture_of_the_last_one(segment: Segment, flake: Path, tmp_path: Path) -> None:
    segment(flake, "-o", tmp_path, "--overlay", "--probabilities")
    result = segment(flake, "-o", tmp_path, "--force")
    assert set(files(tmp_path)) == ALWAYS
    removed = [line.partition("removed, of an earlier run: ")[2] for line in result.stderr.splitlines()]
    assert {Path(path).name for path in removed if path} == {RESULTS["probability"], RESULTS["overlay"]}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "FLAIR"),
        (["--threshold", "2"], 2, "threshold is 2.0"),
        (["--threshold", "nan"], 2, "threshold is nan"),
        (["--threshold", "high"], 2, "--threshold"),
        (["--min-lesion-mm3", "-1"], 2, "min_lesion_mm3 is -1.0"),
        (["--min-lesion-mm3", "inf"], 2, "min_lesion_mm3 is inf"),
        (["--chunk", "0"], 2, "chunk is 0"),
        (["--threads", "0"], 2, "threads is 0"),
        (["--threads", "99999999999"], 2, "threads is 99999999999; expected 1 to 1024"),
        (["--backend", "abacus"], 2, "abacus"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--model", "no/such/bundle"], 3, "no/such/bundle: no such bundle"),
        (["no/such/scan.nii.gz"], 3, "no/such/scan.nii.gz: no such file"),
        (["--brain-mask", "no/such/mask.nii.gz"], 3, "no/such/mask.nii.gz: no such file"),
    ],
)
def test_bad_value_is_one_clear_error(
    segment: Segment, flake: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    scans = [flake] if "".join(options).startswith("--") else []
    result = segment(*scans, "-o", tmp_path / "out", *options, code=code)
    assert message in result.stderr
    assert result.stderr.lower().count("error") == 1
    assert not result.stdout
    assert not (tmp_path / "out").exists()


def test_progress_is_shown_in_a_terminal(tiny_bundle: Path, flake: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "segment", flake, "-o", tmp_path, "--model", tiny_bundle],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while block := os.read(ours, 4096):
            shown += block
    os.close(ours)
    assert process.wait() == 0
    assert b"4/4 slices" in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)


def test_name_that_the_terminal_cannot_show_is_no_failure(segment: Segment, flake: Path, tmp_path: Path) -> None:
    scan = Path(shutil.copy(flake, tmp_path / os.fsdecode(b"fl\xe4ir.nii.gz")))
    segment(scan, "-o", tmp_path / "out", env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert len(files(tmp_path / "out")) == 3
