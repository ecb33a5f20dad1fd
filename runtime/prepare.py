"""What the network is fed with: a normalised stack of slices around the brain."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from lesionrt.runtime.errors import InputError, VolumeError
from lesionrt.runtime.geometry import ModelGrid
from lesionrt.runtime.volume import Volume

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SLICE_MIN_MAX = "slice-min-max"
BRAIN_QUARTILE_Z = "brain-quartile-z"

# The authors' constants, of a slice scaled to 0..1 (their datasets/MSDataset.py).
OFFICIAL_MEAN = 0.1026
OFFICIAL_STD = 0.0971
# A normal distribution's standard deviation in units of the distance between its median and a quartile.
QUARTILE_TO_STD = 1.4826
QUARTILE_Z_RANGE = (-5.0, 10.0)  # in standard deviations; the lower end is the background
SMALLEST_SIZE = 160  # pixels; the paper's slices (section 3.1)
HALO = 1  # slices that a window reaches beyond its centre


@dataclass(frozen=True)
class Preparation:
    """How a volume becomes the network's input; stored in checkpoint and manifest.

    Parameters
    ----------
    normalisation
        ``slice-min-max``: each slice, from the background 0 to its brightest voxel, to 0..1, then (x - 0.1026) / 0.0971, as the
        paper's authors do.  ``brain-quartile-z``: (x - median) over the volume's brain voxels, in units of 1.4826 times the
        distance to the upper quartile above the median and to the lower quartile below it, clipped to -5..10, background -5.
    axes
        Where the stack, height and width axes point to.
    spacing_mm
        Voxel size of the model's grid.
    smoothing_mm
        Standard deviation of the Gaussian that takes noise and sharpness off the brain first, so that scanners look more
        alike; 0 for none.

    Raises
    ------
    InputError
        If a value is not one of these.
    """

    normalisation: str = BRAIN_QUARTILE_Z
    axes: str = "SRA"
    spacing_mm: float = 1.0
    smoothing_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.normalisation not in [*_NORMALISATIONS]:
            raise InputError(
                f"input preparation: normalisation is {self.normalisation!r}; expected one of {[*_NORMALISATIONS]}"
            )
        if not isinstance(self.axes, str) or sorted(self.axes.translate(str.maketrans("LPI", "RAS"))) != [
            "A",
            "R",
            "S",
        ]:
            raise InputError(f"input preparation: axes is {self.axes!r}; expected three letters such as 'SRA'")
        if self.axes[0] not in "SI":
            raise InputError(
                f"input preparation: axes is {self.axes!r}; the first must point superior or inferior (S or I)"
            )
        if type(self.spacing_mm) not in (int, float) or not 0.1 <= self.spacing_mm <= 10:
            raise InputError(f"input preparation: spacing_mm is {self.spacing_mm!r}; expected 0.1 to 10")
        if type(self.smoothing_mm) not in (int, float) or not 0 <= self.smoothing_mm <= 10:
            raise InputError(f"input preparation: smoothing_mm is {self.smoothing_mm!r}; expected 0 to 10")

    @property
    def region(self) -> str:
        """Over which voxels the normalisation's statistics are taken."""
        return "slice" if self.normalisation == SLICE_MIN_MAX else "brain"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Prepared:
    """A volume as the network sees it.

    Attributes
    ----------
    slices
        (n + 2, 1, H, W) float32: n slices with brain and one neighbour on either side.
    brain
        (n, H, W) bool.
    """

    slices: Array
    brain: Mask
    grid: ModelGrid
    origin: tuple[int, int, int]  # of the padded box on the model's grid; may be negative

    def restore(self, probabilities: Array) -> Array:
        """Probabilities (n, H, W) of the box to the volume's own grid; 0 outside the brain."""
        stack = np.zeros(self.grid.model_shape, np.float32)
        box, grid = self._overlap()
        stack[grid] = np.where(self.brain, probabilities, 0)[box]
        restored = self.grid.to_volume(stack)
        if self.grid.resamples:
            # Weighted as on the way in: what is outside the brain does not dilute the probabilities at its edge.
            stack[grid] = self.brain[box]
            share = self.grid.to_volume(stack)
            np.divide(restored, share, out=restored, where=share > 0)
        return np.clip(restored, 0, 1, out=restored)

    def near_brain(self) -> NDArray[np.intp]:
        """Indices of the slices with brain or with a neighbour that has some; others, as between two pieces, change nothing."""
        some = np.pad(self.brain.any(axis=(1, 2)), 2 * HALO)
        return np.flatnonzero(some[:-2] | some[1:-1] | some[2:])

    def box(self, data: NDArray[np.generic]) -> Array:
        """Another image on the volume's own grid, such as a lesion mask, in the box: (n, H, W), 0 around."""
        values = np.zeros(self.brain.shape, np.float32)
        box, grid = self._overlap()
        values[box] = self.grid.to_model(data)[grid]
        return values

    def _overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of the box that is on the model's grid, and where it lies there."""
        box, grid = [], []
        for start, length, limit in zip(self.origin, self.brain.shape, self.grid.model_shape, strict=True):
            first, last = max(0, start), min(limit, start + length)
            grid.append(slice(first, last))
            box.append(slice(first - start, last - start))
        return tuple(box), tuple(grid)


