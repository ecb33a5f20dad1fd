"""What the segmenter tells, whatever the network finds."""

from pathlib import Path
from types import TracebackType
from typing import Self

import nibabel as nib
import numpy as np

from lesionrt.runtime import Segmenter
from lesionrt.runtime.backends import Arrays


class Nothing:
    """A backend that finds no lesion."""

    name = library = device = precision = "nothing"

    def infer(self, feed: Arrays) -> Arrays:
        return {"lesion": np.zeros_like(feed["slices"][1:-1, 0])}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def test_warnings_of_the_brain_mask_are_told(small_flair: Path) -> None:
    flair = nib.load(small_flair)
    mask = nib.Nifti1Image(np.ones(flair.shape, np.uint8), flair.affine)
    other = flair.affine.copy()
    other[0, 3] += 5
    mask.set_sform(flair.affine, 1)
    mask.set_qform(other, 1)
    with Segmenter(backend=Nothing()) as segmenter:
        warnings = segmenter(small_flair, mask).report["warnings"]
    assert warnings == ["brain mask: qform and sform disagree by up to 5.0 mm; sform is used"]
