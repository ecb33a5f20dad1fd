"""Cross-validation: which folds there are, what is kept of an earlier run, and what the summary says."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.cli.crossval import command
from lesionrt.runtime.errors import DatasetError, Interrupted, OutputError, UsageError
from lesionrt.runtime.metrics import MEASURES
from lesionrt.runtime.phantom import phantom
from lesionrt.train import crossval, published
from lesionrt.train.crossval import (
    Fold,
    FoldResult,
    check_plan,
    plan_folds,
    read_results,
    run_fold,
    summary_csv,
    summary_json,
)
from lesionrt.train.crossval_page import crossval_page
from lesionrt.train.dataset import Scan, read_dataset
from lesionrt.train.evaluation import FIELD
from lesionrt.train.recipe import Recipe, load_recipe

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "network.growth_rate=4",
    "network.layers=2",
    "network.levels=2",
    "network.first_channels=8",
    "network.dropout=0.0",
)
FAST = (*SMALL, "slabs=1", "size=32", "epoch_steps=2", "steps=3", "warm_up=1", "precision=float32")
SETTINGS = [part for setting in FAST for part in ("--set", setting)]


def scans_of(patients: str, times: int = 1) -> list[Scan]:
    return [Scan(Path("f"), Path("m"), patient, f"{time:02d}") for patient in patients for time in range(1, times + 1)]


def names(fold: Fold) -> tuple[str, str, str]:
    return tuple(" ".join(scan.name for scan in part) for part in (fold.train, fold.validation, fold.test))  # type: ignore[return-value]


def other_scan(folder: Path, seed: int, shape: tuple[int, int, int] = (40, 44, 24)) -> Scan:
    """A phantom that is in no data set."""
    paths = [folder / f"{seed}_{what}.nii.gz" for what in ("flair", "mask")]
    for path, data in zip(paths, phantom(shape, seed), strict=True):
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), path)
    return Scan(*paths, f"other{seed}", "1")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("default", FAST)


def test_each_patient_is_the_test_once_with_all_times(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("ab", times=2), recipe, Path("out"))
    assert [names(fold) for fold in folds] == [("b_01 b_02", "", "a_01 a_02"), ("a_01 a_02", "", "b_01 b_02")]
    assert [fold.folder for fold in folds] == [Path(f"out/fc-densenet-sa-c-lstm/fold-{n}") for n in (1, 2)]


def test_the_next_patient_validates_where_the_recipe_keeps_the_best_epoch(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("abc"), replace(recipe, keep="best"), Path("out"))
    assert [names(fold) for fold in folds] == [
        ("c_01", "b_01", "a_01"),
        ("a_01", "c_01", "b_01"),
        ("b_01", "a_01", "c_01"),
    ]
    with pytest.raises(DatasetError, match=r"need 3 patients \(one tests, one validates\); the data set has 2"):
        plan_folds(scans_of("ab"), replace(recipe, keep="best"), Path("out"))


def test_the_papers_ablation_is_four_networks_on_its_folds_2_and_4(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("12345", times=4), recipe, Path("out"), "paper", ablation=True)
    assert [(fold.variant, fold.number) for fold in folds] == [
        (variant, number)
        for variant in (
            "FC-DenseNet",
            "FC-DenseNet + C-LSTM",
            "FC-DenseNet + SA",
            "FC-DenseNet + SA + C-LSTM",
        )
        for number in (2, 4)
    ]
    assert len({fold.folder for fold in folds}) == 8
    assert [fold.recipe.network.convlstm for fold in folds] == [False, False, True, True] * 2
    assert all(fold.recipe.network.growth_rate == 4 for fold in folds)


def test_folds_are_chosen_by_number_and_unknown_ones_refused(recipe: Recipe) -> None:
    assert [fold.number for fold in plan_folds(scans_of("abc"), recipe, Path("out"), numbers=[3, 1, 3])] == [1, 3]
    with pytest.raises(UsageError, match="--fold 4: expected 1 to 3"):
        plan_folds(scans_of("abc"), recipe, Path("out"), numbers=[4])
    with pytest.raises(UsageError, match="--folds random: expected patients or paper"):
        plan_folds(scans_of("abc"), recipe, Path("out"), "random")
    with pytest.raises(DatasetError, match="the paper's folds need 5 patients"):
        plan_folds(scans_of("abc"), recipe, Path("out"), "paper")


def test_a_folder_takes_more_folds_and_variants_but_no_other_recipe_or_scans(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
) -> None:
    scans, others = read_dataset(small_dataset), [other_scan(tmp_path, seed) for seed in (8, 9)]
    check_plan(plan_folds(scans, recipe, tmp_path, numbers=[1]), recipe, scans, (), tmp_path)
    check_plan(plan_folds(scans, recipe, tmp_path, ablation=True), recipe, scans, others, tmp_path)
    assert list(json.loads((tmp_path / "plan.json").read_text())["splits"]) == ["1", "2"]
    check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, (), tmp_path)
    other = load_recipe("default", (*FAST, "seed=1"))
    with pytest.raises(OutputError, match="was begun with other recipe; give another folder"):
        check_plan(plan_folds(scans, other, tmp_path), other, scans, (), tmp_path)
    check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, others[:1], tmp_path)  # none was evaluated on yet
    fold = plan_folds(scans, recipe, tmp_path)[0]
    fold.folder.mkdir(parents=True)
    (fold.folder / "evaluation-other.json").touch()
    with pytest.raises(OutputError, match="other scans to evaluate on; give another folder"):
        check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, others, tmp_path)
    swapped = [replace(scans[0], flair=scans[1].flair), *scans[1:]]  # the same names, another image
    with pytest.raises(OutputError, match="was begun with other scans; give another folder"):
        check_plan(plan_folds(swapped, recipe, tmp_path), recipe, swapped, (), tmp_path)
    gone = [replace(scans[0], mask=tmp_path / "gone.nii.gz"), *scans[1:]]
    with pytest.raises(DatasetError, match=r"gone\.nii\.gz: cannot be read"):
        check_plan(plan_folds(gone, recipe, tmp_path), recipe, gone, (), tmp_path)


def test_donors_are_part_of_what_a_folder_is_for(recipe: Recipe, small_dataset: Path, tmp_path: Path) -> None:
    scans, donors = read_dataset(small_dataset), tmp_path / "donors"
    donors.mkdir()
    masks = [other_scan(tmp_path, seed).mask for seed in (8, 9)]
    shutil.copy(masks[0], donors)
    painted = replace(recipe, donors=str(donors))
    check_plan(plan_folds(scans, painted, tmp_path), painted, scans, (), tmp_path)
    shutil.copy(masks[1], donors)
    with pytest.raises(OutputError, match="was begun with other donors; give another folder"):
        check_plan(plan_folds(scans, painted, tmp_path), painted, scans, (), tmp_path)


def test_a_data_set_to_evaluate_on_holds_none_of_the_scans_that_are_trained_on(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
) -> None:
    scans = read_dataset(small_dataset)
    others = [other_scan(tmp_path, 9), replace(scans[1], patient="x")]
    with pytest.raises(DatasetError, match=r"holds 1 images of the one that is trained on \(x_2 is a_2\)"):
        check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, others, tmp_path)
    assert not (tmp_path / "plan.json").exists()


def test_a_fold_that_cannot_be_trained_is_found_before_the_others_are(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
) -> None:
    scans = read_dataset(small_dataset)
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 44, 24), np.uint8), np.eye(4)), empty)
    scans[2] = replace(scans[2], mask=empty)
    with pytest.raises(DatasetError, match="fold 1 trains on b_1, of which no mask has a lesion"):
        check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, (), tmp_path)
    check_plan(
        plan_folds(scans, recipe, tmp_path),
        recipe,
        scans,
        (),
        tmp_path,
        plan_folds(scans, recipe, tmp_path, numbers=[2]),
    )


def test_every_scan_is_read_before_anything_is_trained(recipe: Recipe, small_dataset: Path, tmp_path: Path) -> None:
    scans = read_dataset(small_dataset)
    others = [replace(other_scan(tmp_path, 9), mask=other_scan(tmp_path, 8, (24, 24, 24)).mask)]
    with pytest.raises(DatasetError, match=r"8_mask\.nii\.gz: has 24x24x24 voxels"):
        check_plan(plan_folds(scans, recipe, tmp_path), recipe, scans, others, tmp_path)
    assert not (tmp_path / "plan.json").exists()


def test_an_interrupted_fold_continues_its_training(recipe: Recipe, small_dataset: Path, tmp_path: Path) -> None:
    scans = read_dataset(small_dataset)
    fold = plan_folds(scans, recipe, tmp_path, numbers=[2])[0]

    def stop(text: str) -> None:
        if text.startswith("epoch 1"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="fold 2: stopped, what it learned is written; the same command continues it"):
        run_fold(fold, small_dataset, tmp_path / "cache", say=stop)
    assert read_results([fold]) == []
    said: list[str] = []
    run_fold(fold, small_dataset, tmp_path / "cache", say=said.append)
    assert said[0] == "training continues"
    assert [text.split(":")[0] for text in said if text.startswith("epoch")] == ["epoch 2, step 3 of 3"]
    assert [result.own["scans"][0]["name"] for result in read_results([fold])] == ["b_1"]


def test_a_signal_during_the_last_step_stops_before_the_evaluation(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
) -> None:
    fold = plan_folds(read_dataset(small_dataset), recipe, tmp_path, numbers=[2])[0]

    def stop(text: str) -> None:
        if "step 3 of 3" in text:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="fold 2: stopped, what it learned is written"):
        run_fold(fold, small_dataset, tmp_path / "cache", say=stop)
    assert (fold.folder / "checkpoint.pt").exists()
    assert read_results([fold]) == []


def test_the_same_command_again_keeps_what_is_finished(run: Run, small_dataset: Path, tmp_path: Path) -> None:
    command = ("crossval", small_dataset, "-o", tmp_path / "out", "--fold", "2", *SETTINGS)
    first = run(*command)
    assert "FC-DenseNet + SA + C-LSTM: 1 folds, whole volumes: mean Dice 0." in first.stdout
    fold = tmp_path / "out/fc-densenet-sa-c-lstm/fold-2"
    before = {path: path.stat().st_mtime_ns for path in fold.iterdir()}
    other = other_scan(tmp_path, 9)
    (tmp_path / "other.csv").write_text(f"flair,mask,patient,time\n{other.flair},{other.mask},b,1\n")
    second = run(*command, "--evaluate-on", tmp_path / "other.csv")
    assert "training" not in second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in fold.iterdir()} - {path.name for path in before} == {
        f"evaluation-other.{ending}" for ending in ("json", "csv", "html")
    }
    with (tmp_path / "out/crossval.csv").open() as file:
        found = [(row["fold"], row["of"], row["scan"]) for row in csv.DictReader(file)]
    assert found == [("2", "evaluation", "b_1"), ("2", "evaluation-other", "b_1")]


def result(fold: Fold, dice: float, other: float | None = None) -> FoldResult:
    """A finished fold whose every measure is the same number."""
    group = dict.fromkeys(MEASURES, dice)
    scan = {"lesion_slices": group, "whole_volume": group, "field": dict.fromkeys(FIELD, dice), "name": "t"}
    summary = {
        name: {key: {"mean": value, "sd": None, "n": 1} for key, value in scan[name].items()}  # type: ignore[union-attr]
        for name in ("lesion_slices", "whole_volume", "field")
    }
    away: dict[str, Any] | None = None
    if other is not None:
        away = {
            "scans": [
                {
                    **scan,
                    "name": "away",
                    "lesion_slices": {**group, "dice": other},
                    "whole_volume": {**group, "dice": other - 0.2},
                }
            ],
            "summary": summary,
        }
    return FoldResult(fold, {"scans": [scan], "summary": summary}, away)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"scans": [], "summary": {}}', '{"scans": [{}], "summary": null}'])
def test_a_damaged_fold_is_named_with_what_to_do(recipe: Recipe, tmp_path: Path, text: str) -> None:
    fold = plan_folds(scans_of("ab"), recipe, tmp_path)[0]
    path = fold.folder / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result(fold, 0.5).own))
    assert read_results([fold])[0].mean("field", "lesion_f1") == 0.5
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"evaluation\.json: .*remove it to evaluate the fold again"):
        read_results([fold])


@pytest.fixture
def finish(monkeypatch: pytest.MonkeyPatch) -> list[Fold]:
    """The folds that the command would have trained: each is given a result at once."""
    asked: list[Fold] = []

    def finished(fold: Fold, *_: object) -> None:
        asked.append(fold)
        fold.folder.mkdir(parents=True, exist_ok=True)
        (fold.folder / "evaluation.json").write_text(json.dumps(result(fold, fold.number / 10).own))

    monkeypatch.setattr(crossval, "run_fold", finished)
    return asked


def test_one_fold_more_is_summarised_with_those_that_were_finished(
    small_dataset: Path, tmp_path: Path, finish: list[Fold]
) -> None:
    command(small_dataset, tmp_path, settings=list(FAST), fold=[2])
    assert "1 of 2 trainings are not finished" in (tmp_path / "crossval.html").read_text()
    command(small_dataset, tmp_path, settings=list(FAST), fold=[1])
    assert "not finished" not in (tmp_path / "crossval.html").read_text()
    (variant,) = json.loads((tmp_path / "crossval.json").read_text())["variants"]
    assert [fold["fold"] for fold in variant["folds"]] == [1, 2]
    assert variant["summary"]["whole_volume"]["dice"]["mean"] == pytest.approx(0.15)
    command(small_dataset, tmp_path, settings=list(FAST), fold=[1], ablation=True, evaluate_on=None)
    assert "3 of 8 trainings are not finished" in (tmp_path / "crossval.html").read_text()
    assert len(finish) == 2 + 4


def test_a_patient_of_the_split_test_is_not_trained_on(small_dataset: Path, tmp_path: Path) -> None:
    one, two, _ = read_dataset(small_dataset)
    rows = [f"{one.flair},{one.mask},a,1,", f"{two.flair},{two.mask},a,2,test"]
    (tmp_path / "scans.csv").write_text("\n".join(["flair,mask,patient,time,split", *rows]))
    with pytest.raises(DatasetError, match="patient a stands in train and test"):
        command(tmp_path / "scans.csv", tmp_path / "out", settings=list(FAST))


def test_scans_of_the_split_test_are_left_out(
    small_dataset: Path, tmp_path: Path, finish: list[Fold], capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [*read_dataset(small_dataset), replace(read_dataset(small_dataset)[0], patient="c", split="test")]
    rows = [f"{scan.flair},{scan.mask},{scan.patient},{scan.time},{scan.split or ''}" for scan in scans]
    (tmp_path / "scans.csv").write_text("\n".join(["flair,mask,patient,time,split", *rows]))
    command(tmp_path / "scans.csv", tmp_path / "out", settings=list(FAST))
    assert [names(fold) for fold in finish] == [("b_1", "", "a_1 a_2"), ("a_1 a_2", "", "b_1")]
    assert "note: 1 scans of the split test are left out: c_1" in capsys.readouterr().err


def rows_of(text: str, kind: str) -> list[list[str]]:
    """Cells of a page's table rows of one kind."""
    rows = re.findall(rf"<tr class='{kind}'>(.*?)</tr>", text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", cells) for cells in rows]


def test_the_summary_holds_mean_and_deviation_over_folds(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("abc"), recipe, Path("out"))
    results = [result(fold, dice, 0.3) for fold, dice in zip(folds, (0.5, 0.6, 0.7), strict=True)]
    document = json.loads(summary_json(Path("scans.csv"), recipe, results))
    assert document["variants"][0]["summary"]["whole_volume"]["dice"] == {"mean": 0.6, "sd": 0.1, "n": 3}
    assert [fold["test"] for fold in document["variants"][0]["folds"]] == [["a_01"], ["b_01"], ["c_01"]]
    assert len(summary_csv(results).splitlines()) == 1 + 3 * 2


def test_the_page_sets_the_papers_tables_beside_ours_and_says_whose_they_are(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("12345", times=4), recipe, Path("out"), "paper", ablation=True)
    results = [result(fold, 0.5 + number / 100, 0.4) for number, fold in enumerate(folds)]
    slices = [(10, 2, 1)] * 5
    text = crossval_page(Path("scans"), folds, results, papers=True, slices=slices)
    ours, papers = rows_of(text, "scan"), rows_of(text, "paper")
    assert ["FC-DenseNet + C-LSTM", "0.5200", "0.5300", "0.5250"] in ours
    assert ["paper, FC-DenseNet + C-LSTM", "0.8639", "0.7794", "0.8216"] in papers  # Table 5
    assert ["paper, fold 4", "0.7954", "0.6869", "0.5537"] in papers  # Table 4
    assert ["paper, fold 5", "1111", "225", "50"] in papers
    assert ["paper, mean ± SD", "", *published.FOLDS_MEAN.values()] in papers  # Table 2
    others = [cells for cells in rows_of(text, "mean") if len(cells) == 2]
    assert others == [["mean over folds", "0.4000"], ["mean over folds", "0.2000"]] * 4  # the paper's way first
    assert not any(cells[0].startswith("paper") for cells in ours)
    assert (
        sum(cells[0] == "paper, mean ± SD" and len(cells) == 10 for cells in papers) == 1
    )  # for its own network alone
    assert text.count("they are not ours") == 1 + 1 + 4  # Tables 5, 2 and 4
    assert "not finished" not in text


def test_networks_are_compared_over_the_folds_that_all_of_them_have(recipe: Recipe) -> None:
    full = plan_folds(scans_of("12345", times=4), recipe, Path("out"), "paper")
    ablation = plan_folds(scans_of("12345", times=4), recipe, Path("out"), "paper", ablation=True)
    others = [fold for fold in ablation if fold.variant != full[0].variant]
    easy = {1: 0.9, 2: 0.5, 3: 0.9, 4: 0.5, 5: 0.9}  # folds, for every network alike
    results = [result(fold, easy[fold.number]) for fold in (*full, *others)]
    text = crossval_page(Path("scans"), [*full, *others], results, papers=True)
    assert "Mean of folds 2, 4" in text
    assert [cells[-1] for cells in rows_of(text, "scan") if cells[0].startswith("FC-DenseNet")] == ["0.5000"] * 4


def test_the_papers_folds_stand_in_no_column_of_other_folds(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("ab"), recipe, Path("out"), ablation=True)
    text = crossval_page(Path("scans"), folds, [result(fold, 0.5) for fold in folds], papers=False)
    assert ["paper, FC-DenseNet (its folds 2 and 4)", "", "", "0.8432"] in rows_of(text, "paper")
    assert len(rows_of(text, "paper")) == 4


def test_the_page_says_what_is_not_finished(recipe: Recipe) -> None:
    folds = plan_folds(scans_of("abc"), recipe, Path("out"))
    text = crossval_page(Path("scans"), folds, [result(folds[0], 0.5)], papers=False)
    assert "2 of 3 trainings are not finished" in text
    assert rows_of(text, "paper") == []
