"""How well predicted masks agree with a data set's, scan by scan, and over all its scans."""

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from lesionrt.runtime.geometry import slice_axis
from lesionrt.runtime.metrics import (
    MEASURES,
    Confusion,
    Detection,
    Summary,
    SurfaceDistance,
    agreement,
    confusion,
    confusion_in_lesion_slices,
    correlation,
    detection,
    relative_volume_difference,
    summarise,
    surface_distance,
)
from lesionrt.runtime.volume import Volume
from lesionrt.train.dataset import Scan, read_pair
from lesionrt.train.pictures import difference_picture
from lesionrt.train.predictions import Predictor

SCHEMA = 1  # of the JSON file
# Groups of measures, and what they are called for people.
GROUPS = {
    "lesion_slices": "slices with lesions",
    "whole_volume": "whole volumes",
    "field": "lesions, surfaces, volumes",
}
FIELD = (
    "lesion_true_positive_rate",
    "lesion_false_positive_rate",
    "lesion_f1",
    "average_surface_distance_mm",
    "hausdorff95_mm",
    "volume_difference_ml",
    "relative_volume_difference",
)
# What a scan's warning begins with where its patient's name stands among those that the model owes something to.
TRAINED_ON = "the model was trained on a patient named"
CHOSEN_ON = "the model's epoch was chosen on a patient named"
Say = Callable[[str], None]


@dataclass(frozen=True)
class ScanEvaluation:
    """A prediction beside its reference, on the scan's own grid.

    Attributes
    ----------
    slices
        How many axial slices hold a lesion in the reference.
    in_slices, in_volume
        Voxels of those slices, and of the whole volume.
    reference_ml, predicted_ml
        Lesion volumes.
    picture
        PNG as in the paper's Figure 6.
    warnings
        Of the volume, and of how it was predicted.
    """

    scan: Scan
    slices: int
    in_slices: Confusion
    in_volume: Confusion
    lesions: Detection
    surface: SurfaceDistance
    reference_ml: float
    predicted_ml: float
    picture: bytes
    warnings: tuple[str, ...]

    def measures(self) -> dict[str, dict[str, float]]:
        """By group and name; NaN where there is nothing to measure."""
        nothing = dict.fromkeys(MEASURES, math.nan)
        field = (
            self.lesions.true_positive_rate,
            self.lesions.false_positive_rate,
            self.lesions.f1,
            self.surface.average_mm,
            self.surface.hausdorff95_mm,
            self.predicted_ml - self.reference_ml,
            relative_volume_difference(self.reference_ml, self.predicted_ml),
        )
        return {
            "lesion_slices": self.in_slices.measures() if self.slices else nothing,
            "whole_volume": self.in_volume.measures(),
            "field": dict(zip(FIELD, field, strict=True)),
        }

    def counts(self) -> dict[str, float]:
        """What the measures are made of."""
        return {
            "slices_with_lesions": self.slices,
            "reference_lesions": self.lesions.reference_lesions,
            "predicted_lesions": self.lesions.predicted_lesions,
            "reference_ml": self.reference_ml,
            "predicted_ml": self.predicted_ml,
        }


def evaluate_scan(scan: Scan, predictor: Predictor) -> ScanEvaluation:
    """Predict one scan and compare.

    Raises
    ------
    InputError
        If the scan or its prediction cannot be used.
    """
    flair, reference = read_pair(scan)
    prediction = predictor(scan, flair)
    return compare_masks(scan, flair, reference, prediction.mask, prediction.warnings)


def compare_masks(
    scan: Scan,
    flair: Volume,
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    warnings: Sequence[str] = (),
) -> ScanEvaluation:
    """Masks (X, Y, Z) on the volume's grid, and what a person should know of the prediction."""
    axis, sizes = slice_axis(flair.affine), voxel_sizes(flair.affine)
    voxel_ml = float(np.prod(sizes)) / 1000
    return ScanEvaluation(
        scan=scan,
        slices=int(np.count_nonzero(reference.any(axis=tuple({0, 1, 2} - {axis})))),
        in_slices=confusion_in_lesion_slices(reference, prediction, axis),
        in_volume=confusion(reference, prediction),
        lesions=detection(reference, prediction),
        surface=surface_distance(reference, prediction, sizes.tolist()),
        reference_ml=int(np.count_nonzero(reference)) * voxel_ml,
        predicted_ml=int(np.count_nonzero(prediction)) * voxel_ml,
        picture=difference_picture(flair, reference, prediction),
        warnings=(*flair.warnings, *warnings),
    )


