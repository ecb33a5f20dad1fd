"""Lesions as connected components of a mask."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

import numpy as np
import scipy
from numpy.typing import NDArray

CONNECTIVITY = 26  # neighbours of a voxel: faces, edges and corners
ROUNDING = 1e-6  # relative, of a voxel's volume: an affine is often stored in single precision


@dataclass(frozen=True)
class Lesion:
    """One connected component.

    Attributes
    ----------
    voxels
        How many.
    volume_mm3
        Their volume.
    centroid_mm
        Mean position, RAS+ millimetres.
    first, last
        Its bounding box in voxel indices, both ends included.
    mean_probability
        Over its voxels.
    """

    voxels: int
    volume_mm3: float
    centroid_mm: tuple[float, float, float]
    first: tuple[int, int, int]
    last: tuple[int, int, int]
    mean_probability: float


def label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 26-connected components of a mask from 1, and count them.

    >>> label(np.eye(3, dtype=bool)[None])[1]  # touching corners are one lesion
    1
    """
    labels = np.empty(mask.shape, np.int32)
    return labels, int(scipy.ndimage.label(mask, np.ones((3, 3, 3)), output=labels))


def find_lesions(
    mask: NDArray[np.bool_], probability: NDArray[np.float32], affine: NDArray[np.float64], smallest_mm3: float = 0.0
) -> tuple[NDArray[np.bool_], list[Lesion]]:
    """The lesions of a mask, largest first, and the mask without those that are too small.

    Parameters
    ----------
    mask, probability
        (X, Y, Z), on the same grid.
    affine
        (4, 4) voxel indices to RAS+ mm.
    smallest_mm3
        Lesions below this volume are dropped.
    """
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    labels, count = label(mask)
    least = smallest_mm3 * (1 - ROUNDING)
    keep = np.zeros(count + 1, bool)
    lesions = []
    # One by one in its box: coordinates of all voxels of a large mask would be most of the memory.
    for n, box in enumerate(scipy.ndimage.find_objects(labels), 1):
        inside = labels[box] == n
        voxels = int(np.count_nonzero(inside))
        keep[n] = voxels * voxel_mm3 >= least
        if not keep[n]:
            continue
        along = [np.count_nonzero(inside, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        mean = [side.start + counts @ np.arange(len(counts)) / voxels for side, counts in zip(box, along, strict=True)]
        centroid = affine[:3, :3] @ mean + affine[:3, 3]
        lesions.append(
            Lesion(
                voxels=voxels,
                volume_mm3=voxels * voxel_mm3,
                centroid_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
                first=(box[0].start, box[1].start, box[2].start),
                last=(box[0].stop - 1, box[1].stop - 1, box[2].stop - 1),
                mean_probability=float(probability[box].mean(dtype=np.float64, where=inside)),
            )
        )
    lesions.sort(key=lambda lesion: -lesion.voxels)
    return mask if keep[1:].all() else keep[labels], lesions


def lesion_table(lesions: Sequence[Lesion]) -> str:
    """One row a lesion, as CSV; units stand in the column names."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    box = [f"{axis}_{end}" for axis in "ijk" for end in ("first", "last")]
    writer.writerow(
        [
            "lesion",
            "volume_mm3",
            "voxels",
            "centroid_r_mm",
            "centroid_a_mm",
            "centroid_s_mm",
            *box,
            "mean_probability",
            "connectivity",
        ]
    )
    for number, lesion in enumerate(lesions, 1):
        ends = [n for pair in zip(lesion.first, lesion.last, strict=True) for n in pair]
        centroid = [f"{mm:.2f}" for mm in lesion.centroid_mm]
        writer.writerow(
            [
                number,
                f"{lesion.volume_mm3:.3f}",
                lesion.voxels,
                *centroid,
                *ends,
                f"{lesion.mean_probability:.4f}",
                CONNECTIVITY,
            ]
        )
    return text.getvalue()
