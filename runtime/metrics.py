"""How well a lesion mask agrees with a reference, voxel by voxel, lesion by lesion and at its surface.

Values that a formula leaves open
---------------------------------
* Two empty masks agree: Dice, IoU and lesion F1 are 1, both surface distances 0 mm, the relative volume difference 0.
* One empty mask: Dice, IoU and lesion F1 are 0, and both surface distances the image's diagonal, the largest that it
  has room for (as the BraTS challenge scores them), so that a missed patient cannot improve a mean.
* Any other ratio to 0, such as the sensitivity where nothing is to be found, is NaN: there is nothing to measure.
  Means leave it out and say over how many values they are.
* Over the slices with lesions, the paper's way, a reference without lesions leaves no slice: every measure is NaN there.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from lesionrt.runtime.errors import InputError
from lesionrt.runtime.lesions import label

Mask = NDArray[np.bool_]
# The paper's Table 2, in its order.
MEASURES = ("dice", "sensitivity", "specificity", "iou", "extra_fraction", "ppv", "npv", "accuracy")
HAUSDORFF_PERCENTILE = 95
AGREEMENT_SD = 1.96  # standard deviations from the mean difference to either limit of agreement (Bland and Altman 1986)


@dataclass(frozen=True)
class Confusion:
    """Voxels by reference and prediction, and the paper's measures of them (section 4.1, equations 1 to 7).

    Attributes
    ----------
    tp, fp, fn, tn
        True positives, false positives, false negatives, true negatives, in voxels.

    Examples
    --------
    >>> found = Confusion(tp=6, fp=2, fn=4, tn=88)
    >>> found.sensitivity, found.ppv, found.accuracy
    (0.6, 0.75, 0.94)
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), equation 1; 1 for two empty masks."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, both_empty=1.0)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN), equation 2."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), equation 3."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def extra_fraction(self) -> float:
        """FP / (TN + FN), equation 4."""
        return _ratio(self.fp, self.tn + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FN + FP), equation 5; 1 for two empty masks."""
        return _ratio(self.tp, self.tp + self.fn + self.fp, both_empty=1.0)

    @property
    def ppv(self) -> float:
        """TP / (TP + FP), equation 6."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """TN / (TN + FN), equation 7."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all; in the paper's Table 2 without an equation."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def measures(self) -> dict[str, float]:
        """The eight of Table 2, by name."""
        return {name: getattr(self, name) for name in MEASURES}


def _ratio(part: float, whole: float, both_empty: float = math.nan) -> float:
    return part / whole if whole else both_empty


def confusion(reference: Mask, prediction: Mask) -> Confusion:
    """Count the voxels of two masks of one shape.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _check_shapes(reference, prediction)
    tp = int(np.count_nonzero(reference & prediction))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    return Confusion(tp, fp, fn, reference.size - tp - fp - fn)


def confusion_in_lesion_slices(reference: Mask, prediction: Mask, axis: int) -> Confusion:
    """Count the voxels in the slices along `axis` in which the reference holds a lesion, all of them together.

    That is how the paper's Table 2 counts: in each of its rows IoU is Dice / (2 - Dice), which holds for voxels that
    are counted together and not for means over slices.  Its slices are cropped to 160x160 pixels, these are whole,
    which moves the measures that count true negatives: specificity, extra fraction, NPV, accuracy.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _check_shapes(reference, prediction)
    others = tuple(other for other in range(reference.ndim) if other != axis)
    slices = np.flatnonzero(reference.any(axis=others))
    return confusion(reference.take(slices, axis), prediction.take(slices, axis))


@dataclass(frozen=True)
class Detection:
    """Lesions that were found and lesions that are none (Carass et al., NeuroImage 2017: LTPR and LFPR).

    A reference lesion is found if the prediction shares a voxel with it; a predicted lesion is false if the reference
    shares none with it.  Lesions are 26-connected components.  One voxel is a generous rule: it says whether something
    was seen, not how well it was drawn; and one large predicted lesion finds all that it touches.

    Attributes
    ----------
    reference_lesions, predicted_lesions
        How many there are.
    found
        Reference lesions that the prediction touches.
    false
        Predicted lesions that touch no reference lesion.
    """

    reference_lesions: int
    predicted_lesions: int
    found: int
    false: int

    @property
    def true_positive_rate(self) -> float:
        """Found among the reference's lesions."""
        return _ratio(self.found, self.reference_lesions)

    @property
    def false_positive_rate(self) -> float:
        """False among the predicted lesions."""
        return _ratio(self.false, self.predicted_lesions)

    @property
    def f1(self) -> float:
        """Harmonic mean of the true positive rate and of the share of predicted lesions that are not false."""
        if not self.reference_lesions or not self.predicted_lesions:
            return 1.0 if self.reference_lesions == self.predicted_lesions else 0.0
        found, right = self.true_positive_rate, 1 - self.false_positive_rate
        return 2 * found * right / (found + right) if found else 0.0