def prepare(data: Array, brain: Mask, grid: ModelGrid, preparation: Preparation, size_multiple: int) -> Prepared:
    """Orient, resample, cut to the brain's box, pad and normalise.

    Parameters
    ----------
    data
        A FLAIR volume on its own grid.
    brain
        Its brain voxels, at least one.
    grid
        From the volume's grid to the model's.
    preparation
        The model's.
    size_multiple
        What the network's height and width must be multiples of.

    Raises
    ------
    VolumeError
        If no brain is left on the model's grid or all of it has the same value.
    """
    share = grid.to_model(brain)
    inside = share >= 0.5
    if not inside.any():
        raise VolumeError(
            f"the brain vanishes on the model's grid of {grid.spacing_mm:g} mm: it has {int(brain.sum())} voxels; give the mask of a whole brain"
        )
    least, most = (float(of(data, where=brain, initial=start)) for of, start in ((np.min, np.inf), (np.max, -np.inf)))
    if least == most:  # told of the volume's own values: resampling and smoothing leave noise
        raise _no_contrast(least)
    # Weighted by the brain's share of each voxel, so that interpolation does not mix background into its edge.
    stack = grid.to_model(np.where(brain, data, np.float32(0)))
    np.divide(stack, share, out=stack, where=inside)
    stack[~inside] = 0

    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if preparation.smoothing_mm:
        box_of_brain = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
        sigma = (preparation.smoothing_mm / grid.spacing_mm,) * 3
        stack[box_of_brain] = smoothed(stack[box_of_brain], inside[box_of_brain], sigma)
    first, last = int(spans[0][0]), int(spans[0][-1])
    # The volume's first and last slice are their own neighbours.
    order = np.clip(np.arange(first - HALO, last + HALO + 1), 0, len(stack) - 1)
    rows, columns = (slice(int(span[0]), int(span[-1]) + 1) for span in spans[1:])
    pads = [(0, 0), *(_padding(side.stop - side.start, size_multiple) for side in (rows, columns))]
    box = np.pad(stack[order, rows, columns], pads)
    brain_box = np.pad(inside[order, rows, columns], pads)
    slices = _NORMALISATIONS[preparation.normalisation](box, brain_box, stack[inside])
    origin = (first, rows.start - pads[1][0], columns.start - pads[2][0])
    return Prepared(slices[:, None], brain_box[HALO : len(brain_box) - HALO], grid, origin)


