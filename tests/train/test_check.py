"""`lesionrt data check`: what it says of data sets with one fault each."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionrt.train.check import check_dataset, check_lines
from lesionrt.train.dataset import Scan

Run = Callable[..., object]
AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def scan(
    folder: Path,
    name: str = "p_1",
    mask: np.ndarray | None = None,
    flair: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    split: str | None = None,
) -> Scan:
    """A scan of 6x6x6 voxels with a brain of 4x4x4, and three lesion voxels in two slices unless a mask is given."""
    patient, time = name.split("_")
    if flair is None:
        flair = np.zeros((6, 6, 6), np.float32)
        flair[1:5, 1:5, 1:5] = np.arange(1, 65).reshape(4, 4, 4) + int(time)
    if mask is None:
        mask = np.zeros((6, 6, 6), np.uint8)
        mask[2, 2, 2] = mask[2, 3, 2] = mask[4, 4, 4] = 1
    paths = [folder / f"{name}_{what}.nii.gz" for what in ("flair", "mask")]
    nib.save(nib.Nifti1Image(flair, AFFINE), paths[0])
    image = nib.Nifti1Image(mask, affine)
    image.header["descrip"] = f"time {time}"  # so that the masks of two times are not the same bytes
    nib.save(image, paths[1])
    return Scan(*paths, patient, time, split)


def test_one_image_in_two_splits_is_an_error(tmp_path: Path) -> None:
    found = check_dataset(tmp_path, [scan(tmp_path, "p_1", split="train"), scan(tmp_path, "q_1", split="test")])
    assert found.all_errors() == ["p_1 and q_1 are the same image and stand in different splits: take it out of one"]


def test_what_is_found_in_a_scan(tmp_path: Path) -> None:
    found = check_dataset(tmp_path, [scan(tmp_path), scan(tmp_path, "q_1")])
    check = found.scans[0]
    assert (check.shape, check.voxel_mm, check.axes) == ((6, 6, 6), (1, 2, 3), "LAS")
    assert check.intensities == (2, pytest.approx(2.63), 33.5, pytest.approx(64.37), 65)
    assert check.brain_ml == pytest.approx(0.4)  # 64 voxels of 6 mm3
    assert (check.lesion_ml, check.lesions, check.lesion_slices) == (0.018, 2, 2)
    assert found.all_errors() == []
    assert found.all_warnings() == [
        "p_1 and q_1 are the same image, voxel for voxel",
        "p_1 and q_1 have the same mask, byte for byte; look whether it belongs to both",
    ]
    shown = check_lines(found)
    assert shown[1].split()[:7] == ["p_1", "-", "6x6x6", "at", "1x2x3", "mm", "LAS"]
    assert "2 scans of 2 patients, 4 slices with lesions, 0.02 to 0.02 ml of lesions" in shown
    assert "  2 x 6x6x6 at 1x2x3 mm LAS" in shown


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"mask": np.zeros((6, 6, 6), np.uint8)}, "the mask is empty"),
        ({"mask": np.eye(6, dtype=np.uint8)[None].repeat(6, 0) * 3}, r"holds values other than 0 and 1 (3)"),
        ({"mask": np.eye(6, dtype=np.uint8)[None].repeat(6, 0)}, "56% of its lesion voxels lie where the image is 0"),
        ({"flair": np.ones((6, 6, 6), np.float32) + np.eye(6, dtype=np.float32)}, "does not look skull-stripped"),
    ],
    ids=["empty", "labels", "outside", "skull"],
)
def test_what_should_be_looked_at_is_a_warning(tmp_path: Path, fault: dict[str, np.ndarray], message: str) -> None:
    found = check_dataset(tmp_path, [scan(tmp_path, **fault), scan(tmp_path, "q_2")])
    assert found.all_errors() == []
    assert any(text.startswith("p_1: ") and message in text for text in found.all_warnings())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"mask": np.eye(6, 5, dtype=np.uint8)[:, None].repeat(6, 1)}, "has 6x6x5 voxels"),
        ({"affine": np.diag([1.0, 2.0, 3.0, 1.0])}, "its affine places it up to 10.0 mm from"),
        ({"mask": np.arange(216, dtype=np.float32).reshape(6, 6, 6)}, "is no lesion mask"),
        ({"flair": np.ones((6, 6, 6), np.float32)}, "the image is constant"),
        (
            {"flair": np.pad(np.ones((4, 4, 4), np.float32), 1)},
            "p_1_flair.nii.gz: its values are 0 and 1 alone: a mask",
        ),
        ({"mask": np.full((6, 6, 6), np.nan, np.float32)}, "216 voxels are NaN"),
    ],
    ids=["shape", "affine", "image", "constant", "swapped", "nan"],
)
def test_what_cannot_be_used_is_an_error_of_that_scan_alone(
    tmp_path: Path, fault: dict[str, np.ndarray], message: str
) -> None:
    found = check_dataset(tmp_path, [scan(tmp_path, **fault), scan(tmp_path, "q_2")])
    assert len(found.all_errors()) == 1
    assert found.all_errors()[0].startswith("p_1: ")
    assert message in found.all_errors()[0]
    assert len(check_lines(found)) >= 4


def test_patients_in_two_splits_and_scans_in_none_are_told(tmp_path: Path) -> None:
    splits = {"p_1": "train", "p_2": "test", "q_3": "validation", "r_4": None}
    found = check_dataset(tmp_path, [scan(tmp_path, name, split=split) for name, split in splits.items()])
    assert len(found.all_errors()) == 1
    assert "patient p stands in train and test" in found.all_errors()[0]
    assert found.all_warnings() == ["1 scans stand in no split, others do: r_4; they are trained on"]


def test_a_scan_in_no_split_is_trained_on(tmp_path: Path) -> None:
    splits = {"p_1": None, "p_2": "test"}
    found = check_dataset(tmp_path, [scan(tmp_path, name, split=split) for name, split in splits.items()])
    assert "patient p stands in train and test" in found.all_errors()[0]


def test_masks_that_are_all_empty_and_a_single_patient_are_told(tmp_path: Path) -> None:
    found = check_dataset(tmp_path, [scan(tmp_path, mask=np.zeros((6, 6, 6), np.uint8))])
    assert found.errors == ["no mask holds a lesion: there is nothing to learn"]
    assert found.warnings == ["all scans are of one patient: none can be held out"]


def test_slices_with_lesions_of_the_papers_folds_stand_beside_the_papers(tmp_path: Path) -> None:
    # Five patients at four times: patient k has k slices with lesions at time 4 and 1 at the others.
    scans = []
    for patient in range(1, 6):
        for time in range(1, 5):
            mask = np.zeros((6, 6, 6), np.uint8)
            mask[2, 2, : patient if time == 4 else 1] = 1
            scans.append(scan(tmp_path, f"{patient}_{time}", mask=mask))
    found = check_dataset(tmp_path, scans)
    # Of 15 slices at time 4 and 15 others, fold 1 tests 1 and validates patients 2, 3, 4 at time 4.
    assert found.folds is not None
    assert found.folds[0] == (15 + 5, 2 + 3 + 4, 1)
    assert "  fold 1: here 20 / 9 / 1; the paper 1119 / 197 / 70" in check_lines(found)
    document = json.loads(json.dumps(found.as_dict()))
    assert document["lesion_slices_in_paper_folds"][0]["paper"] == {"train": 1119, "validation": 197, "test": 70}


def test_the_command_reports_and_ends_with_3_if_something_cannot_be_used(
    run: Run, small_dataset: Path, tmp_path: Path
) -> None:
    shown = run("data", "check", small_dataset).stdout
    assert "3 scans of 2 patients" in shown
    broken = scan(tmp_path, mask=np.ones((6, 6, 5), np.uint8))
    (tmp_path / "scans.csv").write_text(f"flair,mask,patient,time\n{broken.flair},{broken.mask},p,1\n")
    document = json.loads(run("data", "check", tmp_path / "scans.csv", "--json", code=3).stdout)
    assert document["usable"] is False
    assert "has 6x6x5 voxels" in document["errors"][0]
    assert "no such data set" in run("data", "check", tmp_path / "absent.csv", code=3).stderr
