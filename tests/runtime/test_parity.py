"""When two computations of the same probabilities agree."""

import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lesionrt.runtime.errors import InputError
from lesionrt.runtime.parity import (
    EXPORT_TOLERANCES,
    TOLERANCES,
    Comparison,
    Reference,
    Tolerance,
    compare,
    load_reference,
    save_reference,
    summary_lines,
)

NAN = math.nan
Run = Callable[..., subprocess.CompletedProcess[str]]


def stack(*values: float) -> np.ndarray:
    return np.array([[values]], np.float32)


def comparison(**changed: float) -> Comparison:
    """Two computations that agree but for three voxels, and for what is named."""
    same = Comparison((1, 1, 1), 0.0, 0.0, 0.0, 1.0, 3, 10_000, 1, 1, 1.0, 1.0)
    return replace(same, **changed)


def over(bound: float) -> float:
    return float(np.nextafter(bound, math.inf))


def test_differences_and_masks_are_compared() -> None:
    # In eighths, exact in float32. Masks over 0.5: 1 1 0 0 0 0 1 and 1 0 1 0 0 0 1.
    reference = stack(0.75, 0.625, 0.5, 0.25, 0.0, 0.0, 1.0)
    candidate = stack(0.75, 0.5, 0.625, 0.25, 0.25, 0.0, 0.875)
    found = compare(reference, candidate, 0.5, voxel_mm3=8.0)
    assert found.shape == (1, 1, 7)
    assert found.max_difference == 0.25
    assert found.mean_difference == pytest.approx((0.125 * 3 + 0.25) / 7)
    assert found.dice == 2 * 2 / (3 + 3)
    assert found.flipped_voxels == 2
    assert (found.reference_voxels, found.reference_lesions, found.candidate_lesions) == (3, 2, 3)
    assert (found.reference_ml, found.candidate_ml) == (3 * 8 / 1000, 3 * 8 / 1000)


def test_percentile_leaves_out_one_voxel_in_a_thousand() -> None:
    reference, candidate = np.zeros((2, 1, 1, 1001), np.float32)
    candidate[0, 0, 7] = 0.5  # of 1001 sorted differences the 99.9th percentile is the second largest
    assert compare(reference, candidate, 0.5).percentile_difference == pytest.approx(0, abs=1e-12)
    candidate[0, 0, 9] = 0.25
    assert compare(reference, candidate, 0.5).percentile_difference == pytest.approx(0.25)


def test_empty_masks_agree_and_disjoint_ones_do_not() -> None:
    assert compare(stack(0.1, 0.5), stack(0.2, 0.4), 0.5).dice == 1
    assert compare(stack(0.9, 0.1), stack(0.1, 0.9), 0.5).dice == 0
    assert compare(stack(0.9, 0.1), stack(0.1, 0.1), 0.5).dice == 0


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    cube = np.zeros((2, 2, 2), np.float32)
    cube[0, 0, 0] = cube[1, 1, 1] = 1
    assert compare(cube, cube, 0.5).reference_lesions == 1


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 1, 3\).*\(1, 1, 2\)"):
        compare(stack(0, 0), stack(0, 0, 0), 0.5)


TOLERANCE = Tolerance(maximum=0.25, percentile=0.125, dice=0.75, flipped_share=0.01)


@pytest.mark.parametrize(
    ("name", "at", "beyond"),
    [
        ("max_difference", 0.25, over(0.25)),
        ("percentile_difference", 0.125, over(0.125)),
        ("dice", 0.75, float(np.nextafter(0.75, 0))),
        ("flipped_voxels", 100, 101),  # 1 % of 10,000
    ],
)
def test_bound_itself_is_within_tolerance_and_beyond_it_is_not(name: str, at: float, beyond: float) -> None:
    assert comparison(**{name: at}).findings(TOLERANCE, masks=True) == []
    assert len(comparison(**{name: beyond}).findings(TOLERANCE, masks=True)) == 1
    assert len(comparison(**{name: beyond}).findings(TOLERANCE, masks=False)) == (name.endswith("_difference"))


@pytest.mark.parametrize("name", ["max_difference", "percentile_difference", "dice"])
def test_a_number_that_is_none_fails(name: str) -> None:
    assert len(comparison(**{name: NAN}).findings(TOLERANCE, masks=True)) == 1