def prepare_volume(volume: Volume, brain: Mask, preparation: Preparation, size_multiple: int) -> Prepared:
    """A volume that was read, as a model's network sees it; parameters as :func:`prepare`.

    Raises
    ------
    VolumeError
        Naming the volume.
    """
    grid = ModelGrid(volume.shape, volume.affine, preparation.axes, preparation.spacing_mm)
    try:
        return prepare(volume.data, brain, grid, preparation, size_multiple)
    except VolumeError as error:
        raise VolumeError(f"{volume.name}: {error}") from error


def smoothed(stack: Array, inside: Mask, sigma: tuple[float, float, float]) -> Array:
    """A stack without its noise, of what lies inside a mask alone; 0 outside. `sigma` is in voxels.

    >>> smoothed(np.array([[[0, 4, 4, 0, 4]]], np.float32), np.array([[[False, True, True, False, True]]]), (0, 0, 1))
    array([[[0., 4., 4., 0., 4.]]], dtype=float32)
    """
    share = scipy.ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    level = scipy.ndimage.gaussian_filter(np.where(inside, stack, np.float32(0)), sigma)
    result: Array = np.divide(level, share, out=np.zeros_like(level), where=inside)
    return result


def _padding(length: int, multiple: int) -> tuple[int, int]:
    """Pixels before and after a brain of this length: 160 where it fits, else the next multiple.

    >>> _padding(151, 32), _padding(160, 32), _padding(161, 32)
    ((4, 5), (0, 0), (15, 16))
    """
    size = -(-max(length, SMALLEST_SIZE) // multiple) * multiple
    before = (size - length) // 2
    return before, size - length - before


def slice_min_max(stack: Array, brain: Mask, _: Array) -> Array:
    """Each slice to 0..1 with its background (0) the lowest, then the authors' mean and deviation.

    Their slices are pictures: what is darker than the background is background, and so is a slice without contrast.

    >>> stack = np.array([[[-2, 5], [10, 10]], [[0, 0], [0, 0]]], np.float32)
    >>> (slice_min_max(stack, stack > 0, stack) * OFFICIAL_STD + OFFICIAL_MEAN).round(6)
    array([[[0. , 0.5],
            [1. , 1. ]],
    <BLANKLINE>
           [[0. , 0. ],
            [0. , 0. ]]], dtype=float32)
    """
    positive = np.maximum(stack, 0)
    brightest = positive.max(axis=(1, 2), keepdims=True)
    brightest[brightest == 0] = 1
    result: Array = (positive / brightest - np.float32(OFFICIAL_MEAN)) / np.float32(OFFICIAL_STD)
    return result


def brain_quartile_z(stack: Array, brain: Mask, values: Array) -> Array:
    """Distance from the brain's median in robust standard deviations of its own side, clipped; background at the lower end.

    Each side has a scale of its own, as fluid and atrophy widen the dark one and not the one where lesions are.

    >>> stack = np.array([[[0, 1, 2, 4, 8, 90]]], np.float32)
    >>> brain_quartile_z(stack, stack > 0, stack[stack > 0]).round(3)
    array([[[-5.   , -1.012, -0.674,  0.   ,  0.674, 10.   ]]], dtype=float32)
    """
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).astype(np.float64)
    # A side of which more than half has the median's value has no quartile of its own.
    below, above = (QUARTILE_TO_STD * side or values.std(dtype=np.float64) for side in (median - lower, upper - median))
    if not above:
        raise _no_contrast(float(median))
    low, high = QUARTILE_Z_RANGE
    distance = stack - np.float32(median)
    scaled = np.clip(distance / np.where(distance < 0, np.float32(below), np.float32(above)), low, high)
    return np.where(brain, scaled, np.float32(low))


def _no_contrast(value: float) -> VolumeError:
    return VolumeError(
        f"the brain has no contrast: all its voxels are {value:g}; is this a mask instead of a FLAIR image?"
    )


_NORMALISATIONS = {SLICE_MIN_MAX: slice_min_max, BRAIN_QUARTILE_Z: brain_quartile_z}
