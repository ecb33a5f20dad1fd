"""Data sets: tables of FLAIR scans with lesion masks, and how they are split."""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from lesionrt.runtime.errors import DatasetError
from lesionrt.runtime.files import sha256_of
from lesionrt.runtime.geometry import slice_axis
from lesionrt.runtime.prepare import Preparation, Prepared, prepare_volume
from lesionrt.runtime.volume import Volume, nonzero_brain, other_grid, read_flair, read_volume

COLUMNS = ("flair", "mask", "patient", "time")
SPLIT = "split"  # a column that may be there too
SPLITS = ("train", "validation", "test")
LESION_OVER = 0.5  # a voxel is lesion where a mask's value is over this
LEVEL_WIDTH = 0.01  # by how much rounding may move a mask's lowest value, and its highest as a share of the range
# The ISBI 2015 challenge: training05/preprocessed/training05_04_flair_pp.nii, rater 1.
_ISBI_FLAIR = re.compile(r"training(\d\d)_(\d\d)_flair_pp\.nii(\.gz)?")
# Slices with lesions in the paper's folds: training, validation, test (section 4.1).
PAPER_FOLD_SLICES = ((1119, 197, 70), (1119, 183, 84), (1119, 200, 67), (1136, 208, 42), (1111, 225, 50))
PAPER_TEST_TIME = "04"
PAPER_VALIDATION_SCANS = 3


@dataclass(frozen=True)
class Scan:
    """One FLAIR volume of one patient at one time, with an expert's lesion mask on the same grid."""

    flair: Path
    mask: Path
    patient: str
    time: str
    split: str | None = None  # one of SPLITS where the table says so

    @property
    def name(self) -> str:
        """Patient and time point, unique in a data set."""
        return f"{self.patient}_{self.time}"


def read_dataset(path: Path) -> list[Scan]:
    """Read a table of scans, or the ISBI 2015 challenge's folder.

    Parameters
    ----------
    path
        A CSV file with the columns flair, mask, patient, time and, if wished, split (train, validation or test);
        its paths are relative to its own folder. Or a folder of ``trainingNN`` folders.

    Raises
    ------
    DatasetError
        If it cannot be read, names a missing file, or names a scan twice.
    """
    if os.path.isdir(path):  # noqa: PTH112 (a name too long for the file system is no folder)
        scans = _read_isbi(path)
    elif os.path.isfile(path):  # noqa: PTH113
        scans = _read_csv(path)
    else:
        raise DatasetError(f"{path}: no such data set; expected a CSV file or a folder of the ISBI 2015 challenge")
    if not scans:
        raise DatasetError(f"{path}: names no scan")
    files: dict[str, list[str]] = {}
    for scan in scans:
        files.setdefault(scan.name, []).append(str(scan.flair))
    twice = [f"{name} ({', '.join(flairs)})" for name, flairs in files.items() if len(flairs) > 1]
    if twice:
        raise DatasetError(
            f"{path}: more than one scan of a patient at one time: {'; '.join(twice)}; give each its own time, "
            "or keep one file of it"
        )
    named = [str(file) for scan in scans for file in (scan.flair, scan.mask)]
    missing = [file for file in named if not os.path.isfile(file)]  # noqa: PTH113 (a name too long is no file either)
    if missing:
        raise DatasetError(f"{path}: names {len(missing)} files that do not exist: {', '.join(missing[:5])}")
    return scans


def _read_csv(path: Path) -> list[Scan]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_columns(reader.fieldnames or (), path)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a CSV file ({error})") from error
    scans = []
    for line, row in rows:
        surplus = row.get(None)  # where DictReader puts the cells that have no column
        if surplus:
            raise DatasetError(
                f"{path}, line {line}: {len(surplus)} cells more than columns ({', '.join(map(repr, surplus))}); "
                "expected one a column: name their column in the first line, or remove them"
            )
        values = {name: (row.get(name) or "").strip() for name in (*COLUMNS, SPLIT)}
        empty = [name for name in COLUMNS if not values[name]]
        if empty:
            raise DatasetError(f"{path}, line {line}: {', '.join(empty)} is empty")
        if values[SPLIT] and values[SPLIT] not in SPLITS:
            raise DatasetError(f"{path}, line {line}: split is {values[SPLIT]!r}; expected {', '.join(SPLITS)}")
        flair, mask = (path.parent / values[name] for name in ("flair", "mask"))
        scans.append(Scan(flair, mask, values["patient"], values["time"], values[SPLIT] or None))
    return scans