@pytest.mark.parametrize(("reference", "candidate"), [(stack(0.1, NAN), stack(0.1, 0.2)), (stack(0.1), stack(NAN))])
def test_nan_on_either_side_fails_in_every_precision(reference: np.ndarray, candidate: np.ndarray) -> None:
    found = compare(reference, candidate, 0.5)
    assert all(found.findings(tolerance, masks=False) for tolerance in TOLERANCES.values())


def test_all_findings_are_reported() -> None:
    found = comparison(max_difference=1.0, percentile_difference=1.0, dice=0.0, flipped_voxels=1000)
    assert [finding.split()[0] for finding in found.findings(TOLERANCE, masks=True)] == [
        "maximum",
        "99.9th",
        "mask",
        "1000",
    ]


@pytest.mark.parametrize(("flipped", "judged"), [(2, False), (3, True)])
def test_dice_is_not_asked_for_where_two_voxels_flip(flipped: int, judged: bool) -> None:
    found = comparison(dice=0.99854, flipped_voxels=flipped, reference_voxels=344).findings(TOLERANCES["fp16"], True)
    assert any("Dice" in text for text in found) == judged


def test_maximum_may_be_unbound() -> None:
    tolerance = Tolerance(maximum=None, percentile=0.125)
    assert comparison(max_difference=1.0).findings(tolerance, masks=True) == []


@pytest.mark.parametrize(
    ("precision", "mask", "allowed"),
    [
        *(("fp32", 0, 2), ("fp32", 1000, 2), ("fp32", 1499, 2), ("fp32", 1500, 3), ("fp32", 50_000, 100)),
        *(("bf16", 0, 2), ("bf16", 100, 2), ("bf16", 149, 2), ("bf16", 150, 3), ("bf16", 5_000, 100)),
    ],
)
def test_two_voxels_or_a_share_of_the_mask_may_flip(precision: str, mask: int, allowed: int) -> None:
    tolerance = TOLERANCES[precision]
    assert comparison(reference_voxels=mask, flipped_voxels=allowed).findings(tolerance, masks=True) == []
    findings = comparison(reference_voxels=mask, flipped_voxels=allowed + 1).findings(tolerance, masks=True)
    assert findings == [f"{allowed + 1} voxels of the mask flipped, at most {allowed} may"]


def test_tolerances_are_those_that_are_promised() -> None:
    promised = {
        "fp32": Tolerance(maximum=1e-3, percentile=1e-4, dice=0.999, flipped_share=0.002),
        "tf32": Tolerance(maximum=None, percentile=1e-2, dice=0.999, flipped_share=0.002),
        "fp16": Tolerance(maximum=None, percentile=1e-2, dice=0.999, flipped_share=0.002),
        "bf16": Tolerance(maximum=None, percentile=5e-2, dice=0.99, flipped_share=0.02),
    }
    at_export = {**promised, "fp32": Tolerance(maximum=1e-4, percentile=1e-4, dice=0.999, flipped_share=0.002)}
    assert promised == TOLERANCES
    assert at_export == EXPORT_TOLERANCES


def test_values_that_are_given_replace_those_of_a_tolerance() -> None:
    changed = TOLERANCE.replaced(maximum=0.0, percentile=None, dice=0.5)
    assert changed == Tolerance(maximum=0.0, percentile=0.125, dice=0.5, flipped_share=0.01)


@pytest.mark.parametrize(
    ("counted", "dice", "flipped"),
    [
        (True, "at least 0.75 where more than 2 voxels flip", "at most max(2, 1.00%)"),
        (False, *2 * ["not judged: an untrained model, or the first of the slices alone"]),
    ],
)
def test_the_summary_names_every_tolerance(counted: bool, dice: str, flipped: str) -> None:
    row = {"precision": "fp32", "backend": "cpu", "library": "a library", "what": "slices", "masks_count": counted}
    row |= {"tolerance": asdict(TOLERANCE), "comparison": comparison().as_dict(), "notes": []}
    assert summary_lines([row]) == [
        "fp32 on cpu (a library), slices: maximum difference 0 (at most 0.25), 99.9th percentile 0 (at most 0.125), "
        f"mask Dice 1.00000 ({dice}), flipped voxels 3 of 10000 ({flipped})"
    ]


@pytest.fixture
def reference() -> Reference:
    slices = np.arange(4 * 2 * 3, dtype=np.float32).reshape(4, 1, 2, 3)
    return Reference(slices, slices[1:-1, 0] / 100, "0123abcd", "hand-made slices")


