"""Prepared scans, kept by content so that each is prepared once."""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.files import sha256, write_atomically
from lesionrt.runtime.prepare import Preparation
from lesionrt.train.dataset import Scan, prepare_pair

VERSION = 1  # of what is prepared and how it is stored


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
    """

    name: str
    patient: str
    slices: NDArray[np.float16]
    brain: NDArray[np.bool_]
    lesions: NDArray[np.bool_]

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
    identity = {
        "version": VERSION,
        "flair": sha256(scan.flair),
        "mask": sha256(scan.mask),
        "preparation": preparation.as_dict(),
        "size_multiple": size_multiple,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = cache / f"{key}.npz"
    try:
        with np.load(path) as stored:
            return PreparedScan(scan.name, scan.patient, stored["slices"], stored["brain"], stored["lesions"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged: made anew
    prepared, lesions = prepare_pair(scan, preparation, size_multiple)
    halo = ((1, 1), (0, 0), (0, 0))
    result = PreparedScan(
        scan.name,
        scan.patient,
        prepared.slices[:, 0].astype(np.float16),
        np.pad(prepared.brain, halo),
        np.pad(lesions, halo),
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, slices=result.slices, brain=result.brain, lesions=result.lesions)
    write_atomically({path: buffer.getvalue()})
    return result
