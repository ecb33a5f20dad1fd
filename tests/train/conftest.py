"""What the tests of training share: two tiny phantoms, and one thread."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lesionrt.runtime.phantom import phantom
from lesionrt.train.dataset import Scan, read_dataset


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for a second thread more than it helps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny phantoms of two patients."""
    folder = tmp_path_factory.mktemp("phantoms")
    lines = ["flair,mask,patient,time"]
    for seed in (0, 1):
        flair, lesions = phantom((48, 56, 40), seed)
        nib.save(nib.Nifti1Image(flair, np.eye(4)), folder / f"{seed}_flair.nii.gz")
        nib.save(nib.Nifti1Image(lesions.astype(np.uint8), np.eye(4)), folder / f"{seed}_mask.nii.gz")
        lines.append(f"{seed}_flair.nii.gz,{seed}_mask.nii.gz,patient{seed},1")
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return folder / "scans.csv"


@pytest.fixture(scope="module")
def scans(table: Path) -> list[Scan]:
    return read_dataset(table)
