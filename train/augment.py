"""Slabs of consecutive slices, cut out of few scans so that no two are alike.

All of it happens on prepared slices: quartile z-values whose background is -5 and whose median is 0. An intensity x
of the scanner is taken for ``1 + z / 5`` medians, which is about right on either side, so that the background is dark.

Why not a library: MONAI's transforms of the kinds that it has take 1.2 times as long (`python -m lesionrt.benchmarks.peers`), which would
do, but mix the background into the brain's edge where they interpolate, and know neither slice thickness nor lesions; what would be
left for them is a line each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionrt.runtime.geometry import ModelGrid
from lesionrt.runtime.prepare import QUARTILE_Z_RANGE, Preparation, smoothed
from lesionrt.runtime.volume import read_volume
from lesionrt.train.cache import PreparedScan, start_mm
from lesionrt.train.dataset import LESION_OVER, lesion_voxels

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

BACKGROUND, BRIGHTEST = QUARTILE_Z_RANGE
MEDIAN = -BACKGROUND  # robust deviations between the background and the median
ROTATION_DEG = 25.0
SCALE = 1.25
DEFORMATION_PX, DEFORMATION_KNOTS = 3.0, 5
THICKEST_MM = 5
TRANSPLANT_SHIFT_MM = 8.0
TISSUE_OVER = -1.5  # a lesion is painted where the brain is brighter than fluid
LEAST_OPACITY = 0.6
LEAST_CONTRAST = 1.0  # robust deviations by which a painted lesion is brighter than what it covers
SMALLEST_TRANSPLANT = 3  # voxels
SHARPEST = 1.5  # times what blurring takes away is added
PALEST_LESION = 1.2  # robust deviations: as bright as the brightest grey matter
IN_PLANE = (0.0, 1.5, 1.5)  # pixels over which tissue's level is told from its noise
LESION_GROUND = 0.3  # between white and grey matter: what lesions fade towards


@dataclass(frozen=True)
class Augmentation:
    """What is varied, each in a share of the slabs: 0 for never, 1 for always; `flip` counts for each of the three axes."""

    flip: float = 0.5
    rotate_scale: float = 1.0
    deform: float = 0.5
    bias: float = 0.5
    gamma: float = 0.5
    noise: float = 0.5
    thickness: float = 0.25
    intensity: float = 1.0
    sharpness: float = 0.7
    contrast: float = 0.4
    transplant: float = 0.6


@dataclass(frozen=True)
class Lesions:
    """A patient's lesions without the image: (slices, H, W), and where its first voxel lies along the model's axes."""

    mask: Mask
    start_mm: NDArray[np.float64]


@dataclass(frozen=True)
class Slab:
    """Consecutive slices (n, size, size) float32 and their lesions (n, size, size) bool."""

    slices: Array
    lesions: Mask


def read_lesions(path: Path, preparation: Preparation) -> Lesions:
    """A lesion mask of a patient whose image is not at hand, on the model's grid.

    Raises
    ------
    DatasetError, VolumeError
        If it is no mask, or cannot be read.
    """
    volume = read_volume(path)
    grid = ModelGrid(volume.shape, volume.affine, preparation.axes, preparation.spacing_mm)
    return Lesions(grid.to_model(lesion_voxels(volume)) >= LESION_OVER, start_mm(volume, preparation))


def lesions_of(scan: PreparedScan) -> Lesions:
    """A training scan's lesions, to be painted elsewhere, into the same scan too."""
    return Lesions(scan.lesions, scan.start_mm)


class Centres:
    """Where slabs of a scan are centred: on its lesions, small ones as well, or anywhere in its brain."""

    def __init__(self, scan: PreparedScan) -> None:
        self._brain = np.argwhere(scan.brain)
        self._lesions = np.argwhere(scan.lesions)
        labels, _ = ndimage.label(scan.lesions)
        members = labels[scan.lesions]
        weights = 1 / np.sqrt(np.bincount(members)[members]) if len(members) else np.ones(0)
        self._weights = weights / weights.sum()

    def draw(self, rng: np.random.Generator, on_lesion: bool, jitter: int) -> NDArray[np.intp]:
        """Slice, row and column."""
        if on_lesion and len(self._lesions):
            centre = self._lesions[rng.choice(len(self._lesions), p=self._weights)]
        else:
            centre = self._brain[rng.integers(len(self._brain))]
        return np.asarray(centre) + np.array([0, *rng.integers(-jitter, jitter + 1, 2)])


