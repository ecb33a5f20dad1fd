"""How far two computations of the same probabilities are apart, and whether that is near enough."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.errors import InputError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.lesions import label

Array = NDArray[np.float32]

FLIPPED_ALWAYS = 2.0  # voxels that may flip in a mask of any size: in a small one they are more than any Dice allows


@dataclass(frozen=True)
class Tolerance:
    """Largest differences between probabilities, and between masks where the model is trained.

    Attributes
    ----------
    maximum
        Of the absolute difference; None for no bound.
    percentile
        The 99.9th of the absolute difference.
    dice
        Smallest overlap of the masks, where more than two voxels flip.
    flipped_share
        Largest share of the reference mask's voxels that may flip; two voxels always may.
    """

    maximum: float | None
    percentile: float
    dice: float = 0.999
    flipped_share: float = 0.002

    def replaced(self, **values: float | None) -> "Tolerance":
        """The same with every value that is not None in its place."""
        return Tolerance(**{**asdict(self), **{name: value for name, value in values.items() if value is not None}})


PERCENTILE = 99.9
TOLERANCES = {
    "fp32": Tolerance(maximum=1e-3, percentile=1e-4),
    "tf32": Tolerance(maximum=None, percentile=1e-2),
    "fp16": Tolerance(maximum=None, percentile=1e-2),
    "bf16": Tolerance(maximum=None, percentile=5e-2, dice=0.99, flipped_share=0.02),
}
# On the few slices of an export the maximum itself is bound.
EXPORT_TOLERANCES = {**TOLERANCES, "fp32": Tolerance(maximum=1e-4, percentile=1e-4)}


@dataclass(frozen=True)
class Comparison:
    """Differences between reference and candidate; volumes in ml, counts of 26-connected lesions."""

    shape: tuple[int, ...]
    max_difference: float
    mean_difference: float
    percentile_difference: float
    dice: float
    flipped_voxels: int
    reference_voxels: int
    reference_lesions: int
    candidate_lesions: int
    reference_ml: float
    candidate_ml: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def findings(self, tolerance: Tolerance, masks: bool) -> list[str]:
        """What is out of tolerance; `masks` says whether the masks count (they do not for random weights)."""
        found = []
        if tolerance.maximum is not None and not self.max_difference <= tolerance.maximum:
            found.append(f"maximum difference {self.max_difference:.3g} is over {tolerance.maximum:g}")
        if not self.percentile_difference <= tolerance.percentile:
            found.append(
                f"{PERCENTILE}th percentile difference {self.percentile_difference:.3g} is over {tolerance.percentile:g}"
            )
        if masks:
            if self.flipped_voxels > FLIPPED_ALWAYS and not self.dice >= tolerance.dice:
                found.append(f"mask Dice {self.dice:.5f} is under {tolerance.dice:g}")
            allowed = max(FLIPPED_ALWAYS, tolerance.flipped_share * self.reference_voxels)
            if self.flipped_voxels > allowed:
                found.append(f"{self.flipped_voxels} voxels of the mask flipped, at most {math.floor(allowed)} may")
        return found


def compare(reference: Array, candidate: Array, threshold: float, voxel_mm3: float = 1.0) -> Comparison:
    """Compare probabilities and their masks.

    Parameters
    ----------
    reference, candidate
        (n, H, W) of the same shape.
    threshold
        A voxel is lesion where its probability is over this.

    Raises
    ------
    InputError
        If the shapes differ.

    Examples
    --------
    >>> a = np.array([[[0.2, 0.6, 0.9, 0.1]]], np.float32)
    >>> b = np.array([[[0.2, 0.4, 0.9, 0.1]]], np.float32)
    >>> result = compare(a, b, 0.5)
    >>> round(result.max_difference, 3), round(result.mean_difference, 3), round(result.dice, 3), result.flipped_voxels
    (0.2, 0.05, 0.667, 1)
    """
    if reference.shape != candidate.shape:
        raise InputError(f"probabilities of shape {candidate.shape} were computed; the reference has {reference.shape}")
    difference = np.abs(reference.astype(np.float64) - candidate)
    one, other = reference > threshold, candidate > threshold
    voxels = int(one.sum()), int(other.sum())
    total = sum(voxels)
    return Comparison(
        shape=reference.shape,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        percentile_difference=float(np.percentile(difference, PERCENTILE)),
        dice=2 * int((one & other).sum()) / total if total else 1.0,
        flipped_voxels=int((one ^ other).sum()),
        reference_voxels=voxels[0],
        reference_lesions=label(one)[1],
        candidate_lesions=label(other)[1],
        reference_ml=voxels[0] * voxel_mm3 / 1000,
        candidate_ml=voxels[1] * voxel_mm3 / 1000,
    )


@dataclass(frozen=True)
class Reference:
    """Slices and the PyTorch float32 probabilities for them, with where they come from.

    Attributes
    ----------
    slices
        (n + 2, 1, H, W).
    lesion
        (n, H, W).
    checkpoint_sha256
        Of the checkpoint that computed them.
    source
        What the slices are of.
    """

    slices: Array
    lesion: Array
    checkpoint_sha256: str
    source: str


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference file, atomically; an existing one is replaced."""
    buffer = BytesIO()
    arrays = {field.name: np.asarray(getattr(reference, field.name)) for field in fields(reference)}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically({path: buffer.getvalue()})


