"""What the segmenter tells, whatever the network finds."""

import shutil
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime import Segmenter, segmenter
from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.cli import segment


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
    with Segmenter(backend=Nothing()) as nothing:
        warnings = nothing(small_flair, mask).report["warnings"]
    assert warnings == ["brain mask: qform and sform disagree by up to 5.0 mm; sform is used"]


def test_slices_without_brain_are_not_computed_and_change_nothing(tiny_bundle: Path, small_flair: Path) -> None:
    flair = nib.load(small_flair)
    data = flair.get_fdata(dtype=np.float32)
    data[:, :, 14:24] = 0
    with Segmenter(tiny_bundle, backend="cpu") as loaded:
        found = loaded(nib.Nifti1Image(data, flair.affine))
        prepared = segmenter.load_volume(loaded.bundle, nib.Nifti1Image(data, flair.affine)).prepared
        whole = prepared.restore(infer_in_chunks(loaded.backend, prepared.slices))
    assert found.report["network_input"][0] == len(prepared.slices) - 8
    inside = data != 0
    np.testing.assert_allclose(found.probability.get_fdata()[inside], whole[inside], rtol=0, atol=1e-6)


def test_a_volume_is_read_while_the_network_loads_or_another_one_is_computed(
    tiny_bundle: Path, flake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for path in paths:
        shutil.copy(flake, path)
    reads = {path: Event() for path in paths}
    awaited = iter(paths)  # the first by what loads, the second by what computes
    load, opens, computes = segmenter.load_volume, Segmenter.__init__, Segmenter.segment

    def reading(bundle: object, flair: Path, brain_mask: object) -> object:
        reads[flair].set()
        return load(bundle, flair, brain_mask)  # type: ignore[arg-type]

    def opening(self: Segmenter, *arguments: object, **options: object) -> None:
        assert reads[next(awaited)].wait(30)
        opens(self, *arguments, **options)  # type: ignore[arg-type]

    def computing(self: Segmenter, *arguments: object) -> object:
        assert reads[next(awaited, paths[1])].wait(30)
        return computes(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(segmenter, "load_volume", reading)
    monkeypatch.setattr(Segmenter, "__init__", opening)
    monkeypatch.setattr(Segmenter, "segment", computing)
    segment.command(paths, tmp_path / "out", model=tiny_bundle, backend="cpu")
    assert (tmp_path / "out" / "b_lesions.nii.gz").exists()
