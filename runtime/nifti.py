"""A NIfTI file's bytes and header, checked before anything is believed or allocated."""

import errno
import gzip
import logging
import math
import os
import stat
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lesionrt.runtime.errors import VolumeError

SUFFIXES = (".nii.gz", ".nii")
GZIP_MOST = 1032  # deflate cannot compress further than this ratio
BLOCK = 1 << 22  # bytes inflated at a time
START = 1 << 16  # bytes that hold the header, compressed or not
LARGEST_FIELD_MM = 512.0  # no head is that long: a wrong voxel size, which would also need the memory
SMALLEST_FIELD_MM = 1.0  # as when sizes are in metres
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)  # no such name can be a file here
GZIP_MAGIC = b"\x1f\x8b"
MOST_FORM_CODE = 5  # of qform and sform (nifti1.h)

# What a header check mends and logs is looked at here instead, and told as a warning or an error.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def stem_of(name: str) -> str | None:
    """A volume's name without its ending, in capitals too; None for what is no NIfTI file by its name.

    >>> stem_of("flair.nii.gz"), stem_of("X.NII"), stem_of("flair.mgz")
    ('flair', 'X', None)
    """
    ending = next((ending for ending in SUFFIXES if name.lower().endswith(ending)), None)
    return None if ending is None else name[: -len(ending)]


def stored_bytes(path: Path) -> bytes:
    """The file as it is stored.

    Raises
    ------
    VolumeError
        If it is missing, empty, unreadable or no NIfTI file by its name.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in ABSENT and os.path.islink(path):  # noqa: PTH114 (`is_symlink` fails at a name too long)
            raise VolumeError(
                f"a link to {path.readlink()}, which is not there; fetch it (`git annex get`) or mend the link"
            ) from error
        if error.errno in ABSENT:
            raise VolumeError("no such file; expected a NIfTI volume (.nii or .nii.gz)") from error
        raise VolumeError(f"cannot be read ({error.strerror}); mend its folder's permissions or links") from error
    except ValueError as error:  # a name that no file can have
        raise VolumeError("no such file; expected a NIfTI volume (.nii or .nii.gz)") from error
    if not stat.S_ISREG(mode):
        raise VolumeError("not a file; expected a NIfTI volume (.nii or .nii.gz)")
    if stem_of(path.name) is None:
        raise VolumeError("not a NIfTI file by its name; expected .nii or .nii.gz (convert DICOM with dcm2niix)")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise VolumeError("the file is empty (0 bytes); copy it again from its source")
            _check_start(file.read(START), size, path.name.lower().endswith(".gz"))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise VolumeError(f"cannot be read ({error.strerror}); mend its permissions, or copy it again") from error


def _check_start(start: bytes, size: int, compressed: bool) -> None:
    """What the header alone tells, before a large file that cannot be used is read."""
    if compressed:
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, nib.Nifti2Header.sizeof_hdr)
        except zlib.error:
            return  # told with the whole
        if len(start) < nib.Nifti2Header.sizeof_hdr:
            return  # the whole tells whether another member follows
        size *= GZIP_MOST
    _expected_length(start, size)
    header = _header(start)
    check_header(header)
    by_sform = int(header["sform_code"]) > 0
    with np.errstate(all="ignore"):
        sizes = voxel_sizes(header.get_sform()) if by_sform else np.asarray(header["pixdim"][1:4], np.float64)
    if np.isfinite(sizes).all() and sizes.min() > 0:  # else told with the affine
        check_field(sizes, _shape(header)[:3])


def check_field(voxel_mm: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    """Refuse what cannot be a head by its size; `shape` in voxels."""
    field_mm = voxel_mm * shape
    if not SMALLEST_FIELD_MM <= field_mm.max() <= LARGEST_FIELD_MM:
        raise VolumeError(
            f"the field of view is {'x'.join(f'{size:g}' for size in field_mm.round(3))} mm; expected {SMALLEST_FIELD_MM:g} to "
            f"{LARGEST_FIELD_MM:g} mm: mend the voxel size in the header"
        )


def _inflated(stored: bytes) -> bytes:
    """The whole gzip stream, checksum included; never more than its header's volume needs."""
    if stored[:2] != GZIP_MAGIC:
        raise VolumeError("named .gz and not compressed; rename it to .nii, or copy it again if it is no NIfTI file")
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=BytesIO(stored)) as stream:
            content += stream.read(nib.Nifti2Header.sizeof_hdr)
            limit = _expected_length(bytes(content), len(stored) * GZIP_MOST)
            while block := stream.read(BLOCK):
                content += block
                if len(content) > limit:
                    break
    except EOFError as error:
        raise VolumeError("the gzip stream ends early: the file is truncated; copy it again from its source") from error
    except (OSError, zlib.error) as error:
        raise VolumeError(f"damaged gzip ({error}); copy the file again from its source") from error
    return bytes(content)


