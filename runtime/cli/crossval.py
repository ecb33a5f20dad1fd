"""`lesionrt crossval`."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import DatasetArgument, RecipeOption, SettingsOption, given_path, needs


def command(
    dataset: DatasetArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for all folds.", parser=given_path, show_default=False)
    ],
    recipe: RecipeOption = "default",
    settings: SettingsOption = None,
    folds: Annotated[
        str, typer.Option(help="patients: each is the test once; paper: the paper's five of ISBI 2015.")
    ] = "patients",
    fold: Annotated[
        list[int] | None, typer.Option(help="Only this fold, from 1; may be repeated.", show_default="all")
    ] = None,
    ablation: Annotated[bool, typer.Option("--ablation", help="The four networks of the paper's Table 5.")] = False,
    evaluate_on: Annotated[
        Path | None,
        typer.Option(
            help="Another data set, on which every fold's model is evaluated too (Table 4).", parser=given_path
        ),
    ] = None,
) -> None:
    """Train and evaluate every fold. The same command again continues where it stopped, and keeps what is finished."""
    from lesionrt.runtime.errors import DatasetError, UsageError
    from lesionrt.runtime.files import write_atomically
    from lesionrt.train.dataset import lesion_slices, paper_folds, read_dataset

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("crossval runs in one process; run `lesionrt train` with torchrun for each fold instead")
    with needs("train"):
        import matplotlib  # noqa: F401 (what a history is drawn with, and would be missed after an epoch only)

        from lesionrt.train import crossval
        from lesionrt.train.check import fold_lines, fold_slices, patients_in_two_splits
        from lesionrt.train.crossval_page import crossval_page
        from lesionrt.train.recipe import load_recipe
        from lesionrt.train.training import check_donors

    resolved = load_recipe(recipe, settings or ())
    table = read_dataset(dataset)
    scans = [scan for scan in table if scan.split != "test"]
    left_out = [scan for scan in table if scan.split == "test"]
    parts = [replace(scan, split="test" if scan.split == "test" else "train") for scan in table]
    for finding in patients_in_two_splits(parts):
        raise DatasetError(f"{dataset}: {finding}")
    if left_out:
        named = ", ".join(scan.name for scan in left_out)
        print(f"note: {len(left_out)} scans of the split test are left out: {named}", file=sys.stderr)
    other = None if evaluate_on is None else (evaluate_on, read_dataset(evaluate_on))
    planned = crossval.plan_folds(scans, resolved, out, folds, fold or (), ablation)
    slices = None
    if folds == "paper":
        slices = fold_slices(paper_folds(scans), {scan.name: lesion_slices(scan) for scan in scans})
        print("\n".join(fold_lines(slices)), file=sys.stderr)
    whole = crossval.folds_of_folder(planned, scans, resolved, out, folds, ablation)
    held = {scan.name: scan for fold in planned for scan in (*fold.test, *fold.validation)}
    check_donors(resolved, [*held.values(), *left_out, *(other[1] if other else ())])
    crossval.check_plan(whole, resolved, scans, other[1] if other else (), out, planned)
    crossval.read_results(whole)  # a damaged one is told before hours of training
    for number, one in enumerate(planned, 1):
        before = f"[{number}/{len(planned)}] {one.variant}, fold {one.number}: "

        def say(text: str, before: str = before) -> None:
            print(before + text, file=sys.stderr, flush=True)

        crossval.run_fold(one, dataset, out / "cache", other, say, left_out)
        results = crossval.read_results(whole)
        content = {
            "json": crossval.summary_json(dataset, resolved, results),
            "csv": crossval.summary_csv(results),
            "html": crossval_page(dataset, whole, results, folds == "paper", slices),
        }
        targets = {ending: out / f"{crossval.SUMMARY}.{ending}" for ending in content}
        write_atomically({targets[ending]: text.encode() for ending, text in content.items()})
    for name, found in crossval.by_variant(results).items():
        dice = [result.mean("whole_volume", "dice") for result in found]
        print(f"{name}: {len(found)} folds, whole volumes: mean Dice {sum(dice) / len(dice):.4f}")
    for ending, path in targets.items():
        print(f"  {ending:<6}{path}")
