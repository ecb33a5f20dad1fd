"""The main job: a FLAIR volume to lesion probabilities, mask and lesions on its own grid."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Backend
from lesionrt.runtime.backends.choice import BackendChoice, Chosen
from lesionrt.runtime.bundle import UNTRAINED, Bundle, load_bundle
from lesionrt.runtime.errors import BundleError, UsageError
from lesionrt.runtime.lesions import CONNECTIVITY, Lesion, find_lesions
from lesionrt.runtime.prepare import HALO, Prepared, prepare_volume
from lesionrt.runtime.volume import BRAIN_MASK_OVER, Volume, nonzero_brain, read_brain_mask, read_flair, skull_warning

REPORT_VERSION = 1
MOST_THREADS = 1024
# Where the model lies that is used when none is named.
DEFAULT_MODEL = Path(__file__).parent / "models" / "default"
Source = str | Path | nib.Nifti1Image
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Segmentation:
    """What was found in one volume, on its own grid.

    Attributes
    ----------
    mask
        NIfTI image of uint8: 1 where the lesion probability is over the threshold.
    probability
        NIfTI image of float32.
    lesions
        Largest first.
    report
        Plain values, ready for JSON: what was found, with which model, on what, how long it took.
    flair
        The volume that was read.
    """

    mask: nib.Nifti1Image
    probability: nib.Nifti1Image
    lesions: list[Lesion]
    report: dict[str, Any]
    flair: Volume


@dataclass(frozen=True)
class Loaded:
    """A volume that was read and prepared, to be segmented."""

    volume: Volume
    mask_volume: Volume | None
    brain: NDArray[np.bool_]
    prepared: Prepared
    seconds: dict[str, float]


def check_options(
    threshold: float | None, min_lesion_mm3: float, chunk: int | None = None, threads: int | None = None
) -> None:
    """Refuse values with which a :class:`Segmenter` cannot work, before anything is read.

    Raises
    ------
    UsageError
        If one is out of range.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"threshold is {threshold}; expected a probability between 0 and 1")
    if not 0 <= min_lesion_mm3 < float("inf"):
        raise UsageError(f"min_lesion_mm3 is {min_lesion_mm3}; expected 0 or more")
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk is {chunk}; expected at least 1")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}; expected 1 to {MOST_THREADS}")