def load_reference(path: Path) -> Reference:
    """Read a reference file.

    Raises
    ------
    InputError
        If it is missing, damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {field.name: stored[field.name] for field in fields(Reference)}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise InputError(f"{path}: not a reference file of `lesionrt verify` ({error})") from error
    slices, lesion = arrays["slices"], arrays["lesion"]
    fits = slices.ndim == 4 and slices.shape[1] == 1 and lesion.shape == (slices.shape[0] - 2, *slices.shape[2:])
    if not fits or slices.dtype != np.float32 or lesion.dtype != np.float32 or not lesion.size:
        raise InputError(
            f"{path}: holds slices {slices.shape} and lesion {lesion.shape}; expected (n + 2, 1, H, W) and (n, H, W), float32"
        )
    return Reference(slices, lesion, str(arrays["checkpoint_sha256"]), str(arrays["source"]))


def summary_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons for people: one line each."""
    lines = []
    for row in rows:
        tolerance, result = row["tolerance"], row["comparison"]
        maximum = "" if tolerance["maximum"] is None else f" (at most {tolerance['maximum']:g})"
        dice, flipped = _mask_bounds(row)
        lines.append(
            f"{row['precision']} on {row['backend']} ({row['library']}), {row['what']}: "
            f"maximum difference {result['max_difference']:.2g}{maximum}, "
            f"99.9th percentile {result['percentile_difference']:.2g} (at most {tolerance['percentile']:g}), "
            f"mask Dice {result['dice']:.5f} ({dice}), "
            f"flipped voxels {result['flipped_voxels']} of {result['reference_voxels']} ({flipped})"
        )
    return [*lines, *(f"note: {note}" for note in dict.fromkeys(note for row in rows for note in row["notes"]))]


def report_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons for people: one block each."""
    lines = []
    for row in rows:
        tolerance, result = row["tolerance"], row["comparison"]
        maximum = "no bound" if tolerance["maximum"] is None else f"at most {tolerance['maximum']:g}"
        dice, flipped = _mask_bounds(row)
        verdict = "FAILED" if row["findings"] else "ok"
        lines += [
            f"{row['precision']} on {row['backend']} ({row['library']}, {row['device']}), {row['what']}: {verdict}",
            *(f"  {kind:<20} {row[kind]}" for kind in ("engine", "graph") if row.get(kind)),
            f"  shape                {'x'.join(map(str, result['shape']))}",
            f"  maximum difference   {result['max_difference']:.3g} ({maximum})",
            f"  99.9th percentile    {result['percentile_difference']:.3g} (at most {tolerance['percentile']:g})",
            f"  mean difference      {result['mean_difference']:.3g}",
            f"  mask Dice            {result['dice']:.5f} ({dice})",
            f"  flipped voxels       {result['flipped_voxels']} of {result['reference_voxels']} ({flipped})",
            f"  lesions              {result['reference_lesions']} in the reference, {result['candidate_lesions']} here",
            f"  lesion volume        {result['reference_ml']:.3f} ml in the reference, {result['candidate_ml']:.3f} ml here",
            *(f"  out of tolerance: {finding}" for finding in row["findings"]),
            *(f"  note: {note}" for note in row["notes"]),
        ]
    return lines


def _mask_bounds(row: Mapping[str, Any]) -> tuple[str, str]:
    """What is asked of the masks' Dice and of flipped voxels, in words."""
    if not row["masks_count"]:
        reason = "not judged: an untrained model, or the first of the slices alone"
        return reason, reason
    tolerance = row["tolerance"]
    return (
        f"at least {tolerance['dice']:g} where more than 2 voxels flip",
        f"at most max(2, {tolerance['flipped_share']:.2%})",
    )
