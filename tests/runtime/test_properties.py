"""What holds for any volume, and for any file that is not quite one."""

import gzip
from collections.abc import Iterable, Sequence
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat
from numpy.typing import NDArray

from lesionrt.runtime.errors import VolumeError
from lesionrt.runtime.prepare import BRAIN_QUARTILE_Z, SLICE_MIN_MAX, Preparation, prepare_volume
from lesionrt.runtime.volume import read_flair, read_volume

EXAMPLES = settings(max_examples=40, deadline=None, database=None, derandomize=True)
GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("srow_x", "srow_y", "srow_z", "pixdim", "dim", "xyzt_units")
SUFFIX = st.sampled_from([".nii", ".nii.gz"])
# Three array axes in any order along the world's, each in either direction: all 48.
SIGNED_AXES = st.sampled_from(
    [np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
)
SMALL_ANGLE = st.floats(-0.2, 0.2)  # radians


@st.composite
def images(draw: st.DrawFn, spacing_mm: st.SearchStrategy[float]) -> nib.Nifti1Image:
    """A noisy brain, one voxel of background around it, as any scanner or tool might have written it."""
    shape = draw(st.tuples(*[st.integers(8, 12)] * 3))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64]))
    data = np.zeros(shape, dtype)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    data[1:-1, 1:-1, 1:-1] = rng.integers(1, 200, [n - 2 for n in shape])
    affine = np.eye(4)
    turn = euler2mat(draw(SMALL_ANGLE), draw(SMALL_ANGLE), draw(SMALL_ANGLE))
    affine[:3, :3] = turn @ draw(SIGNED_AXES) * draw(st.tuples(*[spacing_mm] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200, width=32)] * 3))
    image = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))(data, affine)
    qform, sform = draw(st.sampled_from([(1, 1), (0, 2), (1, 0), (1, 4)]))
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    return image