def detection(reference: Mask, prediction: Mask) -> Detection:
    """Count lesions of two masks of one shape (X, Y, Z), and those that touch.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _check_shapes(reference, prediction)
    (references, reference_count), (predictions, predicted_count) = label(reference), label(prediction)
    both = reference & prediction
    found, right = (len(np.unique(labels[both])) for labels in (references, predictions))
    return Detection(reference_count, predicted_count, found, predicted_count - right)


@dataclass(frozen=True)
class SurfaceDistance:
    """How far apart two masks' surfaces are.

    Attributes
    ----------
    average_mm
        From every surface voxel of either mask to the other's nearest, averaged over all of them together: the average
        symmetric surface distance (Heimann et al., IEEE Trans Med Imaging 2009).
    hausdorff95_mm
        The larger of the two directions' 95th percentiles (Maier-Hein et al., Nature Methods 2024).
    """

    average_mm: float
    hausdorff95_mm: float


def surface_distance(reference: Mask, prediction: Mask, voxel_mm: Sequence[float]) -> SurfaceDistance:
    """Distances between the centres of surface voxels, those with a face on the outside.

    Parameters
    ----------
    reference, prediction
        (X, Y, Z) of one shape.
    voxel_mm
        Voxel size along each axis, in mm.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    _check_shapes(reference, prediction)
    if not reference.any() or not prediction.any():
        apart = 0.0 if reference.any() == prediction.any() else math.hypot(*np.multiply(reference.shape, voxel_mm))
        return SurfaceDistance(apart, apart)
    # Everything outside the box of both is outside either surface: the distances in it are those in the whole image.
    box = scipy.ndimage.find_objects((reference | prediction).astype(np.uint8))[0]
    surfaces = [mask & ~scipy.ndimage.binary_erosion(mask) for mask in (reference[box], prediction[box])]
    one, other = surfaces
    there = scipy.ndimage.distance_transform_edt(~other, sampling=voxel_mm)[one]
    back = scipy.ndimage.distance_transform_edt(~one, sampling=voxel_mm)[other]
    return SurfaceDistance(
        average_mm=float(np.concatenate([there, back]).mean()),
        hausdorff95_mm=max(float(np.percentile(way, HAUSDORFF_PERCENTILE)) for way in (there, back)),
    )


def relative_volume_difference(reference: float, prediction: float) -> float:
    """|prediction - reference| / reference; 0 if both are 0, NaN if the reference alone is.

    >>> relative_volume_difference(8.0, 6.0)
    0.25
    """
    return _ratio(abs(prediction - reference), reference, both_empty=math.nan if prediction else 0.0)


def correlation(reference: Sequence[float], prediction: Sequence[float]) -> float:
    """Pearson's, over scans; NaN for fewer than three scans (two always lie on a line) or for volumes all alike.

    Raises
    ------
    InputError
        If there are not as many of one as of the other.

    Examples
    --------
    >>> correlation([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    1.0
    """
    one, other = (np.asarray(values, np.float64) for values in (reference, prediction))
    if one.shape != other.shape:
        raise InputError(f"{one.size} volumes of the reference and {other.size} of the prediction; expected as many")
    if one.size < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1).round(12))


@dataclass(frozen=True)
class Summary:
    """Of a measure over scans.

    Attributes
    ----------
    mean
        NaN if there is no value.
    sd
        Sample standard deviation (n - 1); NaN for fewer than two values.
    n
        How many values there are, those that are NaN left out.
    """

    mean: float
    sd: float
    n: int


def summarise(values: Iterable[float]) -> Summary:
    """Mean and standard deviation of what is a number.

    >>> summarise([1.0, 3.0, math.nan])
    Summary(mean=2.0, sd=1.4142135623730951, n=2)
    """
    numbers = np.array([value for value in values if not math.isnan(value)], np.float64)
    mean = float(numbers.mean()) if numbers.size else math.nan
    sd = float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan
    return Summary(mean, sd, numbers.size)


@dataclass(frozen=True)
class Agreement:
    """Prediction minus reference over scans (Bland and Altman, Lancet 1986): its mean and the limits of agreement."""

    bias: float
    lower: float
    upper: float


def agreement(reference: Sequence[float], prediction: Sequence[float]) -> Agreement:
    """Mean difference and limits 1.96 standard deviations from it; the limits are NaN for fewer than two scans."""
    found = summarise(np.subtract(prediction, reference).tolist())
    return Agreement(found.mean, found.mean - AGREEMENT_SD * found.sd, found.mean + AGREEMENT_SD * found.sd)


def _check_shapes(reference: Mask, prediction: Mask) -> None:
    if reference.shape != prediction.shape:
        raise InputError(
            f"the prediction has {'x'.join(map(str, prediction.shape))} voxels, the reference "
            f"{'x'.join(map(str, reference.shape))}; expected masks on one grid"
        )
