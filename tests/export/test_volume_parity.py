"""The chunked runtime against PyTorch's plain window forward, on real scans."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionrt.export.reference import window_probabilities
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.segmenter import Segmenter
from lesionrt.runtime.volume import read_flair
from lesionrt.train.checkpoint import load_checkpoint

Run = Callable[..., Any]
# Each scan goes through the runtime as a whole; beside PyTorch's windows stand all slices of one, 24 of the others.
SCANS = {"lit/p07": None, "lit/p19": 24, "mslesseg/P14_T1": 24, "mslesseg/P39_T1": 24}


@pytest.mark.parametrize(("scan", "count"), SCANS.items())
def test_a_whole_real_volume_through_a_small_network(
    shared: Path, tiny_checkpoint: Path, tiny_bundle: Path, scan: str, count: int | None
) -> None:
    path = shared / "data" / scan / "flair.nii.gz"
    stored = nib.load(path)
    with Segmenter(tiny_bundle, backend="cpu") as segmenter:
        result = segmenter(path)
        flair = read_flair(path)
        prepared = prepare_volume(flair, flair.data != 0, segmenter.bundle.preparation, segmenter.bundle.size_multiple)
    # Independently of `restore`: the box back into an SRA volume, then flipped and swapped to LAS.
    first = 0 if count is None else len(prepared.brain) // 2
    part = slice(first, None if count is None else first + count + 2)
    windows = window_probabilities(load_checkpoint(tiny_checkpoint).network, prepared.slices[part])
    canonical = np.zeros((182, 182, 218), np.float32)
    s, r, a = prepared.origin
    s += first
    for k, plane in enumerate(windows):
        rows, columns = np.nonzero(prepared.brain[first + k])
        canonical[s + k, r + rows, a + columns] = plane[rows, columns]
    expected = canonical.transpose(1, 2, 0)[::-1]
    assert nib.aff2axcodes(stored.affine) == ("L", "A", "S")
    planes = slice(None) if count is None else slice(s, s + count)
    np.testing.assert_allclose(np.asarray(result.probability.dataobj)[..., planes], expected[..., planes], atol=1e-4)
    assert not np.asarray(result.mask.dataobj)[stored.get_fdata() == 0].any()


@pytest.mark.parametrize("name", ["p01_study1_flair.nii.gz", "p20_study2_flair.nii.gz"])
def test_a_raw_scan_gets_its_mask_on_its_own_grid(
    shared: Path, tmp_path: Path, tiny_bundle: Path, run: Run, name: str
) -> None:
    path = shared / "data" / "lit_raw" / name
    warnings = run("segment", path, "-o", tmp_path, "--model", tiny_bundle, "--probabilities").stderr
    assert "does not look skull-stripped" in warnings
    flair = nib.load(path)
    for kind in ("lesions", "probability"):
        found = nib.load(tmp_path / name.replace(".nii.gz", f"_{kind}.nii.gz"))
        assert found.shape == flair.shape
        for form in ("sform", "qform"):
            ours, theirs = (getattr(image.header, f"get_{form}")(coded=True) for image in (found, flair))
            assert ours[1] == theirs[1]
            if theirs[1]:
                np.testing.assert_array_equal(ours[0], theirs[0])
        assert np.asarray(found.dataobj).any()
