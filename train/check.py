"""What a person should know of a data set before training on it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from lesionrt.runtime.errors import DatasetError, InputError, VolumeError
from lesionrt.runtime.geometry import slice_axis
from lesionrt.runtime.lesions import label
from lesionrt.runtime.volume import Volume, nonzero_brain, read_flair, read_volume, skull_warning
from lesionrt.train.dataset import (
    LESION_OVER,
    PAPER_FOLD_SLICES,
    SPLITS,
    Scan,
    check_same_grid,
    lesion_voxels,
    paper_folds,
    voxels_sha256,
)

PERCENTILES = (1, 50, 99)  # of the brain's intensities
OUTSIDE_MOST_SHARE = 0.01  # of the lesion voxels lie where the image is 0
SHOWN = 5  # values or names in a message


@dataclass
class ScanCheck:
    """What was found in one scan; what could not be read stays None.

    Attributes
    ----------
    shape, voxel_mm, axes
        Of the FLAIR volume's grid; the letters say where its array axes point to.
    intensities
        Over what is not 0: minimum, 1st, 50th and 99th percentile, maximum.
    brain_ml
        Volume of what is not 0.
    lesion_ml, lesions, lesion_slices
        Volume, 26-connected components, and axial slices that hold any.
    errors
        Why the scan cannot be used.
    warnings
        What should be looked at.
    """

    name: str
    patient: str
    time: str
    split: str | None
    flair: str
    mask: str
    shape: tuple[int, ...] | None = None
    voxel_mm: tuple[float, ...] | None = None
    axes: str | None = None
    intensities: tuple[float, ...] | None = None
    brain_ml: float | None = None
    lesion_ml: float | None = None
    lesions: int | None = None
    lesion_slices: int | None = None
    flair_voxels_sha256: str | None = None
    mask_sha256: str | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def grid(self) -> str:
        """Shape, voxel size and axes in one line."""
        if self.shape is None or self.voxel_mm is None:
            return "?"
        sizes = "x".join(f"{size:g}" for size in self.voxel_mm)
        return f"{'x'.join(map(str, self.shape))} at {sizes} mm {self.axes}"


@dataclass(frozen=True)
class DatasetCheck:
    """What was found in a data set.

    Attributes
    ----------
    errors, warnings
        Of the data set as a whole; each scan has its own besides.
    folds
        Slices with lesions in training, validation and test of the paper's folds; None if it is not such a data set.
    """

    dataset: str
    scans: list[ScanCheck]
    errors: list[str]
    warnings: list[str]
    folds: list[tuple[int, int, int]] | None

    def all_errors(self) -> list[str]:
        """Of the data set and of every scan, by name."""
        return [*self.errors, *(f"{scan.name}: {text}" for scan in self.scans for text in scan.errors)]

    def all_warnings(self) -> list[str]:
        """Of the data set and of every scan, by name."""
        return [*self.warnings, *(f"{scan.name}: {text}" for scan in self.scans for text in scan.warnings)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "dataset": self.dataset,
            "usable": not self.all_errors(),
            "scans": [asdict(scan) for scan in self.scans],
            "grids": dict(Counter(scan.grid for scan in self.scans)),
            "errors": self.all_errors(),
            "warnings": self.all_warnings(),
            "lesion_slices_in_paper_folds": None
            if self.folds is None
            else [
                {"here": dict(zip(SPLITS, here, strict=True)), "paper": dict(zip(SPLITS, paper, strict=True))}
                for here, paper in zip(self.folds, PAPER_FOLD_SLICES, strict=True)
            ],
        }


def check_dataset(dataset: Path, scans: Sequence[Scan]) -> DatasetCheck:
    """Read every scan of a data set and look at all of them together."""
    checks = [check_scan(scan) for scan in scans]
    errors = patients_in_two_splits(scans)
    splits = {scan.name: scan.split or "train" for scan in scans}
    errors += [
        f"{' and '.join(names)} are the same image and stand in different splits: take it out of one"
        for names in _users((check.flair_voxels_sha256, check.name) for check in checks)
        if len({splits[name] for name in names}) > 1
    ]
    if all(check.lesions == 0 for check in checks):
        errors.append("no mask holds a lesion: there is nothing to learn")
    return DatasetCheck(str(dataset), checks, errors, _warnings(scans, checks), _folds(scans, checks))


def check_scan(scan: Scan) -> ScanCheck:
    """Read one scan; what is wrong with it is part of the answer."""
    check = ScanCheck(scan.name, scan.patient, scan.time, scan.split, str(scan.flair), str(scan.mask))
    flair = mask = None
    try:
        flair = read_flair(scan.flair)
        _look_at_flair(flair, check)
    except VolumeError as error:
        check.errors.append(str(error))
    try:
        mask = read_volume(scan.mask)
        if flair is not None:
            check_same_grid(mask, flair)
    except (VolumeError, DatasetError) as error:
        check.errors.append(str(error))
    if mask is not None:
        try:
            lesions = lesion_voxels(mask)
        except DatasetError as error:
            check.errors.append(str(error))
            return check
        _look_at_mask(mask, lesions, check)
        if flair is not None and flair.shape == mask.shape:
            _look_at_both(flair, mask, lesions, check)
    return check


def _look_at_flair(flair: Volume, check: ScanCheck) -> None:
    sizes = voxel_sizes(flair.affine)
    values = flair.data[nonzero_brain(flair)]
    check.shape, check.voxel_mm = flair.shape, tuple(sizes.round(4).tolist())
    check.axes = "".join(aff2axcodes(flair.affine))
    middle = np.percentile(values, PERCENTILES).tolist()
    check.intensities = tuple(float(f"{value:.6g}") for value in (values.min(), *middle, values.max()))
    check.brain_ml = round(values.size * float(np.prod(sizes)) / 1000, 1)
    check.flair_voxels_sha256 = voxels_sha256(flair)
    if values.min() == values.max():
        check.errors.append(
            f"{flair.name}: its values are 0 and {values[0]:g} alone: a mask, where an image was expected"
        )
    check.warnings += [*flair.warnings, *filter(None, [skull_warning(flair)])]


def _look_at_mask(mask: Volume, lesions: NDArray[np.bool_], check: ScanCheck) -> None:
    axis = slice_axis(mask.affine)
    voxel_ml = float(np.prod(voxel_sizes(mask.affine))) / 1000
    check.lesion_ml = float(f"{np.count_nonzero(lesions) * voxel_ml:.6g}")
    check.lesions = label(lesions)[1]
    check.lesion_slices = int(np.count_nonzero(lesions.any(axis=tuple({0, 1, 2} - {axis}))))
    check.mask_sha256 = mask.sha256
    if not check.lesions:
        check.warnings.append(f"{mask.name}: the mask is empty: its slices teach what is no lesion, and nothing else")
    other = np.unique(mask.data[(mask.data != 0) & (mask.data != 1)])
    if other.size:
        shown = ", ".join(f"{value:g}" for value in other[:SHOWN]) + ("…" if other.size > SHOWN else "")
        check.warnings.append(
            f"{mask.name}: holds values other than 0 and 1 ({shown}); what is over {LESION_OVER} counts as lesion"
        )


def _look_at_both(flair: Volume, mask: Volume, lesions: NDArray[np.bool_], check: ScanCheck) -> None:
    total = int(np.count_nonzero(lesions))
    outside = int(np.count_nonzero(lesions & ~nonzero_brain(flair)))
    if total and outside > OUTSIDE_MOST_SHARE * total:
        check.warnings.append(
            f"{mask.name}: {outside / total:.0%} of its lesion voxels lie where the image is 0, outside the brain; "
            "look whether the two belong together"
        )


def patients_in_two_splits(scans: Sequence[Scan]) -> list[str]:
    """What is wrong with a table that splits by scan instead of by patient; a scan of no split is trained on."""
    splits: dict[str, set[str]] = {}
    for scan in scans:
        splits.setdefault(scan.patient, set()).add(scan.split or "train")
    return [
        f"patient {patient} stands in {' and '.join(name for name in SPLITS if name in found)}: "
        "the figure would be about a patient that the model knows; put all scans of a patient into one split"
        for patient, found in splits.items()
        if len(found) > 1
    ]


def _warnings(scans: Sequence[Scan], checks: Sequence[ScanCheck]) -> list[str]:
    images = _users((check.flair_voxels_sha256, check.name) for check in checks)
    masks = _users((check.mask_sha256, check.name) for check in checks if check.lesions)  # empty ones may well be equal
    found = [f"{' and '.join(names)} are the same image, voxel for voxel" for names in images]
    found += [
        f"{' and '.join(names)} have the same mask, byte for byte; look whether it belongs to both" for names in masks
    ]
    without = [scan.name for scan in scans if scan.split is None]
    if 0 < len(without) < len(scans):
        found.append(
            f"{len(without)} scans stand in no split, others do: {', '.join(without[:SHOWN])}; they are trained on"
        )
    if len({scan.patient for scan in scans}) == 1:
        found.append("all scans are of one patient: none can be held out")
    return found


def _users(digests: Iterable[tuple[str | None, str]]) -> list[list[str]]:
    """The names that stand with one digest, where there are several."""
    users: dict[str, list[str]] = {}
    for digest, name in digests:
        if digest is not None:
            users.setdefault(digest, []).append(name)
    return [names for names in users.values() if len(names) > 1]


def _folds(scans: Sequence[Scan], checks: Sequence[ScanCheck]) -> list[tuple[int, int, int]] | None:
    slices = {check.name: check.lesion_slices for check in checks if check.lesion_slices is not None}
    try:
        folds = paper_folds(scans)
    except InputError:
        return None
    return fold_slices(folds, slices) if len(slices) == len(scans) else None


def fold_slices(folds: Sequence[Mapping[str, Sequence[Scan]]], slices: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """Slices with lesions in each fold's training, validation and test, of those in each scan by name."""
    counts = [[sum(slices[scan.name] for scan in fold[part]) for part in SPLITS] for fold in folds]
    return [(train, validation, test) for train, validation, test in counts]


