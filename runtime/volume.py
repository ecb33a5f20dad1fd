"""Reading a NIfTI volume so that a damaged or unsuitable one ends in one clear error."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lesionrt.runtime.errors import VolumeError
from lesionrt.runtime.nifti import check_field, check_header, check_shape, parse, stored_bytes

LARGEST_VALUE = 1e30  # beyond it float32 arithmetic overflows
HALF_A_STEP = 0.501  # between two stored integers, with room for rounding
SHEAR_TOLERANCE = 1e-3  # cosine between two array axes
GRID_TOLERANCE_MM = 0.1  # by how much two affines may place a corner of one grid apart
BRAIN_MASK_OVER = 0.5  # brain is where a brain mask's value is over this
STRIPPED_MOST_SHARE = 0.9  # of the voxels are not zero in a skull-stripped image
BRAIN_MOST_ML = 2200.0  # more tissue than this is not a brain without skull


@dataclass(frozen=True)
class Volume:
    """One 3-D image in memory.

    Attributes
    ----------
    name
        Its path, or what to call it in messages.
    data
        (X, Y, Z) float32, scaled as the header says. Of integers with an intercept what lies within half a step of 0 is 0.
    affine
        (4, 4) voxel indices to RAS+ mm.
    image
        The nibabel image, for its header; its data is not held.
    sha256
        Of the file; None for an image in memory.
    warnings
        What a person should know of it.
    """

    name: str
    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    image: nib.Nifti1Image
    sha256: str | None
    warnings: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """In voxels, without trailing axes of 1."""
        x, y, z = self.data.shape
        return x, y, z

    def like(self, data: NDArray[Any], description: str) -> nib.Nifti1Image:
        """An image of these voxels on exactly this volume's grid: shape, affine, both forms and codes."""
        header = self.image.header.copy()
        header.extensions.clear()
        header.set_data_dtype(data.dtype)
        header["descrip"] = description.encode()
        header["cal_min"], header["cal_max"], header["intent_code"], header["intent_name"] = 0, 1, 0, b""
        return type(self.image)(data.reshape(self.image.shape), self.affine, header)


def read_volume(source: Path | nib.Nifti1Image) -> Volume:
    """Read and check a NIfTI-1 or NIfTI-2 volume.

    Parameters
    ----------
    source
        A ``.nii`` or ``.nii.gz`` file, or a nibabel NIfTI image.

    Raises
    ------
    VolumeError
        Naming the file, what was found, what was expected and what to do.
    """
    if not isinstance(source, nib.Nifti1Image | str | Path):
        raise VolumeError(f"a {type(source).__name__} was given; expected a path or a nibabel NIfTI image")
    name = "the given image" if isinstance(source, nib.Nifti1Image) else str(source)
    try:
        return _check(source, name, None) if isinstance(source, nib.Nifti1Image) else _read_file(Path(source))
    except VolumeError as error:
        raise VolumeError(f"{name}: {error}") from error.__cause__


def read_flair(source: Path | nib.Nifti1Image) -> Volume:
    """Read a volume that is to be segmented: as :func:`read_volume`, and it must show something.

    Raises
    ------
    VolumeError
        As :func:`read_volume`, and if the image is empty or constant.
    """
    volume = read_volume(source)
    low, high = volume.data.min(), volume.data.max()
    if low == high:
        raise VolumeError(
            f"{volume.name}: the image is {'empty' if low == 0 else 'constant'}: every voxel is {float(low):g}; "
            "expected a FLAIR image: give another file, or convert it again from its source"
        )
    return volume


def skull_warning(volume: Volume) -> str | None:
    """What to tell a person if the image does not look skull-stripped."""
    tissue = np.count_nonzero(volume.data)
    tissue_ml = tissue * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    if tissue <= STRIPPED_MOST_SHARE * volume.data.size and tissue_ml <= BRAIN_MOST_ML:
        return None
    return (
        f"does not look skull-stripped: {tissue_ml:.0f} ml are not zero; lesions may be drawn outside the brain. "
        "Strip the skull first or give a brain mask"
    )


def _read_file(path: Path) -> Volume:
    stored = stored_bytes(path)
    return _check(parse(stored, path.name.lower().endswith(".gz")), str(path), hashlib.sha256(stored).hexdigest())


def _check(image: nib.Nifti1Image, name: str, digest: str | None) -> Volume:
    """Checks that a file and an image in memory share."""
    check_shape(image.shape)
    check_header(image.header)
    notices: list[str] = []
    affine = _checked_affine(image, notices)
    check_field(voxel_sizes(affine), image.shape[:3])
    dtype: np.dtype[Any] = image.dataobj.dtype  # type: ignore[attr-defined]
    if dtype.kind not in "iuf":
        kind = "RGB colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise VolumeError(f"holds {kind} data; expected one real number a voxel: export the magnitude image")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asanyarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    except (HeaderDataError, ValueError, OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"the voxels cannot be read ({error})") from error
    _check_values(data)
    inter = getattr(image.dataobj, "inter", 0.0)
    if dtype.kind in "iu" and inter:  # these integers may not reach 0: the background is what comes nearest
        data[np.abs(data) <= HALF_A_STEP * abs(image.dataobj.slope)] = 0  # type: ignore[attr-defined]
    # The header alone is kept: the voxels are in `data`.
    bare = type(image)(np.broadcast_to(np.float32(0), image.shape), image.affine, image.header)
    return Volume(name, data, affine, bare, digest, tuple(notices))