def load_volume(bundle: Bundle, flair: Source, brain_mask: Source | None = None) -> Loaded:
    """Read and prepare one volume as a bundle's network wants it; needs no backend, so another thread may do it meanwhile.

    Parameters
    ----------
    bundle
        The model.
    flair, brain_mask
        As :class:`Segmenter` takes them.

    Raises
    ------
    VolumeError
        If a volume cannot be used.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        volume = read_flair(_source(flair))
        mask_volume = None if brain_mask is None else read_brain_mask(_source(brain_mask), volume)
        brain = nonzero_brain(volume) if mask_volume is None else mask_volume.data > BRAIN_MASK_OVER
    with _timed(seconds, "prepare"):
        prepared = prepare_volume(volume, brain, bundle.preparation, bundle.size_multiple)
    return Loaded(volume, mask_volume, brain, prepared, seconds)


class Segmenter:
    """Segments FLAIR volumes with a model that is loaded once; a context manager.

    Parameters
    ----------
    model
        A bundle or its folder; None for the default model.
    backend
        One of :data:`lesionrt.runtime.backends.NAMES`; or ``auto``, for the fastest that takes the volume; or one that
        :func:`lesionrt.runtime.backends.open_backend` gave, which stays open.
    threshold
        A voxel is lesion where its probability is over this; None for the model's own.
    min_lesion_mm3
        Lesions below this volume are dropped.
    chunk
        Slices that are computed at a time; None for as many as a fixed memory budget allows.
        It does not change the result.
    threads
        On the CPU; None for one a core.

    Raises
    ------
    BundleError
        If the model is missing or damaged.
    UnavailableError
        If the backend cannot run here.
    UsageError
        If an option is out of range.

    Examples
    --------
    >>> with Segmenter("bundle/") as segmenter:  # doctest: +SKIP
    ...     result = segmenter("flair.nii.gz")
    >>> result.report["lesion_count"], result.mask.shape  # doctest: +SKIP
    (12, (182, 218, 182))
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        *,
        backend: str | Backend = "auto",
        threshold: float | None = None,
        min_lesion_mm3: float = 0.0,
        chunk: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_options(threshold, min_lesion_mm3, chunk, threads)
        self.bundle = (
            model if isinstance(model, Bundle) else load_bundle(DEFAULT_MODEL if model is None else Path(model))
        )
        self.threshold = self.bundle.threshold if threshold is None else threshold
        self.min_lesion_mm3 = min_lesion_mm3
        self.chunk = chunk
        start = time.perf_counter()
        self._choice = BackendChoice(backend, self.bundle, threads)
        self.load_seconds = time.perf_counter() - start

    @property
    def backend(self) -> Backend:
        """What is tried first on every volume."""
        return self._choice.first.backend

    @property
    def chosen_because(self) -> str:
        """Why that backend."""
        return self._choice.first.why

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._choice.__exit__(kind, error, trace)

    def __call__(
        self, flair: Source, brain_mask: Source | None = None, progress: Progress | None = None
    ) -> Segmentation:
        """Segment one volume: :func:`load_volume` and :meth:`segment`.

        Parameters
        ----------
        flair
            A NIfTI file or nibabel image: one skull-stripped FLAIR volume, background 0.
        brain_mask
            On the same grid; None to take every voxel that is not 0.
        progress
            Called with the slices done and their total.

        Raises
        ------
        VolumeError
            If a volume cannot be used.
        BundleError, ParityError
            If the network gives anything but numbers, or not one for each voxel.
        StackError
            If an engine was asked for and none was built for so large a volume.
        UnavailableError
            If the backend fails.
        UsageError
            If the segmenter is closed.
        """
        return self.segment(load_volume(self.bundle, flair, brain_mask), progress)

    def segment(self, loaded: Loaded, progress: Progress | None = None) -> Segmentation:
        """Segment what :func:`load_volume` gave.

        Raises
        ------
        BundleError, ParityError
            If the network gives anything but numbers, or not one for each voxel.
        StackError
            If an engine was asked for and none was built for so large a volume.
        UnavailableError
            If the backend fails.
        UsageError
            If the segmenter is closed.
        """
        volume, mask_volume, brain, prepared = loaded.volume, loaded.mask_volume, loaded.brain, loaded.prepared
        seconds = {"load": self.load_seconds, **loaded.seconds}
        with _timed(seconds, "infer"):
            near = prepared.near_brain()
            stack = prepared.slices if len(near) == len(prepared.slices) else prepared.slices[near]
            found, chosen = self._choice.infer(stack, self.chunk, progress)
            self._check_finite(volume, found, chosen.backend)
            probabilities = np.zeros(prepared.brain.shape, np.float32)
            probabilities[near[HALO:-HALO] - HALO] = found
        with _timed(seconds, "restore"):
            probability = prepared.restore(probabilities)
            probability[~brain] = 0
            mask, lesions = find_lesions(probability > self.threshold, probability, volume.affine, self.min_lesion_mm3)
        return Segmentation(
            mask=volume.like(mask.astype(np.uint8), "lesionrt lesion mask"),
            probability=volume.like(probability, "lesionrt lesion probability"),
            lesions=lesions,
            report={
                **self._found(volume, mask_volume, lesions),
                **self._how(list(stack.shape), chosen),
                "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
                "warnings": self._warnings(volume, mask_volume, chosen),
            },
            flair=volume,
        )

    def _check_finite(self, volume: Volume, probabilities: NDArray[np.float32], backend: Backend) -> None:
        bad = probabilities.size - np.count_nonzero(np.isfinite(probabilities))
        if bad:
            raise BundleError(
                f"{volume.name}: the network gave {bad} probabilities that are not numbers ({backend.precision} on "
                f"{backend.device}); check the model with `lesionrt verify {self.bundle.path}`"
            )

    def _warnings(self, volume: Volume, brain_mask: Volume | None, chosen: Chosen) -> list[str]:
        skull = skull_warning(volume) if brain_mask is None else None
        untrained = None if self.bundle.model.trained else UNTRAINED
        of_backend = getattr(chosen.backend, "warnings", ())
        other = None if chosen.backend is self.backend else f"run by {chosen.backend.name} ({chosen.why})"
        of_mask = [] if brain_mask is None else [f"brain mask: {text}" for text in brain_mask.warnings]
        texts = (skull, untrained, other)
        return [*volume.warnings, *of_mask, *(text for text in texts if text is not None), *of_backend]

    def _found(self, volume: Volume, brain_mask: Volume | None, lesions: list[Lesion]) -> dict[str, Any]:
        return {
            "schema": REPORT_VERSION,
            "input": volume.name,
            "input_sha256": volume.sha256,
            "brain_mask": None if brain_mask is None else brain_mask.name,
            "brain_mask_sha256": None if brain_mask is None else brain_mask.sha256,
            "lesion_count": len(lesions),
            "lesion_volume_ml": round(sum(lesion.volume_mm3 for lesion in lesions) / 1000, 4),
            "threshold": self.threshold,
            "min_lesion_mm3": self.min_lesion_mm3,
            "connectivity": CONNECTIVITY,
        }

    def _how(self, network_input: list[int], chosen: Chosen) -> dict[str, Any]:
        return {
            "model": self.bundle.model.as_dict(),
            "model_sha256": self.bundle.sha256,
            "backend": chosen.backend.name,
            "backend_chosen": chosen.why,
            "device": chosen.backend.device,
            "precision": chosen.backend.precision,
            "versions": {
                "lesionrt": version("lesionrt"),
                "backend": chosen.backend.library,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "network_input": network_input,
        }


def _source(source: Source) -> Path | nib.Nifti1Image:
    return Path(source) if isinstance(source, str) else source


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
