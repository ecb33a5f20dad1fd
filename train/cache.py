"""Prepared scans, kept by content so that each is prepared once."""

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.errors import DatasetError
from lesionrt.runtime.files import sha256, write_atomically
from lesionrt.runtime.geometry import ModelGrid
from lesionrt.runtime.prepare import Preparation
from lesionrt.runtime.volume import Volume, corners_mm
from lesionrt.train.dataset import Scan, prepare_pair

_ARRAYS = ("slices", "brain", "lesions", "start_mm")
USUAL_LESION_Z = 2.5
VERSION = 4  # of what is prepared, which scans are refused, and how it is stored: raise it when one of them changes


@dataclass(frozen=True)
class PreparedScan:
    """A scan in memory, on the model's grid, cut to the brain's box.

    Attributes
    ----------
    name, patient
        Of the scan.
    slices
        (n + 2, H, W) float16, normalised: n slices with brain and one neighbour on either side.
    brain, lesions
        (n + 2, H, W) bool; the neighbours hold none.
    start_mm
        Where the first voxel lies along the model's axes, in the world of the scan's affine.
    lesion_z
        The lesions' median brightness; a usual one where there are none.
    """

    name: str
    patient: str
    slices: NDArray[np.float16]
    brain: NDArray[np.bool_]
    lesions: NDArray[np.bool_]
    start_mm: NDArray[np.float64]
    lesion_z: float

    @property
    def lesion_slices(self) -> NDArray[np.intp]:
        """Indices of the slices with lesions."""
        return np.flatnonzero(self.lesions.any(axis=(1, 2)))


def load_scan(scan: Scan, preparation: Preparation, size_multiple: int, cache: Path) -> PreparedScan:
    """A prepared scan, from the cache if it was prepared before.

    Raises
    ------
    DatasetError, VolumeError
        If the scan cannot be used.
    OutputError
        If the cache cannot be written.
    """
    flair, mask = contents(scan)
    identity = {
        "version": VERSION,
        "flair": flair,
        "mask": mask,
        "preparation": preparation.as_dict(),
        "size_multiple": size_multiple,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = cache / f"{key}.npz"
    try:
        with np.load(path) as stored:
            arrays = [stored[name] for name in _ARRAYS]
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):  # absent or damaged: made anew
        arrays = _prepare(scan, preparation, size_multiple)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict(zip(_ARRAYS, arrays, strict=True)))
        write_atomically({path: buffer.getvalue()})
    slices, brain, lesions, start = arrays
    bright = float(np.median(slices[lesions])) if lesions.any() else USUAL_LESION_Z
    return PreparedScan(scan.name, scan.patient, slices, brain, lesions, start, bright)


def contents(scan: Scan) -> list[str]:
    """The sha256 of a scan's image and mask, by which they are known again.

    Raises
    ------
    DatasetError
        If one cannot be read.
    """
    try:
        return [sha256(scan.flair), sha256(scan.mask)]
    except OSError as error:
        raise DatasetError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _prepare(scan: Scan, preparation: Preparation, size_multiple: int) -> list[NDArray[Any]]:
    volume, prepared, lesions = prepare_pair(scan, preparation, size_multiple)
    halo = ((1, 1), (0, 0), (0, 0))
    origin = np.subtract(prepared.origin, (1, 0, 0)) * preparation.spacing_mm
    return [
        prepared.slices[:, 0].astype(np.float16),
        np.pad(prepared.brain, halo),
        np.pad(lesions, halo),
        start_mm(volume, preparation) + origin,
    ]


def start_mm(volume: Volume, preparation: Preparation) -> NDArray[np.float64]:
    """Where a volume's first voxel on the model's grid lies along the model's axes: (3,)."""
    corners = corners_mm(volume.affine, volume.shape)
    signs = [1 if letter in "RAS" else -1 for letter in preparation.axes]
    worlds = ["RL", "PA", "IS"]
    rows = [next(i for i, pair in enumerate(worlds) if letter in pair) for letter in preparation.axes]
    first = np.array([(sign * corners[row]).min() for sign, row in zip(signs, rows, strict=True)])
    grid = ModelGrid(volume.shape, volume.affine, preparation.axes, preparation.spacing_mm)
    return first + grid.shift_mm
