"""Reading data sets, and splitting them by patient or as the paper does."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.errors import DatasetError, VolumeError
from lesionrt.train.dataset import (
    PAPER_FOLD_SLICES,
    Scan,
    paper_folds,
    patient_folds,
    read_dataset,
    read_pair,
    select,
    select_split,
)

HEAD = "flair,mask,patient,time"
# The challenge's training set: patient 3 has five times, the others four.
TIMES = {"01": 4, "02": 4, "03": 5, "04": 4, "05": 4}


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file's folder with two scans in it."""
    for name in ("one", "two"):
        save(tmp_path / f"{name}/flair.nii.gz", np.arange(64, dtype=np.float32).reshape(4, 4, 4))
        save(tmp_path / f"{name}/mask.nii", np.eye(4, dtype=np.uint8)[None].repeat(4, 0))
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return folder / "scans.csv"


@pytest.fixture
def isbi(tmp_path: Path) -> Path:
    """The challenge's folder as it is laid out, with tiny volumes; half of the files are packed."""
    flair, mask = np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.zeros((4, 4, 4), np.uint8)
    for patient, times in TIMES.items():
        folder = tmp_path / f"training{patient}"
        for time in range(1, times + 1):
            stem, packed = f"training{patient}_{time:02d}", ".gz" if time % 2 else ""
            save(folder / f"preprocessed/{stem}_flair_pp.nii{packed}", flair)
            save(folder / f"preprocessed/{stem}_t2_pp.nii{packed}", flair)
            for rater in (1, 2):
                save(folder / f"masks/{stem}_mask{rater}.nii{packed}", mask)
            save(folder / f"orig/{stem}_flair.nii.gz", flair)
    return tmp_path


def test_a_csv_names_files_relative_to_its_own_folder_and_may_name_splits(table: Path) -> None:
    path = write(
        table,
        f"{HEAD},split,remark",
        "one/flair.nii.gz,one/mask.nii,p1,1,train,noisy",
        "",
        f"{table}/two/flair.nii.gz, two/mask.nii ,p2,1,,",
    )
    assert read_dataset(path) == [
        Scan(table / "one/flair.nii.gz", table / "one/mask.nii", "p1", "1", "train"),
        Scan(table / "two/flair.nii.gz", table / "two/mask.nii", "p2", "1", None),
    ]


