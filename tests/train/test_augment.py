"""Augmentation keeps image and lesions together, and does what its share says."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from lesionrt.train.augment import BACKGROUND, Augmentation, Centres, Lesions, cut, fade, transplant
from lesionrt.train.cache import PreparedScan

NAMES = [field.name for field in fields(Augmentation)]
NONE = Augmentation(**dict.fromkeys(NAMES, 0.0))


@pytest.fixture(scope="module")
def scan() -> PreparedScan:
    """A brain of 0 in a background of -5, with a lesion of 6 in the shape of an L, which no flip maps to itself."""
    brain = np.zeros((16, 64, 64), bool)
    brain[1:-1, 4:-4, 4:-4] = True
    lesions = np.zeros_like(brain)
    lesions[4:12, 20:44, 20:28] = lesions[4:12, 36:44, 20:40] = True
    slices = np.where(brain, np.where(lesions, 6.0, 0.0), BACKGROUND).astype(np.float16)
    return PreparedScan("a_1", "a", slices, brain, lesions, np.zeros(3), 6.0)


def test_shares_of_0_give_the_scans_own_voxels(scan: PreparedScan) -> None:
    slab = cut(scan, np.array([8, 32, 32]), 4, 32, NONE, [], np.random.default_rng(0))
    np.testing.assert_array_equal(slab.slices, scan.slices[6:10, 16:48, 16:48])
    np.testing.assert_array_equal(slab.lesions, scan.lesions[6:10, 16:48, 16:48])


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_image_and_lesions_stay_aligned(scan: PreparedScan, name: str) -> None:
    # Not with faded lesions at once: noise may drown them.
    chosen = Augmentation(contrast=0.0) if name == "all" else Augmentation(**{key: float(key == name) for key in NAMES})
    donor = Lesions(np.roll(scan.lesions, 12, axis=2), np.zeros(3))
    seen = 0
    for seed in range(30):
        slab = cut(scan, np.array([8, 32, 32]), 4, 64, chosen, [donor], np.random.default_rng(seed))
        assert slab.slices.shape == slab.lesions.shape == (4, 64, 64)
        assert slab.slices.dtype == np.float32
        assert np.isfinite(slab.slices).all()
        assert not (slab.lesions & (slab.slices == BACKGROUND)).any()
        tissue = (slab.slices > BACKGROUND) & ~slab.lesions
        if slab.lesions.sum() > 50 and tissue.sum() > 50:
            seen += 1
            # Of values 0 and 6, most of what is marked is bright and most of what is not is dark, however it was varied.
            middle = (np.median(slab.slices[slab.lesions]) + np.median(slab.slices[tissue])) / 2
            assert np.median(slab.slices[slab.lesions]) > np.median(slab.slices[tissue]) + 1
            assert (slab.slices[slab.lesions] > middle).mean() > 0.75
            assert (slab.slices[tissue] < middle).mean() > 0.85
    assert seen > 20


@pytest.mark.parametrize("names", [("flip",), ("rotate_scale",), ("deform",), ("flip", "rotate_scale", "deform")])
def test_image_and_lesions_are_moved_alike_to_the_pixel(names: tuple[str, ...]) -> None:
    lesions = np.zeros((16, 64, 64), bool)
    for number, image in enumerate(lesions):  # an L that moves from slice to slice, so that no flip maps it to itself
        image[20:44, 12 + number : 20 + number] = image[36:44, 12 + number : 32 + number] = True
    image = np.where(lesions, 6, 0).astype(np.float16)
    scan = PreparedScan("a_1", "a", image, np.ones_like(lesions), lesions, np.zeros(3), 6.0)
    chosen = replace(NONE, **dict.fromkeys(names, 0.5 if names == ("flip",) else 1.0))
    for seed in range(10):
        slab = cut(scan, np.array([8, 32, 32]), 4, 64, chosen, [], np.random.default_rng(seed))
        bright = slab.slices > 3
        assert agreement(bright, slab.lesions) >= 0.97
        for axis in range(3):  # as much as one voxel beside it is told
            assert agreement(bright, np.roll(slab.lesions, 1, axis)) < 0.97


def test_thick_slices_stay_where_they_are() -> None:
    ramp = np.broadcast_to(np.arange(24, dtype=np.float16)[:, None, None] / 4, (24, 32, 32))
    lesions = np.zeros(ramp.shape, bool)
    scan = PreparedScan("a_1", "a", ramp, np.ones_like(lesions), lesions, np.zeros(3), 6.0)
    chosen, varied = replace(NONE, thickness=1.0), 0.0
    for seed in range(20):
        slab = cut(scan, np.array([12, 16, 16]), 4, 32, chosen, [], np.random.default_rng(seed))
        off = slab.slices[:, 16, 16] * 4 - np.arange(10, 14)  # the slices that the slab is cut from
        # Half a slice, because slices of whole millimetres begin at whole ones; the thickest are cut at the slab's margin.
        assert np.abs(off).max() < 0.65
        varied = max(varied, float(np.abs(off).max()))
    assert varied > 0.1


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the voxels in either mask that both hold."""
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("name", NAMES)
def test_each_share_changes_some_slab_and_the_seed_decides(scan: PreparedScan, name: str) -> None:
    chosen = Augmentation(**{key: float(key == name) for key in NAMES})
    donor = Lesions(np.roll(scan.lesions, 12, axis=2), np.zeros(3))

    def slabs(augmentation: Augmentation) -> np.ndarray:
        centre = np.array([8, 32, 32])
        return np.stack(
            [cut(scan, centre, 4, 32, augmentation, [donor], np.random.default_rng(seed)).slices for seed in range(12)]
        )

    assert not np.array_equal(slabs(chosen), slabs(NONE))
    assert np.array_equal(slabs(chosen), slabs(chosen))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flip"])  # which counts for three axes
