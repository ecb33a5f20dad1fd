"""The measures of agreement between two masks, on arrays worked out by hand and against an independent library."""

import math

import numpy as np
import pytest

from lesionrt.runtime.errors import InputError
from lesionrt.runtime.metrics import (
    MEASURES,
    Agreement,
    Confusion,
    Detection,
    agreement,
    confusion,
    confusion_in_lesion_slices,
    correlation,
    detection,
    relative_volume_difference,
    summarise,
    surface_distance,
)

# The paper's Table 2: Dice, sensitivity, specificity, IoU, extra fraction, PPV, NPV, accuracy of a fold.
PAPER_FOLD_1 = (0.8448, 0.8601, 0.9983, 0.7314, 0.0016, 0.8301, 0.9987, 0.9971)


def mask(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = (5, 5, 5)) -> np.ndarray:
    result = np.zeros(shape, bool)
    for voxel in voxels:
        result[voxel] = True
    return result


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of several lesions each that agree in part."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(22, 26, 18)), 1.5)
    other = noise + 0.6 * ndimage.gaussian_filter(rng.normal(size=noise.shape), 1.5)
    inside = np.pad(np.ones([n - 2 for n in noise.shape], bool), 1)  # the libraries differ at an image's edge
    return inside & (noise > np.quantile(noise, 0.9)), inside & (other > np.quantile(other, 0.88))


def test_the_eight_measures_of_a_table_worked_out_by_hand() -> None:
    reference = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    prediction = np.array([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]], bool)
    found = confusion(reference, prediction)
    assert found == Confusion(tp=2, fp=2, fn=1, tn=5)
    assert found.measures() == pytest.approx(
        {
            "dice": 4 / 7,
            "sensitivity": 2 / 3,
            "specificity": 5 / 7,
            "iou": 2 / 5,
            "extra_fraction": 2 / 6,
            "ppv": 2 / 4,
            "npv": 5 / 6,
            "accuracy": 7 / 10,
        }
    )
    assert tuple(found.measures()) == MEASURES


def test_the_formulas_reproduce_a_row_of_the_paper() -> None:
    # 70 slices of 160x160; the counts follow from sensitivity, PPV and specificity.
    voxels = 70 * 160 * 160
    sensitivity, ppv, specificity = PAPER_FOLD_1[1], PAPER_FOLD_1[5], PAPER_FOLD_1[2]
    false_per_true = (1 / ppv - 1) * sensitivity / (1 - specificity)  # negatives per positive
    positives = voxels / (1 + false_per_true)
    tp = sensitivity * positives
    counts = Confusion(
        tp=round(tp),
        fp=round(tp * (1 / ppv - 1)),
        fn=round(positives - tp),
        tn=round(specificity * (voxels - positives)),
    )
    assert tuple(counts.measures().values()) == pytest.approx(PAPER_FOLD_1, abs=3e-4)


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ((), (), {"dice": 1, "iou": 1, "sensitivity": math.nan, "ppv": math.nan, "specificity": 1, "npv": 1}),
        ((), ((0, 0, 0),), {"dice": 0, "iou": 0, "sensitivity": math.nan, "ppv": 0, "npv": 1}),
        (((0, 0, 0),), (), {"dice": 0, "iou": 0, "sensitivity": 0, "ppv": math.nan, "specificity": 1}),
    ],
    ids=["both empty", "empty reference", "empty prediction"],
)
def test_empty_masks_have_the_values_that_are_documented(reference: tuple, prediction: tuple, expected: dict) -> None:
    found = confusion(mask(*reference), mask(*prediction)).measures()
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_only_slices_with_a_lesion_in_the_reference_are_counted_and_all_together() -> None:
    reference, prediction = np.zeros((2, 2, 2, 4), bool)
    reference[0, 0, 1] = reference[0, :, 2] = True  # one voxel in the second slice, two in the third
    prediction[0, 0, 1] = prediction[1, 1, 2] = True
    prediction[:, :, 3] = True  # false, in a slice without lesions
    assert confusion_in_lesion_slices(reference, prediction, 2) == Confusion(tp=1, fp=1, fn=2, tn=4)
    assert confusion_in_lesion_slices(reference.T, prediction.T, 0) == Confusion(tp=1, fp=1, fn=2, tn=4)
    assert confusion(reference, prediction) == Confusion(tp=1, fp=5, fn=2, tn=8)
    nothing = confusion_in_lesion_slices(reference & False, prediction, 2)
    assert nothing == Confusion(0, 0, 0, 0)
    assert nothing.dice == 1
    assert math.isnan(nothing.accuracy)