def _check_columns(names: Sequence[str], path: Path) -> None:
    """A misspelt column is refused; others may stand there and are not read."""
    expected = f"expected {','.join(COLUMNS)} in its first line, and {SPLIT} if wished"
    absent = [name for name in COLUMNS if name not in names]
    if absent:
        found = f"the first line is {','.join(names)!r}" if names else "it is empty"
        raise DatasetError(f"{path}: has no column {', '.join(absent)}: {found}; {expected}, separated by commas")
    known = (*COLUMNS, SPLIT)
    # Others may say what they like, but a "Split" that is not read would train on test scans.
    doubtful = [
        name
        for at, name in enumerate(names)
        if name in names[:at] or (name not in known and get_close_matches(name.strip().lower(), known, cutoff=0.8))
    ]
    if doubtful:
        raise DatasetError(
            f"{path}: has columns that are misspelt or stand there twice: {', '.join(map(repr, doubtful))}; "
            f"{expected}: rename or remove them"
        )


def _read_isbi(folder: Path) -> list[Scan]:
    scans = []
    for flair in sorted(folder.glob("training*/preprocessed/*")):
        found = _ISBI_FLAIR.fullmatch(flair.name)
        if found:
            patient, time, packed = found.groups()
            names = [f"training{patient}_{time}_mask1.nii{ending}" for ending in (packed or "", ".gz", "")]
            masks = [flair.parent.parent / "masks" / name for name in names]
            mask = next((mask for mask in masks if mask.is_file()), masks[0])
            scans.append(Scan(flair, mask, patient, time))
    if not scans:
        raise DatasetError(
            f"{folder}: holds no trainingNN/preprocessed/trainingNN_TT_flair_pp.nii[.gz]; expected the ISBI 2015 layout, or a CSV file"
        )
    return scans


def read_pair(scan: Scan) -> tuple[Volume, NDArray[np.bool_]]:
    """A scan's FLAIR volume and its lesion mask, on one grid.

    Raises
    ------
    DatasetError
        If the two do not lie on the same grid, or the mask is none.
    VolumeError
        If either cannot be read.
    """
    flair = read_flair(scan.flair)
    return flair, read_mask(scan.mask, flair)


def read_mask(path: Path, flair: Volume) -> NDArray[np.bool_]:
    """A lesion mask (X, Y, Z) that lies on a FLAIR volume's grid.

    Raises
    ------
    DatasetError
        If it lies on another, or is no mask.
    VolumeError
        If it cannot be read.
    """
    mask = read_volume(path)
    check_same_grid(mask, flair)
    return lesion_voxels(mask)


def lesion_voxels(mask: Volume) -> NDArray[np.bool_]:
    """Where a mask (X, Y, Z) holds a lesion.

    Raises
    ------
    DatasetError
        If it holds anything but 0 and one value over 0.5, as images, probabilities and labels do: what of them is lesion
        is not known.
    """
    low, high = float(mask.data.min()), float(mask.data.max())
    near = LEVEL_WIDTH * (high - low)
    # Of 0, 1 and 255 the 1 is near the lowest only as a share of the range.
    between = mask.data[(mask.data > low + min(near, LEVEL_WIDTH)) & (mask.data < high - near)]
    found = None
    if between.size:
        found = (
            f"{between.size} voxels lie between its lowest value {low:g} and its highest {high:g}, "
            f"such as {float(between[0]):g}"
        )
    elif abs(low) > LEVEL_WIDTH:
        found = f"its lowest value is {low:g}"
    elif high <= LESION_OVER and (low, high) != (0, 0):
        found = f"its highest value is {high:g}"
    if found is not None:
        raise DatasetError(
            f"{mask.name}: is no lesion mask: {found}; expected two values, 0 and 1 (or 0 and 255): make a mask of it "
            "with a threshold"
        )
    lesions: NDArray[np.bool_] = mask.data > LESION_OVER
    return lesions


