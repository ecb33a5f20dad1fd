"""Cross-validation: train and evaluate on every fold, with what was finished before kept."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from lesionrt.runtime.errors import DatasetError, Interrupted, OutputError, UsageError
from lesionrt.runtime.files import sha256, write_atomically
from lesionrt.runtime.metrics import MEASURES, summarise
from lesionrt.train import published
from lesionrt.train.cache import contents
from lesionrt.train.dataset import Scan, paper_folds, patient_folds, read_pair, voxels_sha256
from lesionrt.train.evaluation import FIELD, GROUPS, evaluate, plain
from lesionrt.train.evaluation_page import evaluation_page
from lesionrt.train.inference import CheckpointModel
from lesionrt.train.recipe import Recipe
from lesionrt.train.run import CHECKPOINT, RUN
from lesionrt.train.training import donor_masks, train

SCHEMA = 1  # of the summary
PLAN, SUMMARY = "plan.json", "crossval"
OWN, OTHER = "evaluation", "evaluation-other"  # a fold's evaluations: of its test scans, and of another data set
FOLDS = ("patients", "paper")
Say = Callable[[str], None]
Split = Mapping[str, Sequence[Scan]]


@dataclass(frozen=True)
class Fold:
    """One training with its test.

    Attributes
    ----------
    number
        From 1, in the data set's order.
    recipe
        With the variant's network.
    folder
        Where everything of it lies.
    """

    number: int
    recipe: Recipe
    train: Sequence[Scan]
    validation: Sequence[Scan]
    test: Sequence[Scan]
    folder: Path

    @property
    def variant(self) -> str:
        """Of the network, as the paper's Table 5 names it."""
        return published.variant_name(self.recipe.network.attention, self.recipe.network.convlstm)


def plan_folds(
    scans: Sequence[Scan],
    recipe: Recipe,
    out: Path,
    kind: str = "patients",
    numbers: Sequence[int] = (),
    ablation: bool = False,
) -> list[Fold]:
    """What is to be trained and tested.

    Parameters
    ----------
    scans
        The data set.
    recipe
        For every fold.
    out
        The folder for all of it.
    kind
        ``patients``: each patient is the test once; if the recipe keeps the best epoch, the next patient validates.
        ``paper``: the paper's five folds of the ISBI 2015 data.
    numbers
        Which folds; all if there are none, and for the paper's ablation its folds 2 and 4.
    ablation
        Train the four networks of the paper's Table 5 and not only the recipe's.

    Raises
    ------
    DatasetError
        If the data set does not have these folds.
    UsageError
        If there is no such kind of folds or no fold of a number.
    """
    if kind not in FOLDS:
        raise UsageError(f"--folds {kind}: expected {' or '.join(FOLDS)}")
    splits = list(paper_folds(scans) if kind == "paper" else _folds_by_patient(scans, recipe.keep == "best"))
    unknown = [number for number in numbers if not 1 <= number <= len(splits)]
    if unknown:
        raise UsageError(f"--fold {unknown[0]}: expected 1 to {len(splits)}")
    chosen: Sequence[int] = sorted(set(numbers)) or range(1, len(splits) + 1)
    if ablation and kind == "paper" and not numbers:
        chosen = published.ABLATION_FOLDS
    network = recipe.network
    variants = list(published.ABLATION) if ablation else [(network.attention, network.convlstm)]
    return [
        _fold(number, splits[number - 1], recipe, attention, convlstm, out)
        for attention, convlstm in variants
        for number in chosen
    ]


def folds_of_folder(
    planned: Sequence[Fold], scans: Sequence[Scan], recipe: Recipe, out: Path, kind: str, ablation: bool
) -> list[Fold]:
    """What a summary is about: every fold of the kind, whichever of them are `planned` now, and all that were finished before."""
    folders = {fold.folder for fold in (*planned, *plan_folds(scans, recipe, out, kind, ablation=ablation))}
    numbers = [fold.number for fold in plan_folds(scans, recipe, out, kind)]
    every = plan_folds(scans, recipe, out, kind, numbers, ablation=True)
    return [fold for fold in every if fold.folder in folders or (fold.folder / f"{OWN}.json").exists()]


def _fold(number: int, split: Split, recipe: Recipe, attention: bool, convlstm: bool, out: Path) -> Fold:
    network = replace(recipe.network, attention=attention, convlstm=convlstm)
    folder = published.variant_name(attention, convlstm).lower().replace(" + ", "-")
    return Fold(
        number,
        replace(recipe, network=network),
        split["train"],
        split["validation"],
        split["test"],
        out / folder / f"fold-{number}",
    )


