"""What the network sees of a volume, and where its answer goes, on arrays worked out by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from lesionrt.runtime.errors import InputError, VolumeError
from lesionrt.runtime.geometry import ModelGrid
from lesionrt.runtime.prepare import (
    BRAIN_QUARTILE_Z,
    SLICE_MIN_MAX,
    Preparation,
    Prepared,
    brain_quartile_z,
    prepare,
    prepare_volume,
    slice_min_max,
    smoothed,
)
from lesionrt.runtime.volume import read_volume

Array = NDArray[np.float32]
BLACK = (0 - 0.1026) / 0.0971  # of the authors' scaling
WHITE = (1 - 0.1026) / 0.0971


def prepared(data: Array, normalisation: str = BRAIN_QUARTILE_Z, multiple: int = 32, spacing: float = 1.0) -> Prepared:
    """A volume along R, A, S whose brain is where it is not 0."""
    x, y, z = data.shape
    grid = ModelGrid((x, y, z), np.diag([spacing, spacing, spacing, 1]))
    return prepare(data, data != 0, grid, Preparation(normalisation), multiple)


def brain_like(*shape: int) -> Array:
    """Brain everywhere, with contrast."""
    return np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


def test_smoothing_spreads_a_voxel_along_all_axes_and_keeps_the_sum() -> None:
    stack, inside = np.zeros((9, 9, 9), np.float32), np.ones((9, 9, 9), bool)
    stack[4, 4, 4] = 1.0
    found = smoothed(stack, inside, (0.9, 0.9, 0.9))
    # A Gaussian of 0.9 voxels: weights in proportion to exp(-x^2 / 1.62), 1 : 0.5394 : 0.0846 : 0.0039.
    one = 1 / (1 + 2 * (0.5394 + 0.0846 + 0.0039))
    assert found[4, 4, 4] == pytest.approx(one**3, rel=1e-3)
    assert found[4, 5, 4] == found[5, 4, 4] == found[4, 4, 5] == pytest.approx(0.5394 * one**3, rel=1e-3)
    assert found.sum() == pytest.approx(1.0, rel=1e-3)


def test_smoothing_does_not_darken_the_brains_edge() -> None:
    inside = np.zeros((6, 8, 8), bool)
    inside[1:5, 2:6, 3:7] = True
    found = smoothed(np.where(inside, np.float32(7), 0), inside, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(found[inside], 7, rtol=1e-6)
    assert not found[~inside].any()


def test_noise_is_smoothed_before_it_is_measured_against() -> None:
    data = np.random.default_rng(0).normal(100, 10, (24, 24, 24)).astype(np.float32)
    grid = ModelGrid(data.shape, np.eye(4))
    plain, smooth = (prepare(data, data != 0, grid, Preparation(smoothing_mm=mm), 32).slices for mm in (0.0, 0.9))
    inside = plain > -5
    for slices in (plain, smooth):  # both in their own robust deviations
        assert slices[inside].std() == pytest.approx(1, rel=0.05)
    neighbours = np.corrcoef(smooth[5:15, 0, 70:90, 70:89].ravel(), smooth[5:15, 0, 70:90, 71:90].ravel())[0, 1]
    assert neighbours == pytest.approx(np.exp(-1 / (4 * 0.9**2)), abs=0.05)  # of white noise under that Gaussian


def test_slice_min_max_scales_each_slice_to_its_own_brightest_voxel() -> None:
    stack = np.array([[[0, 50, 100, 200]], [[0, 1, 2, 4]]], np.float32)
    expected = [[[BLACK, (0.25 - 0.1026) / 0.0971, (0.5 - 0.1026) / 0.0971, WHITE]]] * 2
    np.testing.assert_allclose(slice_min_max(stack, stack > 0, stack[stack > 0]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 7, 7, 7], [BLACK, WHITE, WHITE, WHITE]),  # a constant brain on background
        ([0, 0, 0, 0], [BLACK] * 4),
        ([-3, -3, -1, 0], [BLACK] * 4),  # nothing brighter than the background
        ([-9, 0, 2, 4], [BLACK, BLACK, (0.5 - 0.1026) / 0.0971, WHITE]),
    ],
)
def test_slice_min_max_of_a_slice_without_contrast_is_finite(values: list[float], expected: list[float]) -> None:
    stack = np.array([[values]], np.float32)
    np.testing.assert_allclose(slice_min_max(stack, stack != 0, stack[stack != 0]), [[expected]], rtol=1e-5)


def test_quartile_z_is_the_distance_from_the_brains_median_by_the_quartile_of_its_own_side() -> None:
    # Median 3, lower quartile 2, upper quartile 5: one deviation is 1.4826 below and 2 x 1.4826 above.
    stack = np.array([[[0, 1, 2], [3, 5, 90]]], np.float32)
    expected = [[[-5, -2 / 1.4826, -1 / 1.4826], [0, 1 / 1.4826, 10]]]
    np.testing.assert_allclose(brain_quartile_z(stack, stack > 0, stack[stack > 0]), expected, rtol=1e-5)


def test_quartile_z_falls_back_on_the_standard_deviation() -> None:
    # The upper quartile is the median; the mean is 6 and the deviation sqrt((4x1 + 16) / 5) = 2.
    stack = np.array([[[5, 5, 5, 5, 10, 0]]], np.float32)
    found = brain_quartile_z(stack, stack > 0, stack[stack > 0])
    np.testing.assert_allclose(found, [[[0, 0, 0, 0, 2.5, -5]]], rtol=1e-5)


def test_quartile_z_takes_its_statistics_over_the_whole_brain() -> None:
    data = np.zeros((3, 1, 2), np.float32)
    data[:, 0, 0], data[:, 0, 1] = (1, 2, 3), (4, 5, 90)  # median 3.5, quartiles 2.25 and 4.75
    centre = prepared(data).slices[1:-1, 0, 78:81, 79]  # 3 and 1 pixels in the middle of 160
    expected = np.array([[-2.5, -1.5, -0.5], [0.5, 1.5, 12.5 * 1.4826]]) / (1.25 * 1.4826)
    np.testing.assert_allclose(centre, expected, rtol=1e-5)


@pytest.mark.parametrize(("value", "voxel_mm"), [(1, 1.0), (255, 1.0), (7, 0.9)])
def test_a_brain_without_contrast_is_an_error_that_names_the_volume(
    tmp_path: Path, value: int, voxel_mm: float
) -> None:
    """Also where resampling and smoothing leave it noise."""
    data = np.zeros((60, 60, 60), np.float32)
    data[10:50, 10:50, 10:50] = value
    nib.save(nib.Nifti1Image(data, np.diag([voxel_mm, voxel_mm, voxel_mm, 1])), tmp_path / "mask.nii.gz")
    volume = read_volume(tmp_path / "mask.nii.gz")
    with pytest.raises(VolumeError, match=rf"mask\.nii\.gz: the brain has no contrast.* {value}; is this a mask"):
        prepare_volume(volume, volume.data != 0, Preparation(BRAIN_QUARTILE_Z, smoothing_mm=0.9), 32)


def test_slices_without_brain_between_two_pieces_are_named() -> None:
    data = np.zeros((2, 2, 9), np.float32)
    data[:, :, [1, 6, 7]] = np.arange(1, 13).reshape(2, 2, 3)  # the box begins at 1, with 0 as its neighbour
    assert prepared(data).near_brain().tolist() == [0, 1, 2, 5, 6, 7, 8]


def test_a_brain_that_vanishes_on_the_models_grid_is_an_error() -> None:
    data = np.zeros((20, 20, 20), np.float32)
    data[10, 10, 10] = 1
    with pytest.raises(VolumeError, match=r"the brain vanishes on the model's grid of 1 mm: it has 1 voxels"):
        prepared(data, spacing=0.3)


@pytest.mark.parametrize(
    ("height", "width", "multiple", "expected"),
    [
        (3, 5, 32, (160, 160)),
        (160, 160, 32, (160, 160)),
        (161, 160, 32, (192, 160)),
        (150, 193, 32, (160, 224)),
        (161, 165, 4, (164, 168)),
        (20, 20, 64, (192, 192)),
    ],
)
def test_the_box_is_160_where_the_brain_fits_and_a_multiple_beyond(
    height: int, width: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert prepared(brain_like(height, width, 2), multiple=multiple).slices.shape == (4, 1, *expected)


def test_no_tissue_is_cut_off_a_large_brain() -> None:
    data = np.zeros((190, 180, 6), np.float32)
    data[5:175, 2:167, 1:5] = brain_like(170, 165, 4)
    found = prepared(data, SLICE_MIN_MAX)
    assert found.slices.shape == (6, 1, 192, 192)
    assert found.origin == (1, 5 - 11, 2 - 13)
    assert found.brain.sum() == 170 * 165 * 4
    restored = found.restore(np.ones(found.brain.shape, np.float32))
    np.testing.assert_array_equal(restored, data != 0)


@pytest.mark.parametrize(("normalisation", "background"), [(SLICE_MIN_MAX, BLACK), (BRAIN_QUARTILE_Z, -5)])
def test_everything_outside_the_brain_has_the_backgrounds_value(normalisation: str, background: float) -> None:
    data = brain_like(6, 6, 3)
    data[2, 3, 1] = 0  # a hole inside
    slices = prepared(data, normalisation).slices[:, 0]
    outside = np.ones(slices.shape, bool)
    outside[:, 77:83, 77:83] = False
    outside[2, 77 + 2, 77 + 3] = True  # slice 1 comes after the neighbour in front
    np.testing.assert_allclose(slices[outside], background, rtol=1e-5)
    assert (slices[~outside] > background).all()


def test_slices_without_brain_are_skipped() -> None:
    data = np.zeros((4, 4, 9), np.float32)
    data[..., 3:5] = brain_like(4, 4, 2)
    found = prepared(data)
    assert found.slices.shape == (4, 1, 160, 160)  # two, and a neighbour on either side
    assert found.origin[0] == 3
    assert (found.slices[[0, -1]] == -5).all()  # the neighbours hold no brain


def test_the_first_and_last_slice_are_their_own_neighbours() -> None:
    data = brain_like(4, 4, 3)
    slices = prepared(data).slices
    assert len(slices) == 5
    np.testing.assert_array_equal(slices[0], slices[1])
    np.testing.assert_array_equal(slices[-1], slices[-2])
    assert (slices[1] != slices[2]).any()


def test_a_neighbour_is_the_slice_beside_it_even_where_brain_ends() -> None:
    data = np.zeros((4, 4, 5), np.float32)
    data[..., 1:5] = brain_like(4, 4, 4)  # brain reaches the last slice, not the first
    slices = prepared(data).slices
    assert (slices[0] == -5).all()
    np.testing.assert_array_equal(slices[-1], slices[-2])


def test_interpolation_does_not_darken_the_brains_edge() -> None:
    data = np.zeros((6, 6, 6), np.float32)
    data[2:4, 2:4, 2:4] = 10
    data[2, 2, 2] = 9.99  # a brain without any contrast is refused
    found = prepared(data, SLICE_MIN_MAX, spacing=2.0)
    values = found.slices[1:-1, 0][found.brain]
    assert len(values) == 4 * 4 * 4 - 8  # 3/4 of the way to the background on three axes, a corner is 27/64 brain
    np.testing.assert_allclose(values, WHITE, rtol=5e-3)


def test_restore_puts_values_back_and_0_elsewhere() -> None:
    data = np.zeros((5, 6, 7), np.float32)
    data[1:3, 2:5, 3:5] = brain_like(2, 3, 2)
    data[1, 2, 3] = 0
    found = prepared(data)
    answer = np.full(found.brain.shape, 0.9, np.float32)  # also where there is no brain
    # The 2 x 3 box lies behind 79 of 158 rows and 78 of 157 columns of padding.
    answer[:, 79:81, 78:81] = np.arange(1, 13).reshape(2, 2, 3) / 16
    expected = np.zeros((5, 6, 7))
    expected[1:3, 2:5, 3] = np.arange(1, 7).reshape(2, 3) / 16
    expected[1:3, 2:5, 4] = np.arange(7, 13).reshape(2, 3) / 16
    expected[1, 2, 3] = 0
    np.testing.assert_array_equal(found.restore(answer), expected)


def test_restored_values_stay_probabilities() -> None:
    found = prepared(brain_like(5, 5, 5), spacing=1.7)
    restored = found.restore(np.ones(found.brain.shape, np.float32))
    assert restored.max() <= 1
    np.testing.assert_allclose(restored, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("normalisation", value) for value in ("zscore", "", None, 1, ["slice-min-max"])),
        *(("axes", value) for value in ("RAS", "ARS", "SR", "SRAA", "SRR", "SRL", "XYZ", "sra", "", 5, None)),
        *(("spacing_mm", value) for value in (0, -1, 0.05, 11, float("nan"), float("inf"), "1", None, True)),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"input preparation: {field} is .*(expected|must)"):
        Preparation(**{field: value})  # type: ignore[arg-type]


def test_a_preparation_survives_as_plain_values() -> None:
    preparation = Preparation(SLICE_MIN_MAX, "IPL", 0.9, 0.5)
    values = {"normalisation": "slice-min-max", "axes": "IPL", "spacing_mm": 0.9, "smoothing_mm": 0.5}
    assert preparation.as_dict() == values
    assert Preparation(**preparation.as_dict()) == preparation
    assert (preparation.region, Preparation(BRAIN_QUARTILE_Z).region) == ("slice", "brain")


def test_the_brains_edge_is_not_diluted_where_voxels_are_smaller_than_the_models() -> None:
    i = np.indices((40, 40, 40)) - 19.5
    brain = (i**2).sum(axis=0) < 16**2  # a ball of 8 mm radius
    grid = ModelGrid((40, 40, 40), np.diag([0.5, 0.5, 0.5, 1.0]))
    prepared = prepare(np.where(brain, 1 + i[0] % 3, 0).astype(np.float32), brain, grid, Preparation(), 32)
    restored = prepared.restore(np.ones(prepared.brain.shape, np.float32))
    found = restored[brain]
    np.testing.assert_allclose(found[found > 0], 1, atol=1e-5)
    assert (found > 0).mean() > 0.99