PREPARATIONS = st.builds(
    Preparation, st.sampled_from([BRAIN_QUARTILE_Z, SLICE_MIN_MAX]), st.sampled_from(["SRA", "SAR", "IPL", "SLP"])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@EXAMPLES
@given(image=images(st.floats(0.5, 6)), preparation=PREPARATIONS, suffix=SUFFIX)
def test_any_volume_gets_probabilities_on_its_own_grid(
    image: nib.Nifti1Image, preparation: Preparation, suffix: str, folder: Path
) -> None:
    image.to_filename(folder / f"in{suffix}")
    volume = read_flair(folder / f"in{suffix}")
    np.testing.assert_array_equal(volume.data, image.get_fdata())
    np.testing.assert_array_equal(volume.affine, nib.load(folder / f"in{suffix}").affine)

    prepared = prepare_volume(volume, volume.data != 0, preparation, 32)
    n, height, width = prepared.brain.shape
    assert prepared.slices.shape == (n + 2, 1, height, width)
    assert (height, width) == (160, 160)  # 12 voxels of 6 mm fit
    assert np.isfinite(prepared.slices).all()

    restored = prepared.restore(np.random.default_rng(0).random((n, height, width), np.float32))
    assert restored.shape == image.shape
    assert np.isfinite(restored).all()
    assert restored.min() >= 0
    assert restored.max() <= 1

    volume.like(restored, "probability").to_filename(folder / f"out{suffix}")
    before, after = nib.load(folder / f"in{suffix}"), nib.load(folder / f"out{suffix}")
    assert after.shape == image.shape
    for field in GEOMETRY:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field


@EXAMPLES
@given(image=images(st.floats(0.991, 1.009)), preparation=PREPARATIONS)
def test_at_1_mm_certain_lesion_in_all_of_the_brain_comes_back_certain(
    image: nib.Nifti1Image, preparation: Preparation
) -> None:
    volume = read_flair(image)
    brain = volume.data != 0
    prepared = prepare_volume(volume, brain, preparation, 32)
    restored = prepared.restore(np.ones(prepared.brain.shape, np.float32))
    np.testing.assert_allclose(restored[brain], 1, atol=1e-4)
    assert (restored[~brain] == 0).all()


VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def valid(kind: str) -> bytes:
    """A small file with both forms set."""
    header = nib.Nifti1Header(endianness=">" if kind == "big-endian" else "<")
    header.set_data_dtype(np.float32 if kind == "big-endian" else np.int16)
    image = nib.Nifti1Image(VOXELS, np.diag([-1.0, 2, 3, 1]), header)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    if kind == "extension":
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    return bytes((nib.Nifti2Image.from_image(image) if kind == "nifti-2" else image).to_bytes())


KINDS = ("nifti-1", "nifti-2", "big-endian", "extension")
Damaged = Iterable[tuple[str, bytes]]  # what was done, and the content after it


def wrong_results(damaged: Damaged, path: Path, voxels: NDArray[np.int16] | None = None) -> list[str]:
    """What is neither refused as VolumeError nor read as nibabel reads it (and as `voxels`, if they are given)."""
    found = []
    for damage, content in damaged:
        path.unlink(missing_ok=True)  # overwriting would wait for the disk
        path.write_bytes(content)
        try:
            problem = _problem(path, voxels)
        except Exception as error:
            problem = repr(error)
        if problem is not None:
            found.append(f"{damage}: {problem}")
    return found


def _problem(path: Path, voxels: NDArray[np.int16] | None) -> str | None:
    try:
        volume = read_volume(path)
    except VolumeError as error:
        return None if str(error).startswith(f"{path}: ") else f"the file is not named: {error}"
    image = nib.load(path)
    if image.shape[:3] != volume.shape or set(image.shape[3:]) - {1}:
        return f"shape {volume.shape} of {image.shape}"
    if not np.array_equal(volume.affine, image.affine):
        return f"affine {volume.affine} for {image.affine}"
    expected = image.get_fdata().reshape(volume.shape).astype(np.float32)
    if not np.allclose(volume.data, expected, rtol=1e-5, atol=max(1e-44, 1e-6 * np.abs(expected).max())):
        return "other voxels than nibabel's"
    mask = type(image).from_bytes(volume.like(np.ones(volume.shape, np.uint8), "mask").to_bytes())
    if mask.shape != image.shape or not np.array_equal(mask.affine, image.affine):
        return "its mask lies on another grid"
    return None if voxels is None or np.array_equal(volume.data, voxels) else "other voxels than before"


def replaced(content: bytes, places: Iterable[int], values: Sequence[int] = ()) -> Damaged:
    """The content with one byte changed: to each of the values, and in two bits."""
    for at in places:
        for new in sorted({*values, content[at] ^ 1, content[at] ^ 0x40} - {content[at]}):
            yield f"byte {at} from {content[at]} to {new}", content[:at] + bytes([new]) + content[at + 1 :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_header_or_voxel_is_refused_or_read_as_nibabel_does(kind: str, tmp_path: Path) -> None:
    content = valid(kind)
    header = 544 if kind == "nifti-2" else 352
    values = (0, 0x80, 0xFF) if kind == "nifti-1" else ()
    damaged = replaced(content, [*range(header), *range(header, len(content), 7)], values)
    assert wrong_results(damaged, tmp_path / "a.nii") == []


def test_damage_within_gzip_is_refused_or_read_as_nibabel_does(tmp_path: Path) -> None:
    damaged = ((name, gzip.compress(content, 1)) for name, content in replaced(valid("nifti-1"), range(352)))
    assert wrong_results(damaged, tmp_path / "a.nii.gz") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_gzip_file_is_refused_or_gives_the_original_voxels(kind: str, tmp_path: Path) -> None:
    content = gzip.compress(valid(kind), mtime=0)
    assert wrong_results(replaced(content, range(len(content)), (0, 0xFF)), tmp_path / "a.nii.gz", VOXELS) == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    content = gzip.compress(valid(kind), mtime=0) if suffix == ".nii.gz" else valid(kind)
    path = tmp_path / f"a{suffix}"
    for length in range(len(content)):
        path.unlink(missing_ok=True)
        path.write_bytes(content[:length])
        with pytest.raises(VolumeError, match=f"^{path}: "):
            read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_lost_or_added_are_refused_or_harmless(kind: str, suffix: str, tmp_path: Path) -> None:
    content = gzip.compress(valid(kind), mtime=0) if suffix == ".nii.gz" else valid(kind)
    damaged = [
        (f"{lost} bytes lost at {at}", content[:at] + content[at + lost :])
        for at in range(0, len(content), 3)
        for lost in (1, 2, 16)
    ]
    damaged += [
        (f"{added!r} added at {at}", content[:at] + added + content[at:])
        for at in range(0, len(content) + 1, 5)
        for added in (b"\0", b"\1", b"\xff", bytes(16))
    ]
    assert wrong_results(damaged, tmp_path / f"a{suffix}", VOXELS if suffix == ".nii.gz" else None) == []


@EXAMPLES
@given(damage=st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=2, max_size=8), suffix=SUFFIX)
def test_a_header_damaged_in_several_places_is_refused_or_read_as_nibabel_does(
    damage: dict[int, int], suffix: str, folder: Path
) -> None:
    content = bytearray(valid("nifti-1"))
    for at, value in damage.items():
        content[at] = value
    stored = gzip.compress(content, 1) if suffix == ".nii.gz" else bytes(content)
    assert wrong_results([("", stored)], folder / f"damaged{suffix}") == []