def cut(
    scan: PreparedScan,
    centre: NDArray[np.intp],
    count: int,
    size: int,
    augmentation: Augmentation,
    donors: Sequence[Lesions],
    rng: np.random.Generator,
) -> Slab:
    """A slab around a place, varied.

    Parameters
    ----------
    scan
        Where it is cut from.
    centre
        Slice, row and column in the scan.
    count, size
        Slices, and pixels of their sides.
    augmentation
        What is varied.
    donors
        Lesions to paint into it, its own among them.
    rng
        Decides everything: the same state gives the same slab.
    """
    margin = THICKEST_MM
    order = np.arange(centre[0] - count // 2 - margin, centre[0] - count // 2 + count + margin)
    inside = np.clip(order, 0, len(scan.slices) - 1)  # the first and last slice repeat, as at the volume's ends
    stack, brain, lesions = scan.slices[inside].astype(np.float32), scan.brain[inside], scan.lesions[inside]
    if donors and rng.random() < augmentation.transplant:
        donor = donors[rng.integers(len(donors))]
        stack, lesions = transplant(stack, brain, lesions, scan, int(order[0]), donor, rng)
    if rng.random() < augmentation.contrast:
        stack = fade(stack, lesions, scan.lesion_z, rng.uniform(min(PALEST_LESION, scan.lesion_z), scan.lesion_z))

    weights = _slice_weights(len(order), margin, count, rng.random() < augmentation.thickness, rng)
    stack, share = _of_brain(stack, brain, lambda values: np.tensordot(weights, values, 1))
    brain, lesions = brain[margin : margin + count] & (share > 0), lesions[margin : margin + count]
    places = _places(centre[1:], size, augmentation, rng)
    if rng.random() < augmentation.flip:
        stack, brain, lesions = stack[::-1], brain[::-1], lesions[::-1]

    slices, share = _of_brain(stack, brain, lambda values: _warp(values, places))
    visible = share >= 0.5
    target = _warp(lesions.astype(np.float32), places) >= LESION_OVER
    slices = _vary_intensity(slices, visible, augmentation, rng)
    return Slab(np.where(visible, np.clip(slices, BACKGROUND, BRIGHTEST), np.float32(BACKGROUND)), target & visible)


def transplant(
    stack: Array,
    brain: Mask,
    lesions: Mask,
    scan: PreparedScan,
    first: int,
    donor: Lesions,
    rng: np.random.Generator,
) -> tuple[Array, Mask]:
    """Paint some of another patient's lesions into healthy tissue, as bright as this scan's own, with soft edges.

    They keep their place in the head, give or take some millimetres. `first` is the scan's slice at the stack's start.
    """
    shift = rng.normal(0, TRANSPLANT_SHIFT_MM / 2, 3)
    start = np.round(scan.start_mm + np.array([first, 0, 0]) - donor.start_mm + shift).astype(int)
    painted = _window(donor.mask, start, stack.shape)
    bright = scan.lesion_z * rng.uniform(0.75, 1.3)
    level = smoothed(stack, brain, IN_PLANE)
    healthy = brain & ~lesions & (level > TISSUE_OVER) & (level < bright - LEAST_CONTRAST)
    labels, found = ndimage.label(painted & healthy)
    if not found:
        return stack, lesions
    kept = rng.random(found + 1) < rng.uniform(0.3, 1)
    kept &= np.bincount(labels.ravel(), minlength=found + 1) >= SMALLEST_TRANSPLANT
    kept[0] = False
    painted = kept[labels]
    softness = ndimage.gaussian_filter(painted.astype(np.float32), rng.uniform(0.4, 0.9))
    softness = np.where(painted, np.maximum(softness, LEAST_OPACITY), softness)  # a small one must not fade away
    # The tissue's own noise stays on the lesion, or a network learns that what is bright and smooth was painted.
    return np.where(brain, stack + softness * np.maximum(bright - level, 0), stack), lesions | painted


def fade(stack: Array, lesions: Mask, bright: float, wanted: float) -> Array:
    """Lesions of another brightness, so that a network cannot go by that of the few scans at hand.

    What exceeds the tissue around is scaled, in the lesions and softly beyond their edges, so that lesions of median `bright`
    get median `wanted`; their noise stays.
    """
    if bright <= LESION_GROUND:
        return stack
    near = ndimage.binary_dilation(lesions, ndimage.generate_binary_structure(3, 1))
    softness = ndimage.gaussian_filter(near.astype(np.float32), 0.7)
    softness[lesions] = 1
    share = (wanted - LESION_GROUND) / (bright - LESION_GROUND)
    level = np.where(lesions, smoothed(stack, lesions, IN_PLANE), stack)
    return np.asarray(stack - softness * np.float32(1 - share) * np.maximum(level - LESION_GROUND, 0), np.float32)


def _window(mask: Mask, start: NDArray[np.int_], shape: tuple[int, ...]) -> Mask:
    """The part of a mask from `start` on, which may lie outside it."""
    window = np.zeros(shape, bool)
    source, target = [], []
    for first, length, limit in zip(start, shape, mask.shape, strict=True):
        low, high = max(0, int(first)), min(limit, int(first) + length)
        if low >= high:
            return window
        source.append(slice(low, high))
        target.append(slice(low - int(first), high - int(first)))
    window[tuple(target)] = mask[tuple(source)]
    return window


def _slice_weights(total: int, margin: int, count: int, thicken: bool, rng: np.random.Generator) -> Array:
    """(count, total): how the slab's slices are made of the scan's, as if those had been thick and interpolated."""
    weights = np.zeros((count, total), np.float32)
    thick = int(rng.integers(2, THICKEST_MM + 1)) if thicken else 1
    phase = rng.uniform(0, thick)
    for row in range(count):
        position = (row + phase) / thick if thick > 1 else row
        below = int(np.floor(position))
        for step, share in ((0, 1 - (position - below)), (1, position - below)):
            centre = margin + (below + step) * thick - (phase if thick > 1 else 0)
            first = round(centre - (thick - 1) / 2)
            weights[row, max(0, first) : first + thick] += share / thick
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _places(centre: NDArray[np.intp], size: int, augmentation: Augmentation, rng: np.random.Generator) -> Array:
    """(2, size, size): where in the scan's slices each pixel of the slab is taken from."""
    line = np.arange(size, dtype=np.float32) - size // 2  # on voxels, so that nothing is interpolated for no reason
    places = np.stack(np.meshgrid(line, line, indexing="ij"))
    if rng.random() < augmentation.rotate_scale:
        angle = np.deg2rad(rng.uniform(-ROTATION_DEG, ROTATION_DEG))
        scales = np.exp(rng.uniform(-np.log(SCALE), np.log(SCALE)) + rng.uniform(-0.05, 0.05, 2))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        places = np.tensordot(turn * scales, places, 1)
    places *= np.where(rng.random(2) < augmentation.flip, -1, 1)[:, None, None]
    if rng.random() < augmentation.deform:
        knots = rng.normal(0, rng.uniform(0, DEFORMATION_PX), (2, DEFORMATION_KNOTS, DEFORMATION_KNOTS))
        places += np.stack([_smooth(field, size) for field in knots])
    return np.asarray(places + centre[:, None, None], np.float32)


def _smooth(field: NDArray[np.float64], size: int) -> Array:
    """A coarse field (k, k) as a smooth one (size, size)."""
    line = np.linspace(0, len(field) - 1, size)
    return np.asarray(
        ndimage.map_coordinates(field, np.meshgrid(line, line, indexing="ij"), order=3, mode="nearest"), np.float32
    )


def _of_brain(stack: Array, brain: Mask, mix: Callable[[Array], Array]) -> tuple[Array, Array]:
    """What `mix` makes of the brain's voxels, as if there were no others, and their share in it; 0 where there are none."""
    share = mix(brain.astype(np.float32))
    mixed = mix(np.where(brain, stack, np.float32(0)))
    return np.divide(mixed, share, out=np.zeros_like(mixed), where=share > 0), share


def _warp(stack: Array, places: Array) -> Array:
    """Each slice of a stack (n, H, W) at the places (2, h, w); 0 outside."""
    return np.stack([ndimage.map_coordinates(image, places, order=1, mode="constant") for image in stack]).astype(
        np.float32, copy=False
    )


def _vary_intensity(slices: Array, brain: Mask, augmentation: Augmentation, rng: np.random.Generator) -> Array:
    if rng.random() < augmentation.bias:
        field = _smooth(rng.normal(0, 0.1, (3, 3)), slices.shape[-1])
        slices = (slices + MEDIAN) * np.exp(field) - MEDIAN
    if rng.random() < augmentation.gamma:
        medians = np.maximum(slices / MEDIAN + 1, 0)
        slices = (medians ** np.float32(np.exp(rng.uniform(-0.3, 0.3))) - 1) * MEDIAN
    if rng.random() < augmentation.intensity:
        slices = slices * np.float32(np.exp(rng.uniform(-0.35, 0.35))) + np.float32(rng.uniform(-0.3, 0.3))
    if rng.random() < augmentation.sharpness:
        sigma = rng.uniform(0.5, 1.2)
        blurred = smoothed(slices, brain, (0, sigma, sigma))
        slices = slices + np.float32(rng.uniform(-1, SHARPEST)) * (slices - blurred)  # -1: blurred
    if rng.random() < augmentation.noise:
        noise = rng.normal(0, rng.uniform(0, 0.6), slices.shape).astype(np.float32)
        slices = slices + noise
    return slices