def test_each_is_applied_to_its_share_of_slabs(scan: PreparedScan, name: str) -> None:
    donor = Lesions(np.roll(scan.lesions, 12, axis=2), np.zeros(3))

    def changed(share: float) -> int:
        chosen, centre = replace(NONE, **{name: share}), np.array([8, 32, 32])
        slabs = (cut(scan, centre, 4, 32, chosen, [donor], np.random.default_rng(seed)) for seed in range(60))
        return sum(not np.array_equal(slab.slices, scan.slices[6:10, 16:48, 16:48]) for slab in slabs)

    # Of 60 slabs, of which some that are varied happen to look the same; 4 standard deviations are 14.
    assert abs(changed(0.3) - 0.3 * changed(1.0)) < 14


def test_transplanted_lesions_are_bright_soft_and_only_in_healthy_tissue(scan: PreparedScan) -> None:
    stack = scan.slices.astype(np.float32)
    stack[:, :, 50:] = np.where(scan.brain[:, :, 50:], -4, stack[:, :, 50:])  # fluid
    donor = Lesions(np.zeros(stack.shape, bool), np.zeros(3))
    donor.mask[6:10, 10:60, 42:62] = True
    seen = 0
    for seed in range(10):
        painted, lesions = transplant(stack, scan.brain, scan.lesions, scan, 0, donor, np.random.default_rng(seed))
        new = lesions & ~scan.lesions
        if not new.any():  # a donor's lesion may be left out
            continue
        seen += 1
        assert new.sum() > 100
        assert not (new & (stack < -1.5)).any()  # neither fluid nor background
        assert painted[new].mean() > stack[new].mean() + 2
        assert (painted >= stack).all()
        np.testing.assert_array_equal(painted[~scan.brain], stack[~scan.brain])
        edge = painted[scan.brain & ~lesions & (stack == 0)]
        assert ((edge > 0.1) & (edge < 4)).any()  # soft: the brightness falls off outside the mask
    assert seen > 3


def test_a_transplanted_lesion_keeps_the_tissues_noise(scan: PreparedScan) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, scan.slices.shape).astype(np.float32)
    stack = scan.slices.astype(np.float32) + np.where(scan.brain, noise, 0)
    donor = Lesions(np.zeros(stack.shape, bool), np.zeros(3))
    donor.mask[3:13, 15:50, 44:58] = True
    new = np.zeros_like(scan.brain)
    for seed in range(20):
        painted, lesions = transplant(stack, scan.brain, scan.lesions, scan, 0, donor, np.random.default_rng(seed))
        new = lesions & ~scan.lesions
        if new.any():
            break
    inner = ndimage.binary_erosion(new, np.ones((5, 9, 9)))
    assert inner.sum() > 100
    assert painted[inner].std() == pytest.approx(0.3, rel=0.2)


def test_a_small_transplanted_lesion_does_not_fade_away(scan: PreparedScan) -> None:
    stack = scan.slices.astype(np.float32)
    donor = Lesions(np.zeros(stack.shape, bool), np.zeros(3))
    donor.mask[7:9, 50:53, 50:53] = True
    seen = 0
    for seed in range(20):
        painted, lesions = transplant(stack, scan.brain, scan.lesions, scan, 0, donor, np.random.default_rng(seed))
        new = lesions & ~scan.lesions
        if new.any():
            seen += 1
            # At least 0.75 of the scan's own brightness 6, blended by 0.6 and 0.8.
            assert painted[new].min() >= 0.75 * 6 * 0.6 * 0.8 - 1e-5
    assert seen > 3


def test_faded_lesions_have_the_brightness_that_was_wanted_and_tissue_keeps_its_own(scan: PreparedScan) -> None:
    stack = scan.slices.astype(np.float32)
    stack[8, 10, 50] = 10.0  # something bright in healthy tissue, far from the lesion
    faded = fade(stack, scan.lesions, 6.0, 3.15)
    # Half of what exceeds 0.3: (6 - 0.3) / 2 + 0.3.
    np.testing.assert_allclose(faded[scan.lesions], 3.15, rtol=1e-6)
    np.testing.assert_array_equal(faded[~scan.lesions], stack[~scan.lesions])


def test_a_faded_lesions_blurred_edge_fades_with_it(scan: PreparedScan) -> None:
    stack = scan.slices.astype(np.float32)
    stack[8, 30, 28] = 4.0  # half a lesion, just outside the mask
    edge = fade(stack, scan.lesions, 6.0, 3.15)[8, 30, 28]
    assert 2.15 <= edge < 3.0


def test_centres_favour_small_lesions_and_fall_back_to_the_brain(scan: PreparedScan) -> None:
    lesions = np.zeros_like(scan.lesions)
    lesions[2, 10, 10] = True  # 1 voxel
    lesions[8, 20:40, 20:40] = True  # 400 voxels
    two = PreparedScan("b", "b", scan.slices, scan.brain, lesions, scan.start_mm, 6.0)
    rng = np.random.default_rng(0)
    drawn = np.array([Centres(two).draw(rng, True, 0) for _ in range(400)])
    # Weighted by 1/sqrt(size), the two are drawn as 1 to 20.
    assert 5 <= (drawn[:, 0] == 2).sum() <= 45
    healthy = PreparedScan("c", "c", scan.slices, scan.brain, np.zeros_like(lesions), scan.start_mm, 6.0)
    slice_, row, column = Centres(healthy).draw(rng, True, 0)
    assert scan.brain[slice_, row, column]