def test_reference_file_gives_back_what_was_saved(reference: Reference, tmp_path: Path) -> None:
    save_reference(reference, tmp_path / "new/reference.npz")
    loaded = load_reference(tmp_path / "new/reference.npz")
    np.testing.assert_array_equal(loaded.slices, reference.slices)
    np.testing.assert_array_equal(loaded.lesion, reference.lesion)
    assert (loaded.checkpoint_sha256, loaded.source) == ("0123abcd", "hand-made slices")


@pytest.mark.parametrize(
    "changed",
    [
        {"slices": np.zeros((4, 2, 3), np.float32)},
        {"slices": np.zeros((4, 3, 2, 3), np.float32)},
        {"lesion": np.zeros((4, 2, 3), np.float32)},
        {"lesion": np.zeros((2, 2, 4), np.float32)},
        {"lesion": np.zeros((2, 2, 3), np.float64)},
        {"slices": np.zeros((4, 1, 2, 3), np.int16)},
        {"slices": np.zeros((2, 1, 2, 3), np.float32), "lesion": np.zeros((0, 2, 3), np.float32)},
        {"slices": np.zeros((4, 1, 0, 3), np.float32), "lesion": np.zeros((2, 0, 3), np.float32)},
        {"slices": np.array("text"), "lesion": np.array("text")},
    ],
)
def test_reference_of_other_shape_or_type_is_refused(
    reference: Reference, tmp_path: Path, changed: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **{**vars(reference), **changed})
    with pytest.raises(InputError, match=r"reference\.npz: holds slices .* expected \(n \+ 2, 1, H, W\)"):
        load_reference(path)


@pytest.mark.parametrize("name", ["slices", "lesion", "checkpoint_sha256", "source"])
def test_reference_without_one_of_its_arrays_is_refused(reference: Reference, tmp_path: Path, name: str) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **{key: value for key, value in vars(reference).items() if key != name})
    with pytest.raises(InputError, match=rf"reference\.npz: not a reference file .*{name}"):
        load_reference(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x04N.", "array", "objects", "folder", None])
def test_what_is_no_reference_file_is_refused(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "reference.npz"
    if content == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif content == "objects":
        np.savez(path, slices=np.array([{"code": "to run"}], object), lesion=0, checkpoint_sha256="", source="")
    elif content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(
        InputError, match="no such file" if content is None else r"reference\.npz: not a reference file"
    ):
        load_reference(path)


def test_damaged_reference_file_gives_the_same_values_or_an_error(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    save_reference(reference, path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 29)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = load_reference(path)
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(loaded.slices, reference.slices)
            np.testing.assert_array_equal(loaded.lesion, reference.lesion)
    assert refused > len(damaged) / 2


def test_verify_notes_that_the_reference_is_of_another_checkpoint(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    from lesionrt.train.checkpoint import save_checkpoint
    from lesionrt.train.model import NetworkConfig
    from lesionrt.train.untrained import untrained_checkpoint

    config = NetworkConfig(growth_rate=4, layers=1, levels=2, first_channels=8)
    save_checkpoint(untrained_checkpoint(config, seed=1), tmp_path / "other.pt")
    result = run("verify", tiny_bundle, "--reference", tmp_path / "other.pt", "--json", code=5)
    for row in json.loads(result.stdout)["results"]:
        assert row["findings"]
        assert any("another checkpoint" in note for note in row["notes"])


def test_verify_refuses_slices_that_do_not_fit_the_network(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    arrays = {"slices": np.zeros((3, 1, 10, 12), np.float32), "lesion": np.zeros((1, 10, 12), np.float32)}
    np.savez(tmp_path / "ten.npz", **arrays, checkpoint_sha256="", source="")
    assert "multiple" in run("verify", tiny_bundle, "--reference", tmp_path / "ten.npz", code=3).stderr


def test_verify_fails_on_nan_and_says_so_in_valid_json(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    arrays = {"slices": np.zeros((3, 1, 8, 12), np.float32), "lesion": np.full((1, 8, 12), np.nan, np.float32)}
    np.savez(tmp_path / "nan.npz", **arrays, checkpoint_sha256="", source="")
    result = run("verify", tiny_bundle, "--reference", tmp_path / "nan.npz", "--json", code=5)
    assert not re.search(r"\b(NaN|Infinity)\b", result.stdout), "not JSON (RFC 8259)"
    assert all(row["findings"] for row in json.loads(result.stdout)["results"])
