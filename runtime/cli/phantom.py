"""`lesionrt phantom`."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import ForceOption, check_folder, check_new, given_path


def command(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the volumes.", parser=given_path, show_default=False)
    ],
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the first; the others count up.", min=0)] = 0,
    force: ForceOption = False,
) -> None:
    """Make FLAIR-like volumes with lesions and their masks, for trying things out, never for accuracy."""
    import nibabel as nib
    import numpy as np

    from lesionrt.runtime.files import write_atomically
    from lesionrt.runtime.outputs import nifti_bytes
    from lesionrt.runtime.phantom import phantom

    check_folder(out)
    targets = {
        number: [out / f"phantom{number:03d}_{what}.nii.gz" for what in ("flair", "mask")]
        for number in range(seed, seed + count)
    }
    for path in chain.from_iterable(targets.values()):
        check_new(path, force)
    for number, (flair_path, mask_path) in targets.items():
        flair, mask = phantom(seed=number)
        affine = np.eye(4)
        affine[:3, 3] = -(np.array(flair.shape) - 1) / 2
        images = {
            path: nib.Nifti1Image(data, affine)
            for path, data in ((flair_path, flair), (mask_path, mask.astype(np.uint8)))
        }
        for image in images.values():
            image.header.set_xyzt_units("mm")
        write_atomically({path: nifti_bytes(image) for path, image in images.items()})
        print(flair_path)
