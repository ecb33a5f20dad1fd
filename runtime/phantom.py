"""A made-up FLAIR volume with lesions: for demonstrations, tests and self-checks, never for accuracy."""

import numpy as np
import scipy
from numpy.typing import NDArray

from lesionrt.runtime.geometry import resample

SHAPE = (182, 218, 182)  # 1 mm voxels, as large as the usual template
# FLAIR contrast, in arbitrary units.
CSF, WHITE, GREY, LESION = 40.0, 150.0, 185.0, 290.0


def phantom(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A skull-stripped head of 1 mm voxels along R, A, S, background 0, and the mask of its lesions.

    Parameters
    ----------
    shape
        In voxels; the brain fills about four fifths of it.
    seed
        Another seed gives other folds, other lesions and other noise.
    """
    rng = np.random.default_rng(seed)
    right, anterior, superior = np.meshgrid(
        *[np.linspace(-1.2, 1.2, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True
    )
    folds = _smooth_noise(rng, shape, 3.0)
    radius = np.sqrt((right / 0.92) ** 2 + (anterior / 1.0) ** 2 + (superior / 0.95) ** 2)
    brain = radius + 0.02 * folds < 1
    flair = np.where(radius + 0.11 * np.abs(folds) < 0.93, GREY, CSF).astype(np.float32)  # sulci follow the folds
    white = radius + 0.13 * folds < 0.80
    flair[white] = WHITE
    flair[white & (np.abs(right) < 0.012) & (superior > 0.05)] = CSF  # falx

    # Two lateral ventricles, curved backwards, and the third between them.
    side = np.abs(right) - 0.10 - 0.12 * (anterior - 0.1) ** 2
    ventricle = (side / 0.085) ** 2 + ((anterior + 0.02) / 0.48) ** 2 + (
        (superior - 0.10 - 0.1 * anterior**2) / 0.15
    ) ** 2 < 1
    ventricle |= (right / 0.02) ** 2 + (anterior / 0.14) ** 2 + ((superior + 0.1) / 0.16) ** 2 < 1
    deep = ((np.abs(right) - 0.27) / 0.1) ** 2 + ((anterior - 0.12) / 0.24) ** 2 + ((superior + 0.02) / 0.17) ** 2 < 1
    flair[deep & white] = GREY
    flair[ventricle] = CSF

    lesions = _lesions(rng, shape, white & ~ventricle & ~deep, ventricle)
    flair = scipy.ndimage.gaussian_filter(np.where(lesions, LESION, flair), 0.7)
    bias = 1 + 0.12 * (0.6 * right + 0.5 * anterior - 0.4 * superior) + 0.05 * _smooth_noise(rng, shape, 25.0)
    noise = rng.normal(0, 6, shape).astype(np.float32)
    return np.where(brain, np.maximum(flair * bias + noise, 1), 0).astype(np.float32), lesions & brain


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> NDArray[np.float32]:
    """Noise of unit deviation and about `sigma` voxels' smoothness; made coarse and interpolated, which is fast."""
    step = max(1, int(sigma))
    noise: NDArray[np.float32] = scipy.ndimage.gaussian_filter(
        rng.normal(size=[n // step + 2 for n in shape]).astype(np.float32), 1.0
    )
    for axis, length in enumerate(shape):
        noise = resample(noise, axis, step, length, 1.0)
    noise /= noise.std()
    return noise


def _lesions(
    rng: np.random.Generator, shape: tuple[int, int, int], white: NDArray[np.bool_], ventricle: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Ellipsoids in white matter, most of them close to the ventricles, as in multiple sclerosis."""
    coarse = ventricle[::2, ::2, ::2]
    distance = 2 * scipy.ndimage.distance_transform_edt(~coarse) if coarse.any() else np.ones(coarse.shape)
    near, far = (2 * np.argwhere(white[::2, ::2, ::2] & there) for there in (distance < 8, distance > 15))
    lesions = np.zeros(shape, bool)
    for places, count in ((near, 14), (far, 8)):
        for centre in places[rng.integers(0, len(places), count)] if len(places) else ():
            radii = rng.uniform(1.5, 5.0, 3)
            low = np.maximum(0, centre - 6)
            box = tuple(slice(start, stop) for start, stop in zip(low, centre + 7, strict=True))
            index = np.indices(lesions[box].shape).reshape(3, -1).T + low
            inside = (((index - centre) / radii) ** 2).sum(1) < 1
            lesions[box] |= inside.reshape(lesions[box].shape)
    return lesions & white
