"""A volume's grid to the model's and back, against stacks that were worked out by hand."""

from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionrt.runtime.geometry import ModelGrid, resample

Array = NDArray[np.float32]
Affine = NDArray[np.float64]

# All 48: three axes in any order, each in either direction.
ORIENTATIONS = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]
ANATOMY = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)  # along R, A, S; every value once


def stored(anatomy: Array, codes: str, spacing: tuple[float, float, float] = (1, 1, 1)) -> tuple[Array, Affine]:
    """An array along R, A, S as a file with axes `codes` holds it, and the affine that goes with it.

    `spacing` is along R, A, S in mm; voxel (0, 0, 0) of `anatomy` lies at 0 mm.
    """
    worlds = ["RAS".index(code.translate(str.maketrans("LPI", "RAS"))) for code in codes]
    data, affine = anatomy.transpose(worlds), np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, code) in enumerate(zip(worlds, codes, strict=True)):
        affine[world, axis] = spacing[world]
        if code in "LPI":
            data = np.flip(data, axis)
            affine[world, axis] = -spacing[world]
            affine[world, 3] = (anatomy.shape[world] - 1) * spacing[world]
    return data, affine


def grid_of(data: Array, affine: Affine, axes: str = "SRA") -> ModelGrid:
    x, y, z = data.shape
    return ModelGrid((x, y, z), affine, axes)


def rotation(degrees: float, about: int) -> Affine:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (axis for axis in range(3) if axis != about)
    matrix = np.eye(4)
    matrix[first, first], matrix[first, second], matrix[second, first], matrix[second, second] = c, -s, s, c
    return matrix


def test_every_axis_orientation_is_in_the_list_once() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_any_orientation_gives_the_same_axial_stack_and_comes_back(codes: str) -> None:
    data, affine = stored(ANATOMY, codes)
    grid = grid_of(data, affine)
    stack = grid.to_model(data)
    assert grid.model_shape == (5, 3, 4)
    np.testing.assert_array_equal(stack, ANATOMY.transpose(2, 0, 1))
    restored = grid.to_volume(stack)
    np.testing.assert_array_equal(restored, data)
    assert stack.dtype == restored.dtype == np.float32


def test_lps_voxels_become_an_sra_stack() -> None:
    data = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], np.float32)  # along L, P, S
    grid = ModelGrid((2, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(grid.to_model(data), [[[6, 4], [2, 0]], [[7, 5], [3, 1]]])


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("SRA", ANATOMY.transpose(2, 0, 1)),
        ("SAR", ANATOMY.transpose(2, 1, 0)),
        ("SLA", ANATOMY.transpose(2, 0, 1)[:, ::-1]),
        ("IPL", ANATOMY.transpose(2, 1, 0)[::-1, ::-1, ::-1]),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "PSR", "ILA"])
def test_the_models_axes_are_followed(codes: str, axes: str, expected: Array) -> None:
    data, affine = stored(ANATOMY, codes)
    grid = grid_of(data, affine, axes)
    np.testing.assert_array_equal(grid.to_model(data), expected)
    np.testing.assert_array_equal(grid.to_volume(grid.to_model(data)), data)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRA", "AIL"])
@pytest.mark.parametrize("about", [0, 1, 2])
def test_an_oblique_volume_is_flipped_and_swapped_but_not_interpolated(codes: str, about: int) -> None:
    data, affine = stored(ANATOMY, codes)
    grid = grid_of(data, rotation(20, about) @ affine)
    np.testing.assert_array_equal(grid.to_model(data), ANATOMY.transpose(2, 0, 1))
    np.testing.assert_array_equal(grid.to_volume(grid.to_model(data)), data)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "IPL", "AIR"])
def test_anisotropic_voxels_become_1_mm_along_their_own_axis(codes: str) -> None:
    # Two slices of 2 mm, values 0 and 4, are four of 1 mm at a quarter and three quarters between them.
    anatomy = np.zeros((3, 2, 2), np.float32)
    anatomy[..., 1] = 4
    data, affine = stored(anatomy, codes, (1, 1, 2))
    grid = grid_of(data, affine)
    stack = grid.to_model(data)
    assert stack.shape == grid.model_shape == (4, 3, 2)
    np.testing.assert_allclose(stack, np.broadcast_to(np.array([0, 1, 3, 4])[:, None, None], (4, 3, 2)), atol=1e-6)
    # Back: weights 3/4, 3/4, 1/4 of 1 3/4 around the first slice's centre, and mirrored around the second's.
    back, _ = stored(np.broadcast_to(np.array([6 / 7, 22 / 7], np.float32), (3, 2, 2)), codes)
    np.testing.assert_allclose(grid.to_volume(stack), back, atol=1e-6)


def test_each_axis_has_its_own_spacing() -> None:
    data = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)  # 0.5 mm along R, 2 along A, 3 along S
    assert ModelGrid((4, 3, 2), np.diag([0.5, 2, 3, 1])).to_model(data).shape == (6, 2, 6)


