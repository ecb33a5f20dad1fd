"""Axial slices of a head for pictures: seen from the feet, cut to the tissue, in grey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray

from lesionrt.runtime.geometry import orientation
from lesionrt.runtime.volume import Volume

WINDOW = (1, 99.5)  # percentiles of the tissue that become black and white


@dataclass(frozen=True)
class View:
    """A FLAIR volume as its pictures show it: array axes L, P and S, so that the patient's left is on the right.

    Attributes
    ----------
    image
        (L, P, S) cut to the tissue.
    black, contrast
        The intensity that becomes black, and how much more becomes white.
    spacing
        (3,) mm along L, P and S.
    axes
        (3,) which of the volume's axes these are.
    cut
        Turns and cuts any other array on the volume's grid alike.
    """

    image: NDArray[np.float32]
    black: float
    contrast: float
    spacing: NDArray[np.float64]
    axes: NDArray[np.intp]
    cut: Callable[[NDArray[Any]], NDArray[Any]]

    def grey(self, k: int) -> NDArray[np.float32]:
        """A slice (L, P), 0 to 1; what is 0 in the image stays black."""
        pixels = self.image[:, :, k]
        grey: NDArray[np.float32] = np.clip((pixels - self.black) / self.contrast, 0, 1)
        grey[pixels == 0] = 0
        return grey

    def tile_size(self, pixels: int) -> tuple[int, int]:
        """Width and height of a slice whose longer side has so many pixels."""
        extent = np.array(self.image.shape[:2]) * self.spacing[:2]
        width, height = (max(1, int(n)) for n in np.round(extent / extent.max() * pixels))
        return width, height

    def choose(self, lesions: NDArray[np.bool_], count: int) -> list[int]:
        """Slices spread over those with lesions (L, P, S), the fullest of each part; over the tissue if there are none."""
        area = lesions.sum(axis=(0, 1))
        if area.any():
            parts = np.array_split(np.flatnonzero(area), count)
            return [int(part[area[part].argmax()]) for part in parts if len(part)]
        parts = np.array_split(np.flatnonzero(self.image.any(axis=(0, 1))), count)
        return [int(part[len(part) // 2]) for part in parts if len(part)]


def view(flair: Volume, room_mm: float) -> View:
    """Look at a volume, with so much room around the tissue."""
    turn = ornt_transform(orientation(flair.affine), axcodes2ornt(("L", "P", "S")))
    axes = np.argsort(turn[:, 0])
    spacing = voxel_sizes(flair.affine)[axes]
    image: NDArray[np.float32] = apply_orientation(flair.data, turn)
    tissue = image != 0
    box = (_span(tissue.any(axis=(1, 2)), spacing[0], room_mm), _span(tissue.any(axis=(0, 2)), spacing[1], room_mm))
    low, high = (float(value) for value in np.percentile(image[tissue], WINDOW))
    contrast = max(high - low, float(np.finfo(np.float32).tiny))
    return View(image[box], low, contrast, spacing, axes, lambda data: apply_orientation(data, turn)[box])


def _span(tissue: NDArray[np.bool_], spacing: float, room_mm: float) -> slice:
    """Where the tissue is along an axis, with room at its sides."""
    where = np.flatnonzero(tissue)
    room = round(room_mm / spacing)
    return slice(max(0, int(where[0]) - room), int(where[-1]) + room + 1)
