"""The model that is shipped: what its card says of the real scans holds."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.bundle import Bundle, load_bundle
from lesionrt.runtime.segmenter import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
SCANS = {
    "p07_1": "lit/p07",
    "p19_1": "lit/p19",
    "P14_1": "mslesseg/P14_T1",
    "P14_2": "mslesseg/P14_T2",
    "P14_3": "mslesseg/P14_T3",
    "P39_1": "mslesseg/P39_T1",
}
MOST_BYTES = 32 * 1024 * 1024  # of a file


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def segmented(shared: Path, run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every real scan through the command as a user gives it, in one call."""
    out = tmp_path_factory.mktemp("default")
    run("segment", *(shared / "data" / folder / "flair.nii.gz" for folder in SCANS.values()), "-o", out, "--overlay")
    return out


@pytest.mark.parametrize("scan", SCANS)
def test_the_dice_of_each_real_scan_is_the_cards(segmented: Path, shared: Path, bundle: Bundle, scan: str) -> None:
    flair, lesions = (nib.load(shared / "data" / SCANS[scan] / name) for name in ("flair.nii.gz", "lesions.nii.gz"))
    mask = nib.load(segmented / SCANS[scan] / "flair_lesions.nii.gz")
    assert mask.shape == flair.shape
    np.testing.assert_array_equal(mask.affine, flair.affine)
    found, true = np.asarray(mask.dataobj) > 0, np.asarray(lesions.dataobj) > 0.5
    dice = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
    assert dice == pytest.approx(bundle.manifest["card"]["figures"][scan]["dice"], abs=0.01)
    assert {path.name for path in (segmented / SCANS[scan]).iterdir()} == {
        *("flair_lesions.nii.gz", "flair_lesions.csv", "flair_report.json", "flair_overlay.png"),
    }
    report = json.loads((segmented / SCANS[scan] / "flair_report.json").read_text())
    assert report["model"]["trained"]
    assert not report["warnings"]


def test_its_card_says_what_a_person_should_know(bundle: Bundle) -> None:
    card = bundle.manifest["card"]
    assert not re.search(r"\{\w+\}", json.dumps([card["recipe"], card["limits"]]))  # no name is left for its value
    assert "not a medical device" in card["limits"].lower()
    assert "10.1007/s12021-017-9348-7" in card["data"]
    assert "10.1038/s41597-025-05250-y" in card["data"]
    assert all(figure["trained_on_it"] for name, figure in card["figures"].items() if name in SCANS)
    assert bundle.model.trained
    assert bundle.model.licence


def test_its_export_compared_the_masks_of_all_slices_in_every_precision(bundle: Bundle) -> None:
    rows = bundle.manifest["parity"]
    assert {row["precision"] for row in rows if row["masks_count"]} == {"fp32", "fp16", "bf16"}
    assert all(row["masks_count"] == row["what"].startswith("6 ") for row in rows)
    assert not any(row["findings"] for row in rows)


def test_people_that_it_had_not_seen_are_segmented_better_than_by_a_fixed_threshold(bundle: Bundle) -> None:
    unseen = [figure for figure in bundle.manifest["card"]["figures"].values() if not figure["trained_on_it"]]
    assert unseen
    means = [sum(figure[name] for figure in unseen) / len(unseen) for name in ("dice", "fixed_threshold_dice")]
    assert means[0] > means[1]


@pytest.mark.parametrize("page", ["runtime/models/README.md", "README.md"])
def test_the_pages_show_the_cards_figures(bundle: Bundle, page: str) -> None:
    rows = re.findall(r"^\| (\w+) \|.*$", (ROOT / page).read_text(), re.MULTILINE)
    assert set(SCANS) <= set(rows)
    for name, figure in bundle.manifest["card"]["figures"].items():
        row = re.search(rf"^\| {name} .*$", (ROOT / page).read_text(), re.MULTILINE)
        assert row, name
        assert f"| {figure['dice']:.2f} |" in row[0]


def test_it_agrees_with_pytorch_and_no_file_is_too_large(run: Callable[..., Any], bundle: Bundle) -> None:
    run("verify", DEFAULT_MODEL)
    assert all(path.stat().st_size < MOST_BYTES for path in DEFAULT_MODEL.iterdir())
    assert set(bundle.precisions) == {"fp32", "fp16", "bf16"}