def lesion_slices(scan: Scan) -> int:
    """How many axial slices of a scan's mask hold a lesion.

    Raises
    ------
    DatasetError, VolumeError
        If the mask is none, or cannot be read.
    """
    mask = read_volume(scan.mask)
    others = tuple({0, 1, 2} - {slice_axis(mask.affine)})
    return int(np.count_nonzero(lesion_voxels(mask).any(axis=others)))


def check_same_grid(mask: Volume, flair: Volume) -> None:
    """A mask must have the volume's shape, and its affine place it where the volume is.

    Raises
    ------
    DatasetError
        If it does not.
    """
    problem = other_grid(mask, flair)
    if problem is not None:
        raise DatasetError(problem)


def prepare_pair(
    scan: Scan, preparation: Preparation, size_multiple: int
) -> tuple[Volume, Prepared, NDArray[np.bool_]]:
    """A scan, as the network sees it, and its lesions in the same box (n, H, W).

    Raises
    ------
    DatasetError, VolumeError
        As :func:`read_pair`.
    """
    flair, lesions = read_pair(scan)
    prepared = prepare_volume(flair, nonzero_brain(flair), preparation, size_multiple)
    return flair, prepared, prepared.box(lesions) >= LESION_OVER


def voxels_sha256(volume: Volume) -> str:
    """By which an image is known again, however its file is packed and its axes are turned."""
    turned = apply_orientation(volume.data, io_orientation(volume.affine))
    return sha256_of(np.ascontiguousarray(turned).tobytes())


def select(scans: Sequence[Scan], patients: Iterable[str], what: str) -> list[Scan]:
    """The scans of some patients.

    Raises
    ------
    DatasetError
        If a patient has none.
    """
    wanted = list(patients)
    unknown = [patient for patient in wanted if patient not in {scan.patient for scan in scans}]
    if unknown:
        known = ", ".join(sorted({scan.patient for scan in scans}))
        raise DatasetError(f"{what}: no scan of patient {', '.join(unknown)}; the data set has {known}")
    return [scan for scan in scans if scan.patient in wanted]


def select_split(scans: Sequence[Scan], split: str, what: str) -> list[Scan]:
    """The scans of one split of the table's column.

    Raises
    ------
    DatasetError
        If there is none.
    """
    chosen = [scan for scan in scans if scan.split == split]
    if not chosen:
        known = ", ".join(sorted({scan.split or "none" for scan in scans}))
        raise DatasetError(f"{what}: no scan of split {split!r}; the data set has {known}")
    return chosen


def paper_folds(scans: Sequence[Scan]) -> list[dict[str, list[Scan]]]:
    """The paper's five folds (section 4.1): the test scan is patient k's at time 4, three others validate.

    The paper splits by scan, not by patient: a patient's other times stand in training. Which scans validate it does
    not say; here they are the last times of the patients that follow the test patient.

    Raises
    ------
    DatasetError
        If the data set is not that of the challenge: five patients, each with a time 4.
    """
    patients = sorted({scan.patient for scan in scans})
    at_test = {scan.patient: scan for scan in scans if scan.time.zfill(2) == PAPER_TEST_TIME}
    if len(patients) != len(PAPER_FOLD_SLICES) or sorted(at_test) != patients:
        raise DatasetError(
            f"the paper's folds need {len(PAPER_FOLD_SLICES)} patients, each with a time {PAPER_TEST_TIME}; "
            f"found patients {', '.join(patients)}, with that time {', '.join(sorted(at_test)) or 'none'}"
        )
    folds = []
    for index, patient in enumerate(patients):
        test = at_test[patient]
        validation = []
        for step in range(1, PAPER_VALIDATION_SCANS + 1):
            other = patients[(index + step) % len(patients)]
            validation.append(max((scan for scan in scans if scan.patient == other), key=lambda scan: scan.time))
        train = [scan for scan in scans if scan is not test and scan not in validation]
        folds.append({"train": train, "validation": validation, "test": [test]})
    return folds


def patient_folds(scans: Sequence[Scan]) -> list[dict[str, list[Scan]]]:
    """One fold a patient, who is the test; all others train."""
    folds = []
    for patient in sorted({scan.patient for scan in scans}):
        test = [scan for scan in scans if scan.patient == patient]
        folds.append({"train": [scan for scan in scans if scan not in test], "validation": [], "test": test})
    return folds
