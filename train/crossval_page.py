"""A cross-validation for people: tables as the paper's 2, 4 and 5, beside them."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from lesionrt.runtime.metrics import MEASURES, summarise
from lesionrt.train import published
from lesionrt.train.crossval import Fold, FoldResult, by_variant
from lesionrt.train.dataset import PAPER_FOLD_SLICES
from lesionrt.train.evaluation import FIELD
from lesionrt.train.evaluation_page import TITLES, digits
from lesionrt.train.page import NOT_A_DEVICE, deviation_of, facts, mean_of, number, page, table

Rows = list[tuple[str, list[str]]]


def crossval_page(
    dataset: Path,
    folds: Sequence[Fold],
    results: Sequence[FoldResult],
    papers: bool,
    slices: Sequence[tuple[int, int, int]] | None = None,
) -> str:
    """One HTML document.

    Parameters
    ----------
    dataset
        What was split.
    folds
        All that were planned; those without a result are named.
    results
        At least one.
    papers
        Whether the folds are the paper's.
    slices
        With lesions, in each of the paper's folds' training, validation and test.
    """
    return page("lesionrt cross-validation", _body(dataset, folds, results, papers, slices))


def _body(
    dataset: Path,
    folds: Sequence[Fold],
    results: Sequence[FoldResult],
    papers: bool,
    slices: Sequence[tuple[int, int, int]] | None,
) -> Iterator[str]:
    yield "<h1>Lesion segmentation: cross-validation</h1>"
    yield f'<p class="dim">{NOT_A_DEVICE}</p>'
    if len(results) < len(folds):
        yield f'<p class="warning">{len(folds) - len(results)} of {len(folds)} trainings are not finished.</p>'
    kind = "the paper's: scans are split, a patient's other times train" if papers else "by patient: all times held out"
    recipe = folds[0].recipe
    yield facts(
        [
            ("data set", str(dataset)),
            ("folds", kind),
            ("recipe", f"{recipe.sampling}, {recipe.optimiser}, learning rate {recipe.learning_rate:g}"),
        ]
    )
    if slices is not None:
        yield "<h2>Slices with lesions</h2>"
        yield _slices(slices)
    variants = by_variant(results)
    if len(variants) > 1:
        yield "<h2>Networks compared, as in the paper's Table 5</h2>"
        yield f"<p>Dice over the slices with lesions of each fold's test. {_label('Table 5')}</p>"
        yield _ablation(variants, papers)
    for name, found in variants.items():
        yield f"<h2>{escape(name)}</h2>"
        yield "<h3>Slices with lesions, the paper's way</h3>"
        full = papers and name == published.variant_name(attention=True, convlstm=True)  # Table 2 is of this network
        yield _folds(found, "lesion_slices", MEASURES, full)
        if full:
            yield f'<p class="dim">{_label("Table 2")}</p>'
        yield "<h3>Whole volumes</h3>"
        yield _folds(found, "whole_volume", MEASURES, False)
        yield "<h3>Lesions, surfaces and volumes</h3>"
        yield _folds(found, "field", FIELD, False)
        others = [result for result in found if result.other is not None]
        if others:
            yield "<h3>Another data set, as in the paper's Table 4</h3>"
            yield f"<p>Dice of each fold's model, first over the slices with lesions. {_label('Table 4')}</p>"
            yield _others(others, "lesion_slices")
            yield _paper_others()
            yield "<p>Over whole volumes:</p>"
            yield _others(others, "whole_volume")


def _label(which: str) -> str:
    return (
        f"Shaded rows are the paper's own figures ({which} of {escape(published.CITATION)}), "
        "measured by its authors on their data; they are not ours."
    )


def _slices(slices: Sequence[tuple[int, int, int]]) -> str:
    rows: Rows = []
    for fold, (here, paper) in enumerate(zip(slices, PAPER_FOLD_SLICES, strict=True), 1):
        rows += [("", [f"fold {fold}", *map(str, here)]), ("paper", [f"paper, fold {fold}", *map(str, paper)])]
    return table(["", "Training", "Validation", "Test"], rows)


def _folds(found: Sequence[FoldResult], group: str, names: Sequence[str], papers: bool) -> str:
    rows: Rows = []
    for result in found:
        tested = ", ".join(scan.name for scan in result.fold.test)
        values = [number(result.mean(group, name), digits(name)) for name in names]
        rows.append(("", [f"fold {result.fold.number}", tested, *values]))
    summaries = {name: summarise(result.mean(group, name) for result in found) for name in names}
    means = [mean_of(summaries[name], len(found), digits(name)) for name in names]
    rows.append(("mean", ["mean over folds", "", *means]))
    rows.append(("sd", ["SD", "", *(deviation_of(summaries[name], digits(name)) for name in names)]))
    if papers:
        for fold, row in enumerate(published.FOLDS, 1):
            rows.append(("paper", [f"paper, fold {fold}", f"{fold:02d}_04", *(number(row[name]) for name in names)]))
        rows.append(("paper", ["paper, mean ± SD", "", *(published.FOLDS_MEAN[name] for name in names)]))
    return table(["Fold", "Test", *(TITLES[name] for name in names)], rows, text_columns=2)


def _ablation(variants: dict[str, list[FoldResult]], papers: bool) -> str:
    """Means are over the folds that all networks have. The paper's fold columns stand in ours only if the folds are its own."""
    common = sorted(set.intersection(*({result.fold.number for result in found} for found in variants.values())))
    numbers = sorted({result.fold.number for found in variants.values() for result in found})
    shown = sorted({*numbers, *published.ABLATION_FOLDS}) if papers else numbers
    folds = "" if papers and common == [*published.ABLATION_FOLDS] else " (its folds 2 and 4)"
    rows: Rows = []
    for name, found in variants.items():
        dice = {result.fold.number: result.mean("lesion_slices", "dice") for result in found}
        cells = [number(dice[fold]) if fold in dice else "" for fold in shown]
        rows.append(("", [name, *cells, mean_of(summarise(dice[fold] for fold in common), len(common))]))
    for variant, (*dice_of_folds, mean) in published.ABLATION.items():
        theirs = dict(zip(published.ABLATION_FOLDS, dice_of_folds, strict=True)) if papers else {}
        cells = [number(theirs[fold]) if fold in theirs else "" for fold in shown]
        rows.append(("paper", [f"paper, {published.variant_name(*variant)}{folds}", *cells, number(mean)]))
    mean = "Mean" if common == numbers else f"Mean of folds {', '.join(map(str, common)) or '–'}"
    return table(["Network", *(f"Fold {fold}" for fold in shown), mean], rows)


def _others(found: Sequence[FoldResult], group: str) -> str:
    """Dice of every scan of the other data set; a dash where a reference without lesions leaves nothing to measure."""
    scans = [scan["name"] for scan in found[0].other["scans"]] if found[0].other else []
    rows: Rows = []
    columns: list[list[float]] = [[] for _ in scans]
    for result in found:
        dice = {scan["name"]: scan[group]["dice"] for scan in (result.other or {})["scans"]}
        values = [math.nan if dice[name] is None else dice[name] for name in scans]
        rows.append(("", [f"fold {result.fold.number}", *map(number, values)]))
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    summaries = [summarise(column) for column in columns]
    rows.append(("mean", ["mean over folds", *(mean_of(summary, len(found)) for summary in summaries)]))
    rows.append(("sd", ["SD", *map(deviation_of, summaries)]))
    return table(["Fold", *scans], rows)


def _paper_others() -> str:
    rows: Rows = [
        ("paper", [f"paper, fold {fold}", *map(number, dice)]) for fold, dice in enumerate(published.OTHER_SCANNER, 1)
    ]
    rows.append(("paper", ["paper, mean ± SD", *published.OTHER_SCANNER_MEAN]))
    return "<p></p>" + table(["", "P1", "P2", "P3"], rows)