def fold_lines(counts: Sequence[tuple[int, int, int]]) -> list[str]:
    """Slices with lesions in the paper's folds, here and in the paper."""
    lines = ["slices with lesions in the paper's folds: train / validation / test"]
    for number, (here, paper) in enumerate(zip(counts, PAPER_FOLD_SLICES, strict=True), 1):
        texts = [" / ".join(map(str, parts)) for parts in (here, paper)]
        lines.append(f"  fold {number}: here {texts[0]}; the paper {texts[1]}")
    return lines


def check_lines(check: DatasetCheck) -> list[str]:
    """The same for people: a table of scans, what they have in common, and what is wrong."""
    head = ("scan", "split", "grid", "intensity 1/50/99 %", "brain ml", "lesion ml", "lesions", "slices with lesions")
    rows = [head, *(_cells(scan) for scan in check.scans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    patients = len({scan.patient for scan in check.scans})
    volumes = [scan.lesion_ml for scan in check.scans if scan.lesion_ml is not None]
    slices = sum(scan.lesion_slices or 0 for scan in check.scans)
    spread = f", {min(volumes):.2f} to {max(volumes):.2f} ml of lesions" if volumes else ""
    lines += ["", f"{len(check.scans)} scans of {patients} patients, {slices} slices with lesions{spread}"]
    lines += [f"  {count} x {grid}" for grid, count in Counter(scan.grid for scan in check.scans).most_common()]
    if check.folds is not None:
        lines += ["", *fold_lines(check.folds)]
    problems = [f"warning: {text}" for text in check.all_warnings()]
    problems += [f"error: {text}" for text in check.all_errors()]
    return [*lines, *([""] if problems else []), *problems]


def _cells(scan: ScanCheck) -> tuple[str, ...]:
    def shown(value: float | None, digits: int) -> str:
        return "?" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    intensities = "?" if scan.intensities is None else " / ".join(f"{value:.4g}" for value in scan.intensities[1:4])
    counts = (shown(scan.lesions, 0), shown(scan.lesion_slices, 0))
    volumes = (shown(scan.brain_ml, 0), shown(scan.lesion_ml, 2))
    return (scan.name, scan.split or "-", scan.grid, intensities, *volumes, *counts)