def _checked_affine(image: nib.Nifti1Image, notices: list[str]) -> NDArray[np.float64]:
    if image.affine is None:
        raise VolumeError("has no affine; give one: nibabel.Nifti1Image(data, affine)")
    affine = np.asarray(image.affine, np.float64)
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(axes, axis=0)
        independent = abs(np.linalg.det(axes / lengths)) > 1e-6
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0 and independent):
        raise VolumeError(
            "the affine is singular or not finite: two array axes point the same way; mend the header's sform or qform"
        )
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    if np.abs(cosines).max() > SHEAR_TOLERANCE:
        raise VolumeError(
            f"the affine is sheared (cosine {np.abs(cosines).max():.3f} between two array axes, at most {SHEAR_TOLERANCE:g}): "
            "resample the image to an orthogonal grid first"
        )
    header = image.header
    if int(header["sform_code"]) > 0:
        try:
            other = header.get_qform(coded=False) if int(header["qform_code"]) > 0 else None
        except (HeaderDataError, ValueError):
            notices.append("qform cannot be read; sform is used")
            return affine
        if other is not None:
            apart = np.abs(corners_mm(affine, image.shape) - corners_mm(other, image.shape)).max()
            if not apart <= GRID_TOLERANCE_MM:
                notices.append(f"qform and sform disagree by up to {apart:.1f} mm; sform is used")
        else:
            sizes = np.asarray(header.get_zooms()[:3], np.float64)
            if np.abs(sizes / lengths - 1).max() > 0.01:
                notices.append(f"pixdim says voxels of {_by(sizes)} mm, sform of {_by(lengths)} mm; sform is used")
    return affine


def _by(sizes: NDArray[np.float64]) -> str:
    return "x".join(f"{size:g}" for size in sizes.round(3))


def _check_values(data: NDArray[np.float32]) -> None:
    low, high = data.min(), data.max()  # NaN if any voxel is
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = ~np.isfinite(data)
        first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise VolumeError(
            f"{int(bad.sum())} voxels are NaN or infinite, the first at {first}; expected finite intensities: "
            "set them to 0"
        )
    if max(abs(low), abs(high)) > LARGEST_VALUE:
        raise VolumeError(
            f"intensities reach {float(max(abs(low), abs(high))):g}; expected at most {LARGEST_VALUE:g}: rescale the image"
        )


def nonzero_brain(volume: Volume) -> NDArray[np.bool_]:
    """The brain of a skull-stripped image: what is not 0 (some hold negative intensities)."""
    brain: NDArray[np.bool_] = volume.data != 0
    return brain


def read_brain_mask(source: Path | nib.Nifti1Image, flair: Volume) -> Volume:
    """A brain mask on the FLAIR volume's grid: brain is where its value is over 0.5.

    Raises
    ------
    VolumeError
        If it cannot be read, lies on another grid, or is empty.
    """
    try:
        mask = read_volume(source)
    except VolumeError as error:
        raise VolumeError(f"brain mask {error}") from error
    problem = other_grid(mask, flair)
    if problem is not None:
        raise VolumeError(f"brain mask {problem}")
    if mask.data.max() <= BRAIN_MASK_OVER:
        raise VolumeError(
            f"brain mask {mask.name}: empty, no voxel is over {BRAIN_MASK_OVER}; give a mask of the brain"
        )
    return mask


def other_grid(mask: Volume, flair: Volume) -> str | None:
    """What to tell if a mask has not the image's shape, or its affine does not place it where the image is."""
    remedy = "resample the mask to the image's grid"
    if mask.shape != flair.shape:
        return f"{mask.name}: has {_dims(mask)} voxels, {flair.name} has {_dims(flair)}; {remedy}"
    apart = np.abs(corners_mm(mask.affine, mask.shape) - corners_mm(flair.affine, flair.shape)).max()
    if apart > GRID_TOLERANCE_MM:
        return f"{mask.name}: its affine places it up to {apart:.1f} mm from {flair.name}; {remedy}"
    return None


def corners_mm(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Where the eight corner voxels lie: (3, 8)."""
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in shape[:3]])).reshape(3, -1)
    return np.asarray(affine[:3, :3] @ corners + affine[:3, 3:])


def _dims(volume: Volume) -> str:
    return "x".join(map(str, volume.shape))
