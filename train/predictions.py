"""Where the masks that are evaluated come from: a folder of them, a bundle or a checkpoint."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.bundle import MANIFEST, UNTRAINED
from lesionrt.runtime.errors import DatasetError, UsageError
from lesionrt.runtime.nifti import SUFFIXES
from lesionrt.runtime.outputs import targets_of
from lesionrt.runtime.segmenter import Segmenter
from lesionrt.runtime.volume import Volume
from lesionrt.train.dataset import Scan, read_mask

Mask = NDArray[np.bool_]
# What a scan's mask may be called after its name, patient_time.
NAMES = ("", "_lesions", "_mask")


@dataclass(frozen=True)
class Prediction:
    """A scan's predicted lesions.

    Attributes
    ----------
    mask
        (X, Y, Z) on the scan's own grid.
    warnings
        What a person should know of how it came about, besides the volume's own warnings.
    """

    mask: Mask
    warnings: tuple[str, ...] = ()


class Predictor(Protocol):
    """Gives a scan's predicted lesion mask on the scan's own grid.

    Attributes
    ----------
    description
        What predicted, as plain values for a report; ``what`` says it in words.
    """

    description: dict[str, Any]

    def __call__(self, scan: Scan, flair: Volume) -> Prediction:
        """The mask of a scan whose volume was read."""
        ...


class MaskFolder:
    """Masks that were written before, found by their names.

    A scan's mask is ``patient_time``, ``patient_time_lesions`` or ``patient_time_mask`` with .nii or .nii.gz; or the
    file that `lesionrt segment` writes for its volume, with as many of the volume's folders before it as are there.

    Raises
    ------
    DatasetError
        If a scan has none or several, or two scans the same.
    """

    def __init__(self, folder: Path, scans: Sequence[Scan]) -> None:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder of masks")
        found = {scan.name: find_mask(folder, scan) for scan in scans}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            example = next(scan for scan in scans if scan.name == missing[0])
            expected = targets_of(folder / example.flair.name)["mask"].name
            raise DatasetError(
                f"{folder}: has no mask of {len(missing)} of {len(found)} scans: {', '.join(missing[:5])}; "
                f"expected for example {missing[0]}.nii.gz, or {expected} as `lesionrt segment` names it"
            )
        self.masks: dict[str, Path] = {name: path for name, path in found.items() if path is not None}
        own = [scan.name for scan in scans if scan.mask.exists() and self.masks[scan.name].samefile(scan.mask)]
        if own:
            raise DatasetError(
                f"{folder}: holds the reference itself as the prediction of {', '.join(own[:5])}; give the folder of the predicted masks"
            )
        users: dict[Path, list[str]] = {}
        for name, path in self.masks.items():
            users.setdefault(path, []).append(name)
        shared = [f"{path} by {', '.join(names)}" for path, names in users.items() if len(names) > 1]
        if shared:
            raise DatasetError(
                f"{folder}: one mask would be that of several scans ({'; '.join(shared)}); name masks patient_time.nii.gz"
            )
        self.description = {"what": f"masks in {folder}", "kind": "masks", "folder": str(folder)}

    def __call__(self, scan: Scan, flair: Volume) -> Prediction:
        """The mask as it was written, checked to lie on the volume's grid."""
        return Prediction(read_mask(self.masks[scan.name], flair))


def find_mask(folder: Path, scan: Scan) -> Path | None:
    """A scan's mask in a folder; None if there is none.

    Raises
    ------
    DatasetError
        If there are several.
    """
    endings = [f"{ending}{suffix}" for ending in NAMES for suffix in SUFFIXES]
    named = [folder / f"{scan.name}{ending}" for ending in endings if Path(scan.name).name == scan.name]
    found = [path for path in named if path.is_file()]
    if not found:
        # Without `..`, which would lead out of the folder.
        parts = Path(os.path.abspath(scan.flair)).parts[1:]  # noqa: PTH100 (`resolve` would follow a link)
        tails = (targets_of(folder.joinpath(*parts[first:]))["mask"] for first in range(len(parts)))
        found = [next((path for path in tails if path.is_file()), Path())]
    if len(found) > 1:
        raise DatasetError(f"{folder}: holds several masks of {scan.name}: {', '.join(path.name for path in found)}")
    return found[0] if found[0].name else None


class BundleModel:
    """A bundle, through the runtime as `lesionrt segment` runs it."""

    def __init__(self, segmenter: Segmenter) -> None:
        bundle = segmenter.bundle
        self._segmenter = segmenter
        self.description = {
            "what": f"bundle {bundle.path}: {bundle.name}",
            "kind": "bundle",
            "model": bundle.model.as_dict(),
            "model_sha256": bundle.sha256,
            "backend": segmenter.backend.name,
            "device": segmenter.backend.device,
            "precision": segmenter.backend.precision,
            "threshold": segmenter.threshold,
            "min_lesion_mm3": segmenter.min_lesion_mm3,
        }

    def __call__(self, scan: Scan, flair: Volume) -> Prediction:
        """The mask that the runtime gives for the scan's file, with the warnings of its report."""
        result = self._segmenter(scan.flair)
        known = (*flair.warnings, UNTRAINED)  # that it is untrained stands in the description
        warnings = tuple(text for text in result.report["warnings"] if text not in known)
        return Prediction(np.asarray(result.mask.dataobj).reshape(flair.shape) > 0, warnings)


def open_model(
    model: Path | None, backend: str = "auto", threshold: float | None = None, min_lesion_mm3: float = 0.0
) -> AbstractContextManager[Predictor]:
    """A model's predictions; PyTorch is imported for a checkpoint only.

    Parameters
    ----------
    model
        A bundle's folder or a checkpoint (.pt); None for the default model.
    backend
        For a bundle, as :class:`lesionrt.runtime.Segmenter`; a checkpoint runs in PyTorch, on a GPU where there is one.
    threshold
        A voxel is lesion where its probability is over this; None for the model's own.
    min_lesion_mm3
        Lesions below this volume are dropped.

    Raises
    ------
    InputError
        If the model is missing or damaged.
    UnavailableError
        If the backend cannot run here.
    UsageError
        If an option is out of range or does not fit.
    """
    if model is not None and not (model / MANIFEST).exists() and (model / "checkpoint.pt").is_file():
        raise UsageError(f"{model} is the folder of a training; give {model / 'checkpoint.pt'}")
    if model is None or model.is_dir():
        return _open_bundle(model, backend, threshold, min_lesion_mm3)
    if backend not in ("auto", "pytorch"):
        raise UsageError(f"--backend {backend} runs bundles; {model} is no folder: a checkpoint runs in PyTorch")
    from lesionrt.train.inference import CheckpointModel

    return CheckpointModel(model, threshold, min_lesion_mm3)


@contextmanager
def _open_bundle(
    model: Path | None, backend: str, threshold: float | None, min_lesion_mm3: float
) -> Iterator[Predictor]:
    with Segmenter(model, backend=backend, threshold=threshold, min_lesion_mm3=min_lesion_mm3) as segmenter:
        yield BundleModel(segmenter)