@dataclass(frozen=True)
class Evaluation:
    """Of a data set, or of some of its scans.

    Attributes
    ----------
    dataset
        Its path.
    prediction
        What predicted (:attr:`lesionrt.train.predictions.Predictor.description`).
    scans
        At least one.
    """

    dataset: str
    prediction: dict[str, Any]
    scans: tuple[ScanEvaluation, ...]

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Mean and deviation over the scans, by group and measure."""
        found = [scan.measures() for scan in self.scans]
        return {
            group: {name: summarise(scan[group][name] for scan in found) for name in found[0][group]}
            for group in GROUPS
        }

    def volumes_ml(self) -> tuple[list[float], list[float]]:
        """Lesion volumes of reference and prediction."""
        return [scan.reference_ml for scan in self.scans], [scan.predicted_ml for scan in self.scans]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; null where there is nothing to measure."""
        reference, predicted = self.volumes_ml()
        limits = agreement(reference, predicted)
        content: dict[str, Any] = plain(
            {
                "schema": SCHEMA,
                "dataset": self.dataset,
                "prediction": self.prediction,
                "lesionrt": version("lesionrt"),
                "scans": [
                    {
                        "name": scan.scan.name,
                        "patient": scan.scan.patient,
                        "time": scan.scan.time,
                        **scan.counts(),
                        **scan.measures(),
                        "warnings": list(scan.warnings),
                    }
                    for scan in self.scans
                ],
                "summary": {
                    group: {name: vars(value) for name, value in values.items()}
                    for group, values in self.summary().items()
                },
                "volume_agreement": {
                    "correlation": correlation(reference, predicted),
                    "bias_ml": limits.bias,
                    "lower_ml": limits.lower,
                    "upper_ml": limits.upper,
                },
            }
        )
        return content

    def as_json(self) -> str:
        """The whole of it as a JSON document."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def as_csv(self) -> str:
        """One row a scan; empty where there is nothing to measure."""
        rows = []
        for scan in self.scans:
            measures = {
                name if group == "field" else f"{group}_{name}": value
                for group, values in scan.measures().items()
                for name, value in values.items()
            }
            names = {"scan": scan.scan.name, "patient": scan.scan.patient, "time": scan.scan.time}
            rows.append({**names, **scan.counts(), **measures})
        text = StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain(rows))
        return text.getvalue()


def plain(value: Any) -> Any:
    """Values for JSON: null for NaN, and floats rounded to 1e-9."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 9) if math.isfinite(value) else None
    return value


def known_from(training_data: str, patient: str) -> str | None:
    """What a model's training data tells of a patient, by name or by scans ``patient_time``: one of the warnings above.

    >>> told = "p1_1, p1_2019_06; epoch chosen on p3_1; donor masks: 27; started from m, trained on p2_1"
    >>> [known_from(told, patient) == TRAINED_ON for patient in ("p1", "p2", "p3", "p")]
    [True, True, False, False]
    >>> known_from(told, "p3") == CHOSEN_ON
    True
    >>> known_from("p07 and p19 of LIT, P14 at three times", "P14") == TRAINED_ON
    True
    """
    first, *more = training_data.split(";")
    named = re.compile(rf"(?:^|[\s,]){re.escape(patient)}(?:_|[\s,]|$)")
    if any(named.search(part) for part in (first, *(part.partition("trained on ")[2] for part in more))):
        return TRAINED_ON
    return CHOSEN_ON if any(named.search(part.partition("chosen on ")[2]) for part in more) else None


def evaluate(dataset: Path, scans: Sequence[Scan], predictor: Predictor, say: Say = lambda _: None) -> Evaluation:
    """Evaluate scans one after another.

    Parameters
    ----------
    dataset
        What the scans are of, for the report.
    scans
        At least one.
    predictor
        Gives the masks.
    say
        Told a line about each scan.

    Raises
    ------
    InputError
        If a scan cannot be used.
    """
    done = []
    told = predictor.description.get("model", {}).get("training_data", "")
    for number, scan in enumerate(scans, 1):
        found = evaluate_scan(scan, predictor)
        known = known_from(told, scan.patient)
        if known is not None:
            text = f"{known} {scan.patient}: of the same person, this is no figure of a new patient"
            found = replace(found, warnings=(*found.warnings, text))
        say(
            f"{number}/{len(scans)} {scan.name}: Dice {found.in_volume.dice:.4f}, lesion F1 {found.lesions.f1:.4f}, "
            f"{found.reference_ml:.2f} ml in the reference, {found.predicted_ml:.2f} ml predicted"
        )
        done.append(found)
    return Evaluation(str(dataset), predictor.description, tuple(done))