def test_a_csv_with_a_byte_order_mark_as_spreadsheets_write_it_is_read(table: Path) -> None:
    path = write(table, f"\ufeff{HEAD}", "one/flair.nii.gz,one/mask.nii,p1,1")
    assert [scan.name for scan in read_dataset(path)] == ["p1_1"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("flair,patient", "a,b"),
            "has no column mask, time: the first line is 'flair,patient'; expected flair,mask,patient,time in its first line",
        ),
        ((f"{HEAD},Split", "one/flair.nii.gz,one/mask.nii,p,1,test"), r"scans.csv: has columns .*: 'Split'; expected"),
        ((f"{HEAD},time", "one/flair.nii.gz,one/mask.nii,p,1,2"), "has columns that .* stand there twice: 'time'"),
        (
            (HEAD, "one/flair.nii.gz,one/mask.nii,p,1,test,extra"),
            r"scans.csv, line 2: 2 cells more than columns \('test', 'extra'\); expected one a column",
        ),
        ((HEAD, f"{'x' * 300},one/mask.nii,p,1"), "scans.csv: names 1 files that do not exist: .*xxx"),
        ((HEAD,), "names no scan"),
        ((HEAD, "", "one/flair.nii.gz,one/mask.nii,,1"), "line 3: patient is empty"),
        ((HEAD, "one/flair.nii.gz"), "line 2: mask, patient, time is empty"),
        ((f"{HEAD},split", "one/flair.nii.gz,one/mask.nii,p,1,dev"), "line 2: split is 'dev'; expected train,"),
        ((HEAD, "one/flair.nii.gz,absent.nii,p,1"), r"names 1 files that do not exist: .*absent\.nii"),
        (
            (HEAD, "one/flair.nii.gz,one/mask.nii,p,1", "two/flair.nii.gz,two/mask.nii,p,1"),
            r"more than one scan of a patient at one time: p_1 \(.*one/flair.nii.gz, .*two/flair.nii.gz\)",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_told_apart(table: Path, lines: Sequence[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset(write(table, *lines))


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such data set; expected a CSV file or a folder"):
        read_dataset(tmp_path / "absent.csv")
    with pytest.raises(DatasetError, match="no such data set"):
        read_dataset(tmp_path / ("x" * 300))
    with pytest.raises(DatasetError, match=r"holds no trainingNN/preprocessed/trainingNN_TT_flair_pp.nii\[.gz\]"):
        read_dataset(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DatasetError, match=r"binary\.csv: cannot be read as a CSV file"):
        read_dataset(tmp_path / "binary.csv")


def test_the_challenges_folder_is_read_with_rater_1_packed_or_not(isbi: Path) -> None:
    scans = read_dataset(isbi)
    assert [scan.name for scan in scans] == [
        f"{patient}_{time:02d}" for patient, times in TIMES.items() for time in range(1, times + 1)
    ]
    assert scans[0].flair == isbi / "training01/preprocessed/training01_01_flair_pp.nii.gz"
    assert scans[0].mask == isbi / "training01/masks/training01_01_mask1.nii.gz"
    assert scans[1].mask == isbi / "training01/masks/training01_02_mask1.nii"


def test_a_packed_mask_of_an_unpacked_volume_is_found_and_a_missing_one_named(isbi: Path) -> None:
    masks = isbi / "training02/masks"
    (masks / "training02_02_mask1.nii").rename(masks / "training02_02_mask1.nii.gz")
    assert read_dataset(isbi)[5].mask == masks / "training02_02_mask1.nii.gz"
    (masks / "training02_02_mask1.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"do not exist: .*training02_02_mask1\.nii$"):
        read_dataset(isbi)


def test_a_volume_that_lies_there_packed_and_unpacked_is_not_read_twice(isbi: Path) -> None:
    folder = isbi / "training01/preprocessed"
    (folder / "training01_01_flair_pp.nii").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"01_01 \(.*flair_pp.nii, .*flair_pp.nii.gz\); .* keep one file"):
        read_dataset(isbi)


def test_the_papers_folds_test_each_patient_at_time_4_and_use_every_scan_once(isbi: Path) -> None:
    scans = read_dataset(isbi)
    folds = paper_folds(scans)
    assert [[scan.name for scan in fold["test"]] for fold in folds] == [[f"{patient}_04"] for patient in TIMES]
    for fold in folds:
        assert [len(fold[part]) for part in ("train", "validation", "test")] == [17, 3, 1]
        assert sorted(scan.name for part in fold.values() for scan in part) == [scan.name for scan in scans]
    assert len(PAPER_FOLD_SLICES) == len(folds)
    assert {sum(counts) for counts in PAPER_FOLD_SLICES} == {1386}


def test_the_papers_folds_need_its_five_patients(isbi: Path) -> None:
    scans = [scan for scan in read_dataset(isbi) if scan.name != "05_04"]
    with pytest.raises(DatasetError, match=r"found patients 01, 02, 03, 04, 05, with that time 01, 02, 03, 04$"):
        paper_folds(scans)


def test_folds_by_patient_hold_a_patient_out_with_all_times() -> None:
    scans = [Scan(Path("f"), Path("m"), patient, time) for patient in "ba" for time in "12"]
    folds = patient_folds(scans)
    assert [[scan.name for scan in fold["test"]] for fold in folds] == [["a_1", "a_2"], ["b_1", "b_2"]]
    assert [[scan.name for scan in fold["train"]] for fold in folds] == [["b_1", "b_2"], ["a_1", "a_2"]]


def test_scans_are_selected_by_patient_or_split() -> None:
    scans = [Scan(Path("f"), Path("m"), "a", "1", "train"), Scan(Path("f"), Path("m"), "b", "1", "test")]
    assert select(scans, ["b"], "here") == select_split(scans, "test", "here") == scans[1:]
    with pytest.raises(DatasetError, match="here: no scan of patient c; the data set has a, b"):
        select(scans, ["b", "c"], "here")
    with pytest.raises(DatasetError, match="here: no scan of split 'validation'; the data set has test, train"):
        select_split(scans, "validation", "here")


def test_an_image_probabilities_and_labels_are_no_mask(table: Path) -> None:
    scan = Scan(table / "one/flair.nii.gz", table / "one/mask.nii", "p", "1")
    level = np.eye(4, dtype=np.float32)[None].repeat(4, 0)
    for data in (level * 255, level - level / 1000, level.astype(bool).astype(np.uint8), level * 0):
        save(scan.mask, data)
        np.testing.assert_array_equal(read_pair(scan)[1], data > 0.5)
    labels, probabilities = (level + np.roll(level, 1)).cumsum(0), level.cumsum(0) / 4
    for data in (np.arange(64, dtype=np.float32).reshape(4, 4, 4), labels, probabilities):
        save(scan.mask, data)
        with pytest.raises(DatasetError, match=r"mask\.nii: is no lesion mask: .* expected two values, 0 and 1"):
            read_pair(scan)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((1, 2), "its lowest value is 1"),
        ((1, 1), "its lowest value is 1"),
        ((0, -1), "its lowest value is -1"),
        ((0, 0.4), r"its highest value is 0\.4"),
        ((0, 1, 255), "4 voxels lie between .*, such as 1"),
    ],
)
def test_two_values_are_a_mask_only_if_they_are_0_and_more_than_a_half(
    table: Path, values: Sequence[float], found: str
) -> None:
    data = np.zeros((4, 4, 4), np.float32)
    data[:] = values[0]
    for row, value in enumerate(values[1:]):
        data[0, row] = value
    save(table / "one/mask.nii", data)
    with pytest.raises(DatasetError, match=rf"mask\.nii: is no lesion mask: {found}; expected two values, 0 and 1"):
        read_pair(Scan(table / "one/flair.nii.gz", table / "one/mask.nii", "p", "1"))


def test_a_mask_must_lie_on_its_volumes_grid(table: Path) -> None:
    scan = Scan(table / "one/flair.nii.gz", table / "one/mask.nii", "p", "1")
    flair, lesions = read_pair(scan)
    assert flair.shape == lesions.shape == (4, 4, 4)
    assert lesions.sum() == 16
    shifted = np.eye(4)
    shifted[0, 3] = 2.5
    save(scan.mask, np.zeros((4, 4, 4), np.uint8), shifted)
    with pytest.raises(DatasetError, match=r"mask\.nii: its affine places it up to 2\.5 mm from .*flair\.nii\.gz"):
        read_pair(scan)
    save(scan.mask, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"mask\.nii: has 4x4x3 voxels, .*flair\.nii\.gz has 4x4x4"):
        read_pair(scan)
    scan.mask.write_bytes(b"nothing of the kind")
    with pytest.raises(VolumeError, match=r"mask\.nii"):
        read_pair(scan)