def _folds_by_patient(scans: Sequence[Scan], validated: bool) -> list[Split]:
    splits = patient_folds(scans)
    if len(splits) < 2 + validated:
        raise DatasetError(
            f"folds by patient need {2 + validated} patients{' (one tests, one validates)' if validated else ''}; "
            f"the data set has {len(splits)}"
        )
    if not validated:
        return list(splits)
    moved: list[Split] = []
    for index, split in enumerate(splits):
        held = splits[(index + 1) % len(splits)]["test"]
        moved.append({**split, "train": [scan for scan in split["train"] if scan not in held], "validation": held})
    return moved


def check_plan(
    folds: Sequence[Fold],
    recipe: Recipe,
    scans: Sequence[Scan],
    others: Sequence[Scan],
    out: Path,
    planned: Sequence[Fold] | None = None,
) -> None:
    """Write down what the folder is for, or find that it is for this: recipe, splits, and the content of scans and donors.

    More folds, variants or another data set to evaluate on may be added to what is there. `planned` are those of the folds that are
    to be trained now; None for all.

    Raises
    ------
    DatasetError
        If a scan cannot be used, a planned fold has no lesion to learn from, or the other data set holds one of these scans: a model would
        be judged by what it learned.
    OutputError
        If the folder was begun with another recipe or other scans.
    """
    settings = recipe.as_dict()
    network = {key: value for key, value in settings["network"].items() if key not in ("attention", "convlstm")}
    content = json.loads(
        json.dumps(
            {
                "recipe": {**settings, "network": network},
                "scans": {scan.name: contents(scan) for scan in scans},
                "donors": {path.name: sha256(path) for path in donor_masks(recipe)},
                "others": {scan.name: contents(scan) for scan in others},
                "splits": {str(fold.number): _names(fold) for fold in folds},
            }
        )
    )
    looked = {scan.name: _look_at(scan) for scan in scans}  # before hours of training
    lesions = {name: some for name, (_, some) in looked.items()}
    for fold in folds if planned is None else planned:
        _check_lesions(fold, lesions)
    known = {image: name for name, (image, _) in looked.items()}
    patients = {scan.name: scan.patient for scan in scans}
    for name, (image, _) in looked.items():
        if patients[name] != patients[known[image]]:
            raise DatasetError(
                f"{known[image]} and {name} are the same image, voxel for voxel, of two patients: each would be tested by a model that "
                "learned from it; take one of them out of the table"
            )
    theirs = {scan.name: _look_at(scan)[0] for scan in others}
    both = [f"{name} is {known[image]}" for name, image in theirs.items() if image in known]
    if both:
        raise DatasetError(
            f"the data set to evaluate on holds {len(both)} images of the one that is trained on ({', '.join(both[:5])}); "
            "take them out of one of the two"
        )
    path = out / PLAN
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in ("recipe", "scans") if stored[key] != content[key]]
            changed += ["donors"] * (stored.get("donors", content["donors"]) != content["donors"])
            changed += ["splits"] * any(
                content["splits"].get(number, names) != names for number, names in stored["splits"].items()
            )
            evaluated = any((fold.folder / f"{OTHER}.json").exists() for fold in folds)
            changed += ["scans to evaluate on"] * bool(others and evaluated and stored["others"] != content["others"])
            content["splits"] |= stored["splits"]
            content["others"] = content["others"] or stored["others"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise OutputError(f"{path}: not readable ({error}); give another folder with -o") from error
        if changed:
            raise OutputError(f"{out}: was begun with other {' and '.join(changed)}; give another folder with -o")
    write_atomically({path: (json.dumps(content, indent=2) + "\n").encode()})


def _look_at(scan: Scan) -> tuple[str, bool]:
    """By which a scan's image is known again, and whether its mask holds a lesion."""
    flair, lesions = read_pair(scan)
    return voxels_sha256(flair), bool(lesions.any())


def _check_lesions(fold: Fold, lesions: Mapping[str, bool]) -> None:
    """Refuse a fold that cannot be trained."""
    parts = {"trains on": fold.train, **({"validates with": fold.validation} if fold.recipe.keep == "best" else {})}
    for what, scans in parts.items():
        if not any(lesions[scan.name] for scan in scans):
            raise DatasetError(
                f"fold {fold.number} {what} {', '.join(scan.name for scan in scans)}, of which no mask has a lesion; "
                "add scans with lesions, or name the other folds with --fold"
            )


def _names(fold: Fold) -> dict[str, list[str]]:
    parts = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    return {part: [scan.name for scan in scans] for part, scans in parts.items()}


def run_fold(
    fold: Fold,
    dataset: Path,
    cache: Path,
    other: tuple[Path, Sequence[Scan]] | None = None,
    say: Say = lambda _: None,
    left_out: Sequence[Scan] = (),
) -> None:
    """Train what is not trained yet and evaluate what is not evaluated yet.

    Lesions of the scans that are left out are not painted into others either.

    Raises
    ------
    InputError
        If a scan cannot be used or the training fails.
    Interrupted
        After SIGINT or SIGTERM during training; the next call continues it.
    """
    checkpoint = fold.folder / CHECKPOINT
    if not checkpoint.exists():
        resume = (fold.folder / RUN).exists()
        say("training continues" if resume else "training")
        model = f"{fold.variant}, fold {fold.number}"
        try:
            train(
                fold.recipe,
                fold.train,
                fold.validation,
                fold.folder,
                resume,
                say,
                name=model,
                cache=cache,
                left_out=[*fold.test, *left_out],
            )
        except Interrupted as error:
            message = f"{model}: stopped, what it learned is written; the same command continues it"
            raise Interrupted(message, error.exit_code - 128) from error
    wanted = {OWN: (dataset, fold.test)} | ({OTHER: other} if other else {})
    for name, (source, scans) in wanted.items():
        if (fold.folder / f"{name}.json").exists():
            continue
        say(f"evaluating {source}")
        with CheckpointModel(checkpoint) as predictor:
            found = evaluate(source, scans, predictor, say)
        # The JSON last: it says that the fold is finished.
        content = {"html": evaluation_page(found), "csv": found.as_csv(), "json": found.as_json()}
        write_atomically({fold.folder / f"{name}.{ending}": text.encode() for ending, text in content.items()})


@dataclass(frozen=True)
class FoldResult:
    """A finished fold: the content of its evaluations' JSON files."""

    fold: Fold
    own: dict[str, Any]
    other: dict[str, Any] | None

    def mean(self, group: str, name: str) -> float:
        """Of a measure over the fold's test scans; NaN if there is none."""
        value = self.own["summary"][group][name]["mean"]
        return float("nan") if value is None else float(value)


def read_results(folds: Sequence[Fold]) -> list[FoldResult]:
    """Those folds that are finished.

    Raises
    ------
    DatasetError
        If an evaluation's file is damaged.
    """
    results = []
    for fold in folds:
        own = _read(fold.folder / f"{OWN}.json")
        if own is not None:
            results.append(FoldResult(fold, own, _read(fold.folder / f"{OTHER}.json")))
    return results


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scans = content["scans"]
        whole = bool(scans) and all(
            "mean" in content["summary"][group][name] and all("name" in scan and name in scan[group] for scan in scans)
            for group in GROUPS
            for name in (FIELD if group == "field" else MEASURES)
        )
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable ({error}); remove it to evaluate the fold again") from error
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DatasetError(
            f"{path}: lacks scans or measures of them; expected an evaluation: remove it to evaluate the fold again"
        )
    return content


def by_variant(results: Sequence[FoldResult]) -> dict[str, list[FoldResult]]:
    """In the order in which they were planned."""
    found: dict[str, list[FoldResult]] = {}
    for result in results:
        found.setdefault(result.fold.variant, []).append(result)
    return found


def summary_json(dataset: Path, recipe: Recipe, results: Sequence[FoldResult]) -> str:
    """Every fold's means, and mean and deviation over the folds, for each variant."""
    variants = []
    for name, found in by_variant(results).items():
        groups = {group: list(found[0].own["summary"][group]) for group in GROUPS}
        variants.append(
            {
                "variant": name,
                "folds": [
                    {
                        "fold": result.fold.number,
                        **_names(result.fold),
                        **{group: {key: result.mean(group, key) for key in keys} for group, keys in groups.items()},
                        "other": None if result.other is None else result.other["summary"],
                    }
                    for result in found
                ],
                "summary": {
                    group: {key: vars(summarise(result.mean(group, key) for result in found)) for key in keys}
                    for group, keys in groups.items()
                },
            }
        )
    content = {"schema": SCHEMA, "dataset": str(dataset), "recipe": recipe.as_dict(), "variants": variants}
    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


def summary_csv(results: Sequence[FoldResult]) -> str:
    """One row for each variant, fold and scan that it was evaluated on."""
    rows = []
    for result in results:
        for data, document in ((OWN, result.own), (OTHER, result.other)):
            for scan in () if document is None else document["scans"]:
                row = {"variant": result.fold.variant, "fold": result.fold.number, "of": data, "scan": scan["name"]}
                for group in GROUPS:
                    prefix = "" if group == "field" else f"{group}_"
                    row |= {f"{prefix}{name}": value for name, value in scan[group].items()}
                rows.append(row)
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