def test_thick_slices_are_averaged_back() -> None:
    # Two slices of 4 mm, 0 and 8: 1 mm slices lie at 1/8, 3/8 ... between their centres, or beyond them.
    grid = ModelGrid((1, 1, 2), np.diag([1.0, 1, 4, 1]))
    stack = grid.to_model(np.array([[[0, 8]]], np.float32))
    np.testing.assert_allclose(stack.ravel(), [0, 0, 1, 3, 5, 7, 8, 8], atol=1e-6)
    # Back: the six 1 mm slices nearest to the first centre weigh 5/8, 7/8, 7/8, 5/8, 3/8, 1/8, together 7/2.
    found = grid.to_volume(np.array([1, 0, 0, 0, 0, 0, 0, 7], np.float32).reshape(8, 1, 1))
    np.testing.assert_allclose(found, [[[5 / 28, 35 / 28]]], atol=1e-6)


@pytest.mark.parametrize("spacing", [0.991, 0.99999, 1.009])
def test_spacing_within_1_percent_is_not_interpolated(spacing: float) -> None:
    data = np.random.default_rng(0).normal(size=(2, 3, 200)).astype(np.float32)  # 200 x 1.009 is nearer to 202
    grid = ModelGrid((2, 3, 200), np.diag([1, spacing, spacing, 1]))
    stack = grid.to_model(data)
    np.testing.assert_array_equal(stack, data.transpose(2, 0, 1))
    np.testing.assert_array_equal(grid.to_volume(stack), data)


@pytest.mark.parametrize(("spacing", "slices"), [(0.98, 98), (1.02, 102)])
def test_spacing_beyond_1_percent_is_interpolated(spacing: float, slices: int) -> None:
    assert ModelGrid((2, 3, 100), np.diag([1, 1, spacing, 1])).model_shape == (slices, 2, 3)


def test_downsampling_does_not_alias() -> None:
    # Stripes of one 0.5 mm voxel have no pattern at 1 mm: grey, and 3/7 and 4/7 at the ends, where a pair weighs less.
    stripes = np.tile(np.array([0, 1], np.float32), 4).reshape(1, 1, 8)
    stack = ModelGrid((1, 1, 8), np.diag([1, 1, 0.5, 1])).to_model(stripes)
    np.testing.assert_allclose(stack.ravel(), [3 / 7, 1 / 2, 1 / 2, 4 / 7], atol=1e-6)


def test_a_volume_thinner_than_one_model_voxel_keeps_one() -> None:
    grid = ModelGrid((2, 2, 2), np.diag([1, 1, 0.2, 1]))
    stack = grid.to_model(np.full((2, 2, 2), 3, np.float32))
    np.testing.assert_allclose(stack, np.full((1, 2, 2), 3), atol=1e-6)
    np.testing.assert_allclose(grid.to_volume(stack), np.full((2, 2, 2), 3), atol=1e-6)


def test_a_mask_becomes_the_share_of_each_model_voxel() -> None:
    mask = np.array([[[True, True, True, False]]])  # 0.5 mm slices; 3 of 4 half weights on the right are inside
    stack = ModelGrid((1, 1, 4), np.diag([1, 1, 0.5, 1])).to_model(mask)
    # Weights 3/4, 3/4, 1/4 of 7/4; the mask covers all of the left, and 1/4 + 3/4 on the right.
    np.testing.assert_allclose(stack.ravel(), [1, 4 / 7], atol=1e-6)


@pytest.mark.parametrize(
    ("data", "axis", "spacing", "length", "new_spacing", "expected"),
    [
        ([5, 1, 2], 0, 1.0, 3, 1.0, [5, 1, 2]),
        ([0, 6], 0, 3.0, 6, 1.0, [0, 0, 2, 4, 6, 6]),
        ([0, 0, 4, 4, 0, 0], 0, 1.0, 3, 2.0, [4 / 7, 3, 4 / 7]),  # weights 3/4, 3/4, 1/4 at the ends
        ([7], 0, 3.0, 3, 1.0, [7, 7, 7]),
        ([2, 2, 2, 2, 2], 0, 1.0, 3, 1.7, [2, 2, 2]),
        ([[0, 4], [8, 0]], 1, 2.0, 4, 1.0, [[0, 1, 3, 4], [8, 6, 2, 0]]),
        ([[0, 4], [8, 0]], 0, 2.0, 4, 1.0, [[0, 4], [2, 3], [6, 1], [8, 0]]),
    ],
    ids=["same", "finer", "coarser", "single", "constant", "second axis", "first axis"],
)
def test_resample(data: object, axis: int, spacing: float, length: int, new_spacing: float, expected: object) -> None:
    found = resample(np.array(data, np.float32), axis, spacing, length, new_spacing)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)
    assert found.dtype == np.float32


def test_beyond_45_degrees_the_nearest_array_axis_is_still_the_slices() -> None:
    # The third array axis points 50 degrees away from superior, the second 40: the second is nearer.
    angle = np.deg2rad(50)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    data = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    grid = ModelGrid((2, 3, 4), affine)
    stack = grid.to_model(data)
    # Slices along +j; then x, and anterior, which -k is nearest to.
    np.testing.assert_array_equal(stack, data.transpose(1, 0, 2)[:, :, ::-1])
    np.testing.assert_array_equal(grid.to_volume(stack), data)
