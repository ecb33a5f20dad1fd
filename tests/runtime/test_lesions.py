"""Lesions of small masks, counted and measured by hand."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionrt.runtime.lesions import Lesion, find_lesions, label, lesion_table

Mask = NDArray[np.bool_]
MM = np.eye(4)


def mask_of(shape: tuple[int, int, int], *voxels: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def lesions_of(mask: Mask, affine: NDArray[np.float64] = MM, smallest_mm3: float = 0.0) -> list[Lesion]:
    return find_lesions(mask, mask.astype(np.float32), affine, smallest_mm3)[1]


@pytest.mark.parametrize(
    ("second", "count"),
    [
        ((1, 1, 2), 1),  # a shared face
        ((1, 2, 2), 1),  # an edge
        ((2, 2, 2), 1),  # a corner
        ((0, 2, 0), 1),
        ((1, 1, 3), 2),  # a gap of one
        ((3, 2, 2), 2),
    ],
)
def test_voxels_that_touch_even_at_a_corner_are_one_lesion(second: tuple[int, int, int], count: int) -> None:
    mask = mask_of((4, 4, 4), (1, 1, 1), second)
    labels, found = label(mask)
    assert found == count
    assert (labels[1, 1, 1] == labels[second]) == (count == 1)
    assert labels.max() == count
    assert labels[3, 3, 0] == 0


def test_lesions_do_not_wrap_around_the_volume() -> None:
    assert len(lesions_of(mask_of((5, 5, 5), (0, 2, 2), (4, 2, 2)))) == 2


def test_volume_is_in_mm3_also_of_anisotropic_voxels() -> None:
    (lesion,) = lesions_of(mask_of((4, 4, 4), (1, 1, 1), (1, 1, 2), (1, 2, 2)), np.diag([0.5, 0.8, 3.0, 1]))
    assert lesion.voxels == 3
    assert lesion.volume_mm3 == pytest.approx(3 * 0.5 * 0.8 * 3.0)


def test_the_centroid_follows_the_affine() -> None:
    # Axes S, L, P with 3, 1 and 2 mm: i goes up 3 mm, j goes left 1 mm, k goes back 2 mm.
    affine = np.array([[0, -1, 0, 10], [0, 0, -2, 20], [3, 0, 0, -30], [0, 0, 0, 1.0]])
    (lesion,) = lesions_of(mask_of((5, 5, 5), (1, 2, 3), (2, 2, 3), (2, 3, 3), (3, 3, 3)), affine)
    # Mean voxel (2, 2.5, 3).
    assert lesion.centroid_mm == pytest.approx((10 - 2.5, 20 - 6, -30 + 6))
    assert lesion.volume_mm3 == pytest.approx(4 * 6)


def test_the_bounding_box_includes_both_ends() -> None:
    (lesion,) = lesions_of(mask_of((6, 6, 6), (1, 4, 2), (2, 3, 3), (3, 3, 4), (3, 3, 5)))
    assert (lesion.first, lesion.last) == ((1, 3, 2), (3, 4, 5))


def test_mean_probability_is_over_the_lesions_own_voxels() -> None:
    mask = mask_of((1, 1, 5), (0, 0, 0), (0, 0, 1), (0, 0, 4))
    probability = np.array([[[0.5, 1.0, 0.25, 0.25, 0.625]]], np.float32)
    _, (larger, smaller) = find_lesions(mask, probability, MM)
    assert (larger.mean_probability, smaller.mean_probability) == (0.75, 0.625)


def test_the_largest_lesion_comes_first() -> None:
    mask = mask_of((1, 1, 12), (0, 0, 0), *[(0, 0, k) for k in (2, 3, 4)], *[(0, 0, k) for k in (6, 7)], (0, 0, 9))
    found = lesions_of(mask)
    assert [lesion.voxels for lesion in found] == [3, 2, 1, 1]
    assert [lesion.first[2] for lesion in found] == [2, 6, 0, 9]  # equal ones in the order of the voxels


@pytest.mark.parametrize(
    ("smallest_mm3", "left"), [(0, [3, 2, 1]), (2, [3, 2, 1]), (2.01, [3, 2]), (6, [3]), (6.1, [])]
)
def test_lesions_below_the_minimum_are_dropped_from_mask_and_table(smallest_mm3: float, left: list[int]) -> None:
    runs = {1: [0], 2: [2, 3], 3: [5, 6, 7]}  # voxels along k, by size; 2 mm3 each
    mask = mask_of((1, 1, 9), *[(0, 0, k) for run in runs.values() for k in run])
    kept, lesions = find_lesions(mask, mask.astype(np.float32), np.diag([1.0, 1, 2, 1]), smallest_mm3)
    assert [lesion.voxels for lesion in lesions] == left
    np.testing.assert_array_equal(kept, mask_of((1, 1, 9), *[(0, 0, k) for size in left for k in runs[size]]))
    assert kept.dtype == bool


@pytest.mark.parametrize(
    ("sizes", "five_voxels_mm3"),
    [((0.7, 0.7, 3.0), 7.35), ((0.9, 0.9, 0.9), 3.645), ((0.5, 0.5, 1.2), 1.5), ((1.1, 1.1, 1.1), 6.655)],
)
@pytest.mark.parametrize("degrees", [0, 7, 33])
@pytest.mark.parametrize("stored", [np.float64, np.float32])  # NIfTI holds its affine in float32
def test_exactly_the_minimum_is_kept_whatever_the_affines_rounding(
    sizes: tuple[float, float, float], five_voxels_mm3: float, degrees: int, stored: type
) -> None:
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= sizes
    affine = affine.astype(stored).astype(np.float64)
    mask = np.ones((1, 1, 5), bool)
    assert len(lesions_of(mask, affine, five_voxels_mm3)) == 1
    assert len(lesions_of(mask, affine, five_voxels_mm3 * 1.001)) == 0


def test_an_empty_mask_has_no_lesions() -> None:
    mask = np.zeros((3, 4, 5), bool)
    kept, lesions = find_lesions(mask, np.zeros((3, 4, 5), np.float32), MM)
    assert lesions == []
    assert kept.shape == (3, 4, 5)
    assert not kept.any()
    assert lesion_table(lesions).count("\n") == 1  # the column names


def test_a_large_mask_takes_little_more_memory_than_its_labels() -> None:
    mask, probability = np.ones((64, 64, 64), bool), np.ones((64, 64, 64), np.float32)
    find_lesions(mask, probability, np.eye(4))  # what is imported for it does not count
    tracemalloc.start()
    find_lesions(mask, probability, np.eye(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * mask.size  # 4 of a voxel are its label; coordinates would take 24


def test_a_full_mask_is_one_lesion() -> None:
    (lesion,) = lesions_of(np.ones((2, 3, 4), bool))
    assert (lesion.voxels, lesion.first, lesion.last) == (24, (0, 0, 0), (1, 2, 3))
    assert lesion.centroid_mm == (0.5, 1.0, 1.5)


def test_the_table_is_csv_with_units_in_its_column_names() -> None:
    lesions = [
        Lesion(7, 8.4, (-12.346, 3.0, 40.5), (1, 2, 3), (4, 5, 6), 0.87654),
        Lesion(1, 1.2, (0.0, 0.0, 0.0), (9, 9, 9), (9, 9, 9), 0.5),
    ]
    assert lesion_table(lesions) == (
        "lesion,volume_mm3,voxels,centroid_r_mm,centroid_a_mm,centroid_s_mm,"
        "i_first,i_last,j_first,j_last,k_first,k_last,mean_probability,connectivity\n"
        "1,8.400,7,-12.35,3.00,40.50,1,4,2,5,3,6,0.8765,26\n"
        "2,1.200,1,0.00,0.00,0.00,9,9,9,9,9,9,0.5000,26\n"
    )