def test_lesions_are_found_by_a_shared_voxel_and_false_without_one() -> None:
    # Reference: one lesion of two voxels that touch at a corner, one that is missed, two that one prediction joins.
    reference = mask((0, 0, 0), (1, 1, 1), (4, 0, 4), (4, 2, 0), (4, 4, 0))
    prediction = mask((1, 1, 1), (0, 4, 4), (4, 2, 0), (4, 3, 0), (4, 4, 0))
    found = detection(reference, prediction)
    assert found == Detection(reference_lesions=4, predicted_lesions=3, found=3, false=1)
    assert found.true_positive_rate == 3 / 4
    assert found.false_positive_rate == 1 / 3
    assert found.f1 == pytest.approx(2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3))


@pytest.mark.parametrize(
    ("counts", "true_rate", "false_rate", "f1"),
    [
        ((0, 0, 0, 0), math.nan, math.nan, 1),
        ((0, 2, 0, 2), math.nan, 1, 0),
        ((2, 0, 0, 0), 0, math.nan, 0),
        ((2, 1, 0, 1), 0, 1, 0),
    ],
    ids=["both empty", "empty reference", "empty prediction", "nothing in common"],
)
def test_lesion_rates_of_empty_masks_are_those_documented(
    counts: tuple[int, int, int, int], true_rate: float, false_rate: float, f1: float
) -> None:
    found = Detection(*counts)
    rates = (found.true_positive_rate, found.false_positive_rate, found.f1)
    assert rates == pytest.approx((true_rate, false_rate, f1), nan_ok=True)


def test_surface_distances_are_in_millimetres_along_each_axis() -> None:
    # Two single voxels, 3 apart along an axis of 0.5 mm and 1 along one of 4 mm.
    found = surface_distance(mask((0, 2, 0)), mask((3, 2, 1)), (0.5, 1.0, 4.0))
    expected = math.hypot(1.5, 4.0)
    assert (found.average_mm, found.hausdorff95_mm) == pytest.approx((expected, expected))


def test_average_is_over_both_surfaces_together_and_hausdorff_the_worse_direction() -> None:
    # A voxel and a bar of three that starts on it: 0 one way; 0, 1, 2 the other.
    found = surface_distance(mask((0, 0, 0)), mask((0, 0, 0), (0, 0, 1), (0, 0, 2)), (1.0, 1.0, 1.0))
    assert found.average_mm == pytest.approx((0 + 0 + 1 + 2) / 4)
    assert found.hausdorff95_mm == pytest.approx(1.9)  # between 1 and 2, at 95 % of the way from the first to the last


