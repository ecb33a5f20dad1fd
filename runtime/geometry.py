"""From a volume's own grid to the model's and back."""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray

SPACING_TOLERANCE = 0.01  # relative; a spacing this close to the model's is not interpolated
Array = NDArray[np.float32]
Orientation = NDArray[np.float64]  # nibabel's: (3, 2), target axis and flip of each axis


@dataclass(frozen=True)
class ModelGrid:
    """How one volume's voxels become the model's stack of axial slices, and back.

    The array's axes are flipped and swapped to the model's; an axis whose spacing is not the model's is
    resampled.  Obliquity is not: a slice is one along the array axis nearest to inferior-superior.

    Parameters
    ----------
    shape
        Of the volume, in voxels.
    affine
        (4, 4), voxel indices to RAS+ mm, without shear.
    axes
        Where the model's stack, height and width axes point to, such as ``SRA``.
    spacing_mm
        The model's voxel size.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    axes: str = "SRA"
    spacing_mm: float = 1.0

    def to_model(self, data: NDArray[np.generic]) -> Array:
        """Values on the volume's grid to (slices, H, W) on the model's, as float32."""
        stack: Array = apply_orientation(data, self._forward).astype(np.float32, copy=False)
        for axis, (length, spacing) in enumerate(zip(self.model_shape, self._spacings, strict=True)):
            stack = resample(stack, axis, spacing, length, self.spacing_mm)
        return stack

    def to_volume(self, stack: Array) -> Array:
        """Values (slices, H, W) on the model's grid to the volume's, as float32."""
        for axis, (length, spacing) in enumerate(zip(self._oriented_shape, self._spacings, strict=True)):
            stack = resample(stack, axis, self.spacing_mm, length, spacing)
        # Not the forward transform again: that is wrong for 28 of the 48 axis orientations.
        return np.ascontiguousarray(apply_orientation(stack, ornt_transform(self._model, orientation(self.affine))))

    @property
    def shift_mm(self) -> NDArray[np.float64]:
        """How far behind the volume's first voxel the model's lies along the model's axes: they share their centre."""
        ends = zip(self._oriented_shape, self._spacings, self.model_shape, strict=True)
        return np.array([((old - 1) * size - (new - 1) * self.spacing_mm) / 2 for old, size, new in ends])

    @property
    def resamples(self) -> bool:
        """Whether any axis is interpolated."""
        return any(spacing != self.spacing_mm for spacing in self._spacings)

    @property
    def model_shape(self) -> tuple[int, int, int]:
        """(slices, H, W) on the model's grid."""
        slices, height, width = (
            max(1, round(length * spacing / self.spacing_mm))
            for length, spacing in zip(self._oriented_shape, self._spacings, strict=True)
        )
        return slices, height, width

    @property
    def _model(self) -> Orientation:
        model: Orientation = axcodes2ornt(tuple(self.axes))
        return model

    @property
    def _forward(self) -> Orientation:
        forward: Orientation = ornt_transform(orientation(self.affine), self._model)
        return forward

    @property
    def _order(self) -> list[int]:
        """Which of the volume's axes is the model's first, second and third."""
        return [int(axis) for axis in np.argsort(self._forward[:, 0])]

    @property
    def _oriented_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self._order)

    @property
    def _spacings(self) -> list[float]:
        """Millimetres between voxels along the model's axes, the model's own where they are close to it."""
        sizes = voxel_sizes(self.affine)[self._order]
        return [
            self.spacing_mm if abs(size / self.spacing_mm - 1) <= SPACING_TOLERANCE else float(size) for size in sizes
        ]


def orientation(affine: NDArray[np.float64]) -> Orientation:
    """Of a volume's axes. Slices first: the axis nearest to inferior-superior, then the better pairing of the other two."""
    cosines = affine[:3, :3] / voxel_sizes(affine)  # (world axis, array axis)
    slices = slice_axis(affine)
    one, two = (axis for axis in range(3) if axis != slices)
    straight, crossed = (abs(cosines[0, a]) + abs(cosines[1, b]) for a, b in ((one, two), (two, one)))
    across, along = (one, two) if straight >= crossed else (two, one)
    own = np.empty((3, 2))
    for world, axis in enumerate((across, along, slices)):
        own[axis] = world, 1 if cosines[world, axis] >= 0 else -1
    return own


def slice_axis(affine: NDArray[np.float64]) -> int:
    """The array axis nearest to inferior-superior, along which axial slices are counted.

    >>> slice_axis(np.diag([1.0, 1.0, 3.0, 1.0]))
    2
    """
    return int(np.abs(affine[2, :3] / voxel_sizes(affine)).argmax())


def resample(data: Array, axis: int, spacing: float, length: int, new_spacing: float) -> Array:
    """Linear resampling along one axis about its centre, smoothed first where it becomes coarser.

    The kernel is a triangle as wide as the coarser of the two spacings, so that going down averages and
    nothing aliases; its weights are normalised at the edges.

    Parameters
    ----------
    data
        Any shape, float32.
    axis
        The axis to resample.
    spacing, new_spacing
        Millimetres between samples before and after.
    length
        Samples after.

    Examples
    --------
    >>> resample(np.array([0, 2, 4, 6], np.float32), 0, 2.0, 8, 1.0)
    array([0. , 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6. ], dtype=float32)
    >>> resample(np.array([0, 0, 4, 4, 0, 0], np.float32), 0, 1.0, 3, 2.0)
    array([0.5714286, 3.       , 0.5714286], dtype=float32)
    """
    old = data.shape[axis]
    if spacing == new_spacing and old == length:
        return data
    position = (np.arange(length) - (length - 1) / 2) * new_spacing  # mm from the centre
    sample = (np.arange(old) - (old - 1) / 2) * spacing
    nearest = np.clip(position, sample[0], sample[-1])  # beyond the ends the last value holds
    weight = np.maximum(0.0, 1.0 - np.abs(nearest[:, None] - sample[None, :]) / max(spacing, new_spacing))
    weight /= weight.sum(1, keepdims=True)
    return np.ascontiguousarray(np.moveaxis(np.tensordot(weight.astype(np.float32), data, (1, axis)), 0, axis))
