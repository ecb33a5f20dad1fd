"""What is held out stays so: of images, masks and figures."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lesionrt.runtime.errors import DatasetError
from lesionrt.runtime.volume import read_flair
from lesionrt.train.augment import Lesions, read_lesions
from lesionrt.train.cache import load_scan
from lesionrt.train.checkpoint import load_checkpoint, save_checkpoint
from lesionrt.train.dataset import Scan, read_dataset, voxels_sha256
from lesionrt.train.evaluation import CHOSEN_ON, TRAINED_ON, evaluate
from lesionrt.train.inference import CheckpointModel
from lesionrt.train.recipe import load_recipe
from lesionrt.train.run import Run
from lesionrt.train.training import _same, train
from lesionrt.train.validation import validate

SMALL = ["network.growth_rate=4", "network.layers=1", "network.levels=1", "network.first_channels=4"]
FAST = [*SMALL, "slabs=2", "size=16", "epoch_steps=1", "steps=1", "warm_up=1", "precision=float32"]


@pytest.fixture
def scans(small_dataset: Path) -> list[Scan]:
    """a at two times, b at one."""
    return read_dataset(small_dataset)


def test_one_image_under_two_names_does_not_train_and_test(scans: list[Scan], tmp_path: Path) -> None:
    again = replace(scans[0], patient="somebody else")
    for held in ({"validation_scans": [again]}, {"validation_scans": [], "left_out": [again]}):
        with pytest.raises(DatasetError, match=r"somebody else_1 and a_1 are the same image"):
            train(load_recipe("default", FAST), scans, out=tmp_path / "run", **held)
    assert not (tmp_path / "run").exists()


def test_an_image_is_known_again_however_its_file_is_packed_and_turned(scans: list[Scan], tmp_path: Path) -> None:
    paths = [tmp_path / "flair.nii", tmp_path / "mask.nii"]
    for path, source in zip(paths, (scans[0].flair, scans[0].mask), strict=True):
        nib.save(nib.load(source).as_reoriented([[0, -1], [1, 1], [2, 1]]), path)
    assert voxels_sha256(read_flair(paths[0])) == voxels_sha256(read_flair(scans[0].flair))
    again = Scan(*paths, "somebody else", "1")
    with pytest.raises(DatasetError, match=r"somebody else_1 and a_1 are the same image"):
        train(load_recipe("default", FAST), scans, [], tmp_path / "run", left_out=[again])


def test_scans_that_the_model_learned_from_are_marked_where_it_is_evaluated(scans: list[Scan], tmp_path: Path) -> None:
    checkpoint = train(load_recipe("default", FAST), scans[:1], [], tmp_path / "run")
    with CheckpointModel(checkpoint) as model:
        found = evaluate(tmp_path, scans, model)
    marked = [any(text.startswith(TRAINED_ON) for text in scan.warnings) for scan in found.scans]
    assert marked == [True, True, False]  # a's other time as well


def test_it_says_what_it_started_from_where_figures_of_others_are_wanted(scans: list[Scan], tmp_path: Path) -> None:
    first = train(load_recipe("default", FAST), scans[2:], [], tmp_path / "first")
    said: list[str] = []
    train(load_recipe("default", FAST), scans[:1], scans[2:], tmp_path / "on", say=said.append, start=first)
    assert any("first was trained on b_1: if that holds people who validate" in line for line in said)


def test_a_validation_scan_without_lesions_gives_no_loss_of_its_own(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("paper", [*SMALL, "batch=8", "cross_entropy=1"])
    run = Run(recipe, tmp_path, 0, 1, torch.device("cpu"))
    how = (recipe, run.device, run._autocast())
    held = load_scan(scans[0], recipe.preparation, recipe.network.size_multiple, tmp_path / "cache")
    empty = replace(held, lesions=np.zeros_like(held.lesions))
    assert validate(run.result, [held, empty], *how) == validate(run.result, [held], *how)


def test_scans_that_chose_the_models_epoch_are_marked_where_it_is_evaluated(
    scans: list[Scan], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    known = load_checkpoint(tiny_checkpoint)
    model = replace(known.model, training_data="x_1; epoch chosen on b_1")
    save_checkpoint(replace(known, model=model), tmp_path / "chosen.pt")
    with CheckpointModel(tmp_path / "chosen.pt") as predictor:
        found = evaluate(tmp_path, scans, predictor)
    assert [any(text.startswith(CHOSEN_ON) for text in scan.warnings) for scan in found.scans] == [False, False, True]


def test_a_mask_in_thick_slices_lies_where_the_same_one_in_thin_slices_does(tmp_path: Path) -> None:
    thin, thick = np.zeros((10, 10, 30), np.uint8), np.zeros((10, 10, 10), np.uint8)
    thin[3:6, 3:6, 9:15] = 1
    thick[3:6, 3:6, 3:5] = 1  # the same 6 mm
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[2, 3] = 1.0  # the centre of the first three thin ones
    nib.save(nib.Nifti1Image(thin, np.eye(4)), tmp_path / "thin.nii.gz")
    nib.save(nib.Nifti1Image(thick, affine), tmp_path / "thick.nii.gz")
    one, other = (
        read_lesions(tmp_path / f"{name}.nii.gz", load_recipe("default").preparation) for name in ("thin", "thick")
    )
    np.testing.assert_allclose(one.start_mm, other.start_mm)
    assert _same(one, other)


def test_a_mask_is_known_again_though_it_was_cropped_or_touched_up() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[8:12, 8:12, 8:12] = True
    touched, elsewhere = mask.copy(), np.roll(mask, 2, axis=1)
    touched[12, 8, 8] = True
    here = np.zeros(3)
    whole = Lesions(mask, here)
    assert all(
        _same(whole, other) for other in (whole, Lesions(touched, here), Lesions(mask[5:], np.array([5.0, 0, 0])))
    )
    # Another place, another part of the body, and no lesions at all.
    for other in (Lesions(elsewhere, here), Lesions(mask, here + 30), Lesions(mask & False, here)):
        assert not _same(whole, other)