def test_the_inside_of_a_lesion_is_no_surface() -> None:
    cube, hollow = np.zeros((2, 7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = hollow[1:6, 1:6, 1:6] = True
    hollow[3, 3, 3] = False  # its wall is a surface: the six neighbours of the hole, 1 voxel from the cube's
    found = surface_distance(cube, hollow, (1.0, 1.0, 1.0))
    assert found.average_mm == pytest.approx(6 * 1.0 / (98 + 98 + 6))


def test_surface_distances_of_empty_masks_are_0_or_the_images_diagonal() -> None:
    empty, one = mask(shape=(3, 4, 12)), mask((0, 0, 0), shape=(3, 4, 12))
    assert surface_distance(empty, empty, (1.0, 1.0, 1.0)).average_mm == 0
    for pair in ((empty, one), (one, empty)):
        found = surface_distance(*pair, (1.0, 1.0, 1.0))
        assert (found.average_mm, found.hausdorff95_mm) == (13, 13)


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"), [(8, 6, 0.25), (8, 10, 0.25), (0, 0, 0), (0, 3, math.nan), (4, 0, 1)]
)
def test_relative_volume_difference(reference: float, prediction: float, expected: float) -> None:
    assert relative_volume_difference(reference, prediction) == pytest.approx(expected, nan_ok=True)


def test_correlation_needs_three_scans_that_differ() -> None:
    assert correlation([1, 2, 3, 6], [6, 3, 2, 1]) == pytest.approx(-12 / 14)  # sums of products -12, of squares 14
    assert math.isnan(correlation([1, 2], [1, 2]))
    assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
    with pytest.raises(InputError, match="3 volumes of the reference and 2"):
        correlation([1, 2, 3], [1, 2])


def test_means_leave_out_what_is_not_a_number_and_say_so() -> None:
    found = summarise([0.2, math.nan, 0.8])
    assert (found.mean, found.n) == (0.5, 2)
    assert found.sd == pytest.approx(math.sqrt(0.18))
    one, none = summarise([0.7]), summarise([math.nan])
    assert (one.mean, one.n) == (0.7, 1)
    assert math.isnan(one.sd)
    assert none.n == 0
    assert math.isnan(none.mean)


def test_limits_of_agreement() -> None:
    found = agreement([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])  # differences 1, 2, 3: deviation 1
    assert found == Agreement(2.0, 2 - 1.96, 2 + 1.96)


@pytest.mark.parametrize("measure", [confusion, detection, lambda a, b: surface_distance(a, b, (1.0, 1.0, 1.0))])
def test_masks_of_two_grids_are_refused(measure: object) -> None:
    with pytest.raises(InputError, match="prediction has 5x5x4 voxels, the reference 5x5x5"):
        measure(mask(), mask(shape=(5, 5, 4)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simpleitk_finds_the_same(seed: int) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install '.[dev]'")
    reference, prediction = blobs(seed)
    spacing = (0.7, 1.3, 3.0)

    def image(array: np.ndarray) -> object:
        result = sitk.GetImageFromArray(array.astype(np.uint8).T)  # their arrays are (z, y, x)
        result.SetSpacing(spacing)
        return result

    one, other = image(reference), image(prediction)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(other, one)  # prediction, then reference
    found = confusion(reference, prediction)
    assert found.dice == pytest.approx(overlap.GetDiceCoefficient(1))
    assert found.iou == pytest.approx(overlap.GetJaccardCoefficient(1))
    assert 1 - found.sensitivity == pytest.approx(overlap.GetFalseNegativeError(1))
    assert 1 - found.specificity == pytest.approx(overlap.GetFalsePositiveError(1))
    assert 1 - found.ppv == pytest.approx(overlap.GetFalseDiscoveryRate(1))

    lesions = detection(reference, prediction)
    components = [sitk.ConnectedComponent(mask, True) for mask in (one, other)]
    counts, touched = [], []
    for labels, against in ((components[0], other), (components[1], one)):
        statistics = sitk.LabelIntensityStatisticsImageFilter()
        statistics.Execute(labels, against)
        counts.append(len(statistics.GetLabels()))
        touched.append(sum(statistics.GetMaximum(number) > 0 for number in statistics.GetLabels()))
    assert (lesions.reference_lesions, lesions.predicted_lesions) == tuple(counts)
    assert (lesions.found, lesions.predicted_lesions - lesions.false) == tuple(touched)

    directions = []
    for mask_, against in ((one, other), (other, one)):
        contour = sitk.LabelContour(against, fullyConnected=False)
        distance = sitk.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)
        values = np.abs(sitk.GetArrayFromImage(distance))
        directions.append(values[sitk.GetArrayFromImage(sitk.LabelContour(mask_, fullyConnected=False)) > 0])
    surface = surface_distance(reference, prediction, spacing)
    assert surface.average_mm == pytest.approx(np.concatenate(directions).mean(), rel=1e-5)
    assert surface.hausdorff95_mm == pytest.approx(max(np.percentile(way, 95) for way in directions), rel=1e-5)
