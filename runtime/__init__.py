"""The lean runtime: a FLAIR volume in, a lesion mask out.

>>> from lesionrt.runtime import Segmenter
"""

from lesionrt.runtime.errors import (
    BundleError,
    CheckpointError,
    InputError,
    LesionrtError,
    OutputError,
    ParityError,
    StackError,
    UnavailableError,
    UsageError,
    VolumeError,
)
from lesionrt.runtime.segmenter import Segmentation, Segmenter, load_volume

__all__ = [
    "BundleError",
    "CheckpointError",
    "InputError",
    "LesionrtError",
    "OutputError",
    "ParityError",
    "Segmentation",
    "Segmenter",
    "StackError",
    "UnavailableError",
    "UsageError",
    "VolumeError",
    "load_volume",
]