def _header(content: bytes) -> nib.Nifti1Header:
    """The raw header, nothing in it mended."""
    kind: Any
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size: int = kind.sizeof_hdr
        if content[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            if len(content) < size:
                raise VolumeError(
                    f"truncated: {len(content)} bytes, and the header alone has {size}; copy it again from its source"
                )
            header: nib.Nifti1Header = kind(content[:size], check=False)
            if header["magic"].item() not in (b"n+1", b"n+2"):
                raise VolumeError(
                    "not a single-file NIfTI (its magic is neither n+1 nor n+2); Analyze files and .hdr/.img pairs must be converted"
                )
            return header
    if content[:2] == GZIP_MAGIC:
        raise VolumeError("compressed, and not named so; rename it to .nii.gz")
    raise VolumeError(
        "not NIfTI: the file does not begin with a NIfTI-1 or NIfTI-2 header; copy it again, or convert it with dcm2niix"
    )


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """The image's dimensions, refused if it is no single 3-D volume."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise VolumeError(
            f"the header says {dim[0]} dimensions; expected 3: its header is damaged, copy it again from its source"
        )
    shape = tuple(dim[1 : dim[0] + 1])
    check_shape(shape)
    return shape


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse all but one 3-D volume; trailing axes of 1 are fine."""
    text = "x".join(map(str, shape))
    if any(n < 1 for n in shape):
        raise VolumeError(f"dimensions are {text}; expected at least 1 voxel along every axis: copy it again")
    if any(n > 1 for n in shape[3:]):
        raise VolumeError(f"holds more than one volume ({text}); expected one 3-D FLAIR volume: split the series first")
    if len(shape) < 3 or 1 in shape[:3]:
        raise VolumeError(
            f"a 2-D image ({text}); expected a 3-D volume of at least 2 voxels along every axis: stack the slices"
        )


def _expected_length(content: bytes, most: int) -> int:
    """Bytes of the file that the header describes; refused where the file cannot hold as many."""
    header = _header(content)
    shape = _shape(header)
    try:
        itemsize: int = header.get_data_dtype().itemsize
    except (HeaderDataError, KeyError) as error:
        raise VolumeError(
            f"data type code {int(header['datatype'])} is not one of NIfTI's: its header is damaged, copy it again from its source"
        ) from error
    if int(header["bitpix"]) != itemsize * 8:
        raise VolumeError(
            f"the header contradicts itself: {int(header['bitpix'])} bits a voxel, and a data type of {itemsize * 8} bits; "
            "copy it again from its source"
        )
    offset = float(header["vox_offset"])
    if not (np.isfinite(offset) and header.sizeof_hdr <= offset <= most and offset == int(offset)):
        raise VolumeError(
            f"the header places the voxels at byte {offset:g}, outside the file; copy it again from its source"
        )
    expected = int(offset) + itemsize * math.prod(shape)
    if expected > most:
        raise VolumeError(
            f"dimensions {'x'.join(map(str, shape))} need {expected} bytes, and the file holds at most {most}: "
            "it is truncated or its header is damaged; copy it again from its source"
        )
    return expected


def parse(stored: bytes, compressed: bool) -> nib.Nifti1Image:
    """The image in a file's bytes.

    Raises
    ------
    VolumeError
        If they are damaged, truncated, or not one 3-D volume.
    """
    content = _inflated(stored) if compressed else stored
    expected = _expected_length(content, len(content))
    if len(content) > expected:
        raise VolumeError(
            f"holds more than the {expected} bytes that its header describes: the header is damaged; copy it again from its source"
        )
    header = _header(content)
    check_header(header)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions, which are not read
            return kind.from_bytes(content)
    except (HeaderDataError, ImageFileError, ValueError, OSError) as error:
        raise VolumeError(f"damaged NIfTI header ({error}); copy the file again from its source") from error


def check_header(header: nib.Nifti1Header) -> None:
    """What nibabel would mend on reading."""
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        raise VolumeError(
            f"voxel size {'x'.join(f'{size:g}' for size in sizes)} mm; expected positive sizes: mend the header's pixdim"
        )
    if np.isinf(float(header["scl_slope"])):
        raise VolumeError("the header scales voxels by an infinite slope; mend its scl_slope")
    qfac = float(header["pixdim"][0])
    if int(header["qform_code"]) > 0 and qfac not in (-1.0, 0.0, 1.0):
        raise VolumeError(
            f"pixdim[0] is {qfac:g}; expected -1 or 1, which say the handedness of qform: mend the header"
        )
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        name = {1: "metres", 3: "micrometres"}.get(unit, f"code {unit}")
        raise VolumeError(f"voxel sizes are in {name}; expected millimetres: mend the header's xyzt_units and sizes")
    codes = {name: int(header[name]) for name in ("qform_code", "sform_code")}
    if not all(0 <= code <= MOST_FORM_CODE for code in codes.values()):
        raise VolumeError(
            f"{' and '.join(f'{name} {code}' for name, code in codes.items())}; expected 0 to {MOST_FORM_CODE}: mend the header"
        )
    if not any(codes.values()):
        raise VolumeError(
            "qform and sform codes are both 0, so the orientation is unknown: "
            "convert the image again from DICOM, or set the codes if you know that the affine is right"
        )
