"""Reading volumes: every good one gives its voxels, every bad one a clear error."""

import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.quaternions import quat2mat

from lesionrt.runtime.errors import VolumeError
from lesionrt.runtime.volume import Volume, nonzero_brain, read_brain_mask, read_flair, read_volume, skull_warning

DATA = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.array([[0, -1.0, 0, 7], [2.0, 0, 0, -8], [0, 0, 3.0, 9], [0, 0, 0, 1]])
GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("srow_x", "srow_y", "srow_z", "pixdim", "dim", "xyzt_units")


def image(data: object = DATA, affine: object = AFFINE, qform: int = 1, sform: int = 1) -> nib.Nifti1Image:
    result = nib.Nifti1Image(np.asarray(data), affine)
    result.set_qform(affine, qform)
    result.set_sform(affine, sform)
    return result


def nifti(data: object = DATA, **fields: object) -> bytes:
    """A valid file with some of its header's fields overwritten."""
    content = image(data).to_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def big_endian() -> nib.Nifti1Image:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_qform(AFFINE, 1)
    header.set_sform(AFFINE, 1)
    return nib.Nifti1Image(DATA, AFFINE, header)


GOOD: dict[str, Callable[[], nib.Nifti1Image]] = {
    "nifti-1": image,
    "nifti-2": lambda: nib.Nifti2Image.from_image(image()),
    "big-endian": big_endian,
    "float64": lambda: image(DATA.astype(np.float64)),
    "one trailing axis": lambda: image(DATA[..., None]),
    "four trailing axes": lambda: image(DATA[..., None, None, None, None]),
    "sform only": lambda: image(qform=0, sform=4),
    "qform only": lambda: image(qform=2, sform=0),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", GOOD)
def test_a_good_file_gives_its_voxels_and_affine(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"flair{suffix}"
    GOOD[kind]().to_filename(path)
    volume = read_flair(path)
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert (volume.shape, volume.data.dtype, volume.warnings) == ((2, 3, 4), np.float32, ())
    assert volume.name == str(path)


@pytest.mark.parametrize(("name", "pack"), [("A.NII", bytes), ("A.Nii.GZ", gzip.compress)])
def test_an_ending_in_capitals_is_as_good(name: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pack(nifti()))
    np.testing.assert_array_equal(read_volume(tmp_path / name).data, DATA)


@pytest.mark.parametrize("first", [0, 100])
def test_a_gzip_file_of_several_members_is_as_good(first: int, tmp_path: Path) -> None:
    content = image().to_bytes()
    path = tmp_path / "flair.nii.gz"
    path.write_bytes(gzip.compress(content[:first]) + gzip.compress(content[first:]))
    np.testing.assert_array_equal(read_volume(path).data, DATA)


def test_an_image_in_memory_is_as_good_as_a_file() -> None:
    volume = read_flair(image())
    np.testing.assert_array_equal(volume.data, DATA)
    assert (volume.sha256, volume.name) == (None, "the given image")


def test_integers_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii", nifti(scl_slope=0.5, scl_inter=-3))
    np.testing.assert_array_equal(read_volume(path).data, np.arange(24).reshape(2, 3, 4) / 2 - 3)


@pytest.mark.parametrize("intercept", [0.0, 0.2, -0.2])
def test_a_background_that_scaled_integers_cannot_hold_is_zero(intercept: float, tmp_path: Path) -> None:
    stored = np.where(DATA < 6, 0, DATA - 7).astype(np.int16)  # in steps of 0.5; -1 and 1, next to the background, stay
    path = written(tmp_path / "a.nii", nifti(stored, scl_slope=0.5, scl_inter=intercept))
    expected = np.where(stored == 0, 0, stored * np.float32(0.5) + np.float32(intercept))
    np.testing.assert_allclose(read_volume(path).data, expected, atol=1e-6)
    assert np.count_nonzero(read_volume(path).data) == 17


def test_integers_that_nibabel_scaled_have_the_brain_of_the_floats(tmp_path: Path) -> None:
    floats = image(np.where(DATA < 6, 0, DATA - np.float32(11.3)))
    nib.save(floats, tmp_path / "floats.nii.gz")
    floats.set_data_dtype(np.int16)
    nib.save(floats, tmp_path / "integers.nii.gz")
    one, other = (read_volume(tmp_path / name) for name in ("floats.nii.gz", "integers.nii.gz"))
    assert nib.load(tmp_path / "integers.nii.gz").dataobj.inter != 0
    np.testing.assert_array_equal(nonzero_brain(one), nonzero_brain(other))


def test_a_header_extension_is_no_reason_to_refuse(tmp_path: Path) -> None:
    given = image()
    given.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    given.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, DATA)


def half_pair(path: Path) -> None:
    nib.Nifti1Pair(DATA, AFFINE).to_filename(path.with_suffix(".img"))
    path.with_suffix(".hdr").rename(path)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("a.nii", lambda path: None, "no such file"),
    "folder": ("a.nii", Path.mkdir, "not a file"),
    "empty": ("a.nii", Path.touch, "empty"),
    "empty gzip file": ("a.nii.gz", Path.touch, "empty"),
    "gzip of nothing": ("a.nii.gz", lambda path: written(path, b""), "not NIfTI"),
    "cut in the voxels": ("a.nii", lambda path: path.write_bytes(nifti()[:-5]), "truncated"),
    "cut in the header": ("a.nii", lambda path: path.write_bytes(nifti()[:200]), "truncated"),
    "cut in the stream": ("a.nii.gz", lambda path: path.write_bytes(gzip.compress(nifti())[:-30]), "truncated"),
    "cut in the checksum": ("a.nii.gz", lambda path: path.write_bytes(gzip.compress(nifti())[:-3]), "truncated"),
    "short within gzip": ("a.nii.gz", lambda path: written(path, nifti()[:-5]), "truncated"),
    "damaged stream": ("a.nii.gz", lambda path: path.write_bytes(flipped(gzip.compress(nifti()), 80)), "damaged gzip"),
    "wrong checksum": ("a.nii.gz", lambda path: path.write_bytes(flipped(gzip.compress(nifti()), -6)), "damaged gzip"),
    "not gzip": ("a.nii.gz", lambda path: path.write_bytes(nifti()), "not compressed; rename it to .nii"),
    "gzip named .nii": ("a.nii", lambda path: path.write_bytes(gzip.compress(nifti())), "rename it to .nii.gz"),
    "text": ("a.nii", lambda path: path.write_bytes(b"patient,age\n" * 99), "not NIfTI"),
    "another suffix": ("a.dcm", lambda path: path.write_bytes(nifti()), "expected .nii or .nii.gz"),
    "half of a pair": ("a.nii", half_pair, "single-file NIfTI.*pairs must be converted"),
    "a folder that leads to itself": (
        "loop/a.nii",
        lambda path: path.parent.symlink_to("loop"),
        r"cannot be read \(.*\); mend its folder's",
    ),
    "pair": ("a.hdr", half_pair, "expected .nii or .nii.gz"),
    "bytes too many": ("a.nii", lambda path: path.write_bytes(nifti() + b"\0"), "holds more"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_an_error_that_names_it_and_the_problem(kind: str, tmp_path: Path) -> None:
    name, make, problem = FILES[kind]
    make(tmp_path / name)
    with pytest.raises(VolumeError, match=rf"^{tmp_path / name}: .*{problem}") as caught:
        read_flair(tmp_path / name)
    assert caught.value.exit_code == 3


def placed(axes: list[list[float]]) -> bytes:
    return nifti(**{f"srow_{name}": [*row, 0] for name, row in zip("xyz", axes, strict=True)})


CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "2-D": (lambda: nifti(DATA[0]), "2-D"),
    "one slice": (lambda: nifti(DATA[:, :, :1]), "2-D"),
    "two volumes": (lambda: nifti(np.stack([DATA, DATA], -1)), "more than one volume"),
    "vector": (lambda: nifti(np.stack([DATA, DATA], -1)[:, :, :, None]), "more than one volume"),
    "no dimensions": (lambda: nifti(dim=[0, 1, 1, 1, 1, 1, 1, 1]), "0 dimensions"),
    "negative dimension": (lambda: nifti(dim=[3, 2, -3, 4, 1, 1, 1, 1]), "2x-3x4"),
    "RGB": (lambda: nifti(np.zeros((2, 3, 4), [(c, "u1") for c in "RGB"])), "RGB"),
    "complex": (lambda: nifti(DATA.astype(np.complex64)), "complex"),
    "unknown data type": (lambda: nifti(datatype=77), "data type code 77"),
    "another bit depth": (lambda: nifti(bitpix=8), "8 bits"),
    "NaN": (
        lambda: nifti(np.where(DATA == 5, np.nan, DATA)),
        r"1 voxels are NaN or infinite, the first at \(0, 1, 1\)",
    ),
    "infinite": (lambda: nifti(np.where(DATA > 21, np.inf, DATA)), r"2 voxels are NaN or infinite"),
    "minus infinite": (lambda: nifti(np.where(DATA > 21, -np.inf, DATA)), r"2 voxels are NaN or infinite"),
    "beyond float32": (lambda: nifti(DATA * 1e300), "infinite"),
    "huge values": (lambda: nifti(DATA * np.float32(1e35)), "intensities reach"),
    "infinite intercept": (lambda: nifti(scl_slope=1, scl_inter=np.inf), "intercept"),
    "constant": (lambda: nifti(DATA * 0 + 7), "constant: every voxel is 7"),
    "all zero": (lambda: nifti(DATA * 0), "empty"),
    "zero voxel size": (lambda: nifti(pixdim=[1, 1, 0, 1, 0, 0, 0, 0]), "voxel size 1x0x1 mm"),
    "negative voxel size": (lambda: nifti(pixdim=[1, 1, 1, -2, 0, 0, 0, 0]), "voxel size 1x1x-2 mm"),
    "NaN voxel size": (lambda: nifti(pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0]), "voxel size nanx1x1 mm"),
    "metres": (lambda: nifti(xyzt_units=1), "metres"),
    "singular affine": (lambda: placed([[1, 1, 0], [0, 0, 0], [0, 0, 1]]), "singular"),
    "zero affine": (lambda: placed([[0, 0, 0]] * 3), "singular"),
    "NaN affine": (lambda: placed([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]]), "not finite"),
    "sheared affine": (lambda: placed([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]]), "sheared"),
    "no orientation": (lambda: nifti(qform_code=0, sform_code=0), "codes are both 0"),
    "impossible form code": (lambda: nifti(sform_code=-1), "sform_code -1"),
    "a head of 3 m": (lambda: placed([[1, 0, 0], [0, 1000, 0], [0, 0, 1]]), "field of view"),
    "voxels in the header": (lambda: nifti(vox_offset=100), "outside the file"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_an_unsuitable_volume_is_an_error_that_names_it_and_the_problem(kind: str, suffix: str, tmp_path: Path) -> None:
    make, problem = CONTENTS[kind]
    path = written(tmp_path / f"a{suffix}", make())
    with pytest.raises(VolumeError, match=rf"^{path}: .*({problem})"):
        read_flair(path)


@contextmanager
def at_most(peak: float) -> Iterator[None]:
    """Fails if more bytes are allocated inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("side", [400, 30000])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_dimensions_larger_than_the_file_are_refused_before_allocating(side: int, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a{suffix}", nifti(dim=[3, side, side, side, 1, 1, 1, 1]))
    with at_most(5e6), pytest.raises(VolumeError, match=rf"^{path}: .*{side}x{side}x{side} need .* bytes"):
        read_flair(path)  # the volume would need 128 MB or 54 TB


def test_a_gzip_file_that_inflates_beyond_its_header_is_not_inflated_to_the_end(tmp_path: Path) -> None:
    path = written(tmp_path / "bomb.nii.gz", nifti() + bytes(200_000_000))
    with at_most(50e6), pytest.raises(VolumeError, match=rf"^{path}: holds more"):
        read_flair(path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"dim": [4, 100, 100, 100, 100, 1, 1, 1]}, "more than one volume"),
        ({"dim": [3, 1000, 1000, 100, 1, 1, 1, 1]}, "field of view is 2000x1000x300 mm"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_large_file_that_cannot_be_used_is_refused_by_its_header_alone(
    tmp_path: Path, fields: dict[str, object], problem: str, suffix: str
) -> None:
    path = written(tmp_path / f"a{suffix}", nifti(**fields) + bytes(200_000_000))
    with at_most(5e6), pytest.raises(VolumeError, match=rf"^{path}: .*{problem}"):
        read_flair(path)


def test_a_field_of_view_is_taken_from_the_affine_that_is_used(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii", nifti(qform_code=0, pixdim=[1, 1000, 1000, 1000, 0, 0, 0, 0]))
    assert "sform is used" in read_volume(path).warnings[0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (image(DATA[0]), "2-D"),
        (image(np.stack([DATA, DATA], -1)), "more than one volume"),
        (image(DATA * np.complex64(1)), "complex"),
        (image(DATA * np.nan), "NaN"),
        (image(DATA * 0), "empty"),
        (image(qform=0, sform=0), "codes are both 0"),
        (nib.Nifti1Image(DATA, [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "sheared"),
        (nib.Nifti1Image(DATA, None, image().header), "has no affine"),
        (DATA, "ndarray was given; expected a path or a nibabel NIfTI image"),
    ],
)
def test_an_unsuitable_image_in_memory_is_an_error(given: nib.Nifti1Image, problem: str) -> None:
    with pytest.raises(VolumeError, match=problem):
        read_flair(given)


def test_forms_that_disagree_give_a_warning_and_sform_is_used(tmp_path: Path) -> None:
    volume = read_volume(written(tmp_path / "a.nii", nifti(qoffset_y=AFFINE[1, 3] + 5)))
    assert volume.warnings == ("qform and sform disagree by up to 5.0 mm; sform is used",)
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_a_sform_that_contradicts_the_voxel_size_gives_a_warning(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii", nifti(qform_code=0, pixdim=[1, 2, 1, 1, 0, 0, 0, 0]))
    assert read_volume(path).warnings == ("pixdim says voxels of 2x1x1 mm, sform of 2x1x3 mm; sform is used",)


@pytest.mark.parametrize("kind", [*GOOD, "forms that disagree", "oblique"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_like_keeps_the_grid_bit_by_bit(kind: str, dtype: type, tmp_path: Path) -> None:
    given = GOOD.get(kind, image)()
    oblique = np.eye(4)
    oblique[:3, :3] = quat2mat([0.9, 0.1, -0.2, 0.37]) * [0.71, 1.3, 2.9]
    if kind in ("forms that disagree", "oblique"):
        given.set_qform(oblique, 1)
        given.set_sform(AFFINE if kind == "forms that disagree" else oblique, 4)
    given.to_filename(tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    voxels = (DATA % 2).astype(dtype)
    volume.like(voxels, "a mask").to_filename(tmp_path / "out.nii.gz")
    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert (type(after), after.shape) == (type(before), before.shape)
    for field in GEOMETRY:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj).reshape(DATA.shape), voxels)
    assert after.get_data_dtype().newbyteorder("=") == dtype
    assert after.header["descrip"].item() == b"a mask"


def test_like_does_not_scale_its_voxels_as_the_input_was(tmp_path: Path) -> None:
    volume = read_volume(written(tmp_path / "a.nii", nifti(scl_slope=0.5, scl_inter=-3)))
    assert nib.Nifti1Image.from_bytes(volume.like(DATA, "").to_bytes()).get_fdata().tolist() == DATA.tolist()


@pytest.mark.parametrize("voxels", [(DATA > 3).astype(np.uint8), np.ones(DATA.shape, np.float32)])
def test_a_brain_mask_is_read_on_the_images_grid(voxels: np.ndarray) -> None:
    np.testing.assert_array_equal(read_brain_mask(image(voxels), read_flair(image())).data, voxels)


@pytest.mark.parametrize(
    ("voxels", "affine", "problem"),
    [
        (np.ones((2, 3, 5), np.uint8), AFFINE, "2x3x5 voxels, the given image has 2x3x4"),
        (np.ones((2, 3, 4), np.uint8), AFFINE + np.diag([0, 0, 0.5, 0]), "up to 1.5 mm from the given image"),
        (np.ones((2, 3, 4), np.uint8), AFFINE @ np.diag([-1.0, 1, 1, 1]), "resample the mask"),
        (np.zeros((2, 3, 4), np.uint8), AFFINE, "empty, no voxel is over 0.5"),
        (np.full((2, 3, 4), 0.5, np.float32), AFFINE, "empty, no voxel is over 0.5"),
    ],
)
def test_a_brain_mask_of_another_grid_or_without_brain_is_an_error(
    voxels: np.ndarray, affine: np.ndarray, problem: str, tmp_path: Path
) -> None:
    image(voxels, affine).to_filename(tmp_path / "brain.nii.gz")
    with pytest.raises(VolumeError, match=rf"brain\.nii\.gz: .*{problem}"):
        read_brain_mask(tmp_path / "brain.nii.gz", read_flair(image()))


def test_a_brain_mask_that_cannot_be_read_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"^brain mask .*brain\.nii\.gz: "):
        read_brain_mask(tmp_path / "brain.nii.gz", read_flair(image()))


def test_a_head_with_its_skull_is_noticed() -> None:
    def volume(share: float, side_mm: float) -> Volume:
        data = np.zeros((10, 10, 10), np.float32)
        data.ravel()[: round(share * 1000)] = np.arange(round(share * 1000)) + 1
        return read_flair(image(data, np.diag([side_mm, side_mm, side_mm, 1])))

    assert skull_warning(volume(0.5, 10)) is None  # 500 ml
    assert "950 ml" in (skull_warning(volume(0.95, 10)) or "")  # no background
    assert "4000 ml" in (skull_warning(volume(0.5, 20)) or "")  # no brain is that large


@pytest.mark.parametrize("qfac", [-0.25, float("inf"), 2.0])
def test_a_damaged_handedness_of_qform_is_refused_and_not_guessed(tmp_path: Path, qfac: float) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.diag([-1.0, 1, 1, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(None, 0)
    content = bytearray(image.to_bytes())
    content[76:80] = np.float32(qfac).tobytes()  # pixdim[0]
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(VolumeError, match=r"a\.nii: pixdim\[0\]"):
        read_volume(tmp_path / "a.nii")


def test_a_truncated_file_that_nibabel_opened_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.normal(size=(9, 9, 9)).astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:1500])
    with pytest.raises(VolumeError, match="the given image: the voxels cannot be read"):
        read_volume(nib.load(tmp_path / "a.nii.gz"))
