"""An evaluation for people: tables beside the paper's, pictures and plots in one file."""

from collections.abc import Iterator
from html import escape

from lesionrt.runtime.bundle import UNTRAINED
from lesionrt.runtime.metrics import MEASURES, correlation
from lesionrt.train import published
from lesionrt.train.evaluation import FIELD, Evaluation
from lesionrt.train.page import NOT_A_DEVICE, deviation_of, facts, image, mean_of, number, page, table
from lesionrt.train.plots import bland_altman, scatter

TITLES = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "iou": "IoU",
    "extra_fraction": "Extra fraction",
    "ppv": "PPV",
    "npv": "NPV",
    "accuracy": "Accuracy",
    "lesion_true_positive_rate": "Lesion TPR",
    "lesion_false_positive_rate": "Lesion FPR",
    "lesion_f1": "Lesion F1",
    "average_surface_distance_mm": "Surface distance, mm",
    "hausdorff95_mm": "Hausdorff 95 %, mm",
    "volume_difference_ml": "Volume difference, ml",
    "relative_volume_difference": "Relative volume difference",
}
DIGITS = {"extra_fraction": 5, "average_surface_distance_mm": 2, "hausdorff95_mm": 2, "volume_difference_ml": 2}


def digits(name: str) -> int:
    """Decimals with which a measure is shown."""
    return DIGITS.get(name, 4)


def evaluation_page(evaluation: Evaluation, methods: bool = False) -> str:
    """One HTML document; `methods` adds the paper's Table 3."""
    return page("lesionrt evaluation", _body(evaluation, methods))


def _body(evaluation: Evaluation, methods: bool) -> Iterator[str]:
    yield "<h1>Lesion segmentation: evaluation</h1>"
    yield f'<p class="dim">{NOT_A_DEVICE}</p>'
    yield from _warnings(evaluation)
    yield facts(_facts(evaluation))
    yield "<h2>Slices with lesions, the paper's way</h2>"
    yield (
        "<p>Voxels of all axial slices in which the reference holds a lesion, counted together; one row a scan. "
        "Lesions that a model draws into slices without any do not count here: see whole volumes.</p>"
    )
    yield _paper_measures(evaluation, "lesion_slices", paper=True)
    yield (
        f'<p class="dim">Shaded rows are the paper\'s own (Table 2 of {escape(published.CITATION)}), measured by its '
        "authors on the ISBI 2015 scans with slices cropped to 160×160; they are not ours and were measured on other "
        "data unless this data set is theirs. Specificity, extra fraction, NPV and accuracy also depend on how much "
        "background the slices hold.</p>"
    )
    yield "<h2>Whole volumes</h2>"
    yield _paper_measures(evaluation, "whole_volume", paper=False)
    yield "<h2>Lesions, surfaces and volumes</h2>"
    yield _field(evaluation)
    yield (
        '<p class="dim">Lesions are 26-connected; one is found if the prediction shares a voxel with it, and a predicted '
        "one false if it shares none with the reference. Distances are between surface voxels, over both directions "
        "together; Hausdorff is the worse direction's 95th percentile. Two empty masks have Dice, IoU and F1 of 1 and "
        "distances of 0; one empty mask has 0, and distances of the image's diagonal. A dash is a ratio of 0 to 0, or any "
        "measure over slices with lesions where the reference has none; means leave it out and say n. SD is the sample standard deviation.</p>"
    )
    yield "<h2>Lesion volumes</h2>"
    yield from _volumes(evaluation)
    if methods:
        yield from _methods()
    yield "<h2>Pictures</h2>"
    yield (
        '<p>Three slices of each scan, seen from the feet. Differences: <span class="red">false positives red</span>, '
        '<span class="green">false negatives green</span>, agreed lesions white.</p>'
    )
    for scan in evaluation.scans:
        dice = f"Dice {number(scan.in_volume.dice)} in the whole volume"
        caption = f"<figcaption><b>{escape(scan.scan.name)}</b> {dice}</figcaption>"
        yield f"<figure>{caption}{image(scan.picture, f'slices of {scan.scan.name}')}</figure>"


def _warnings(evaluation: Evaluation) -> Iterator[str]:
    model = evaluation.prediction.get("model")
    if model is not None and not model["trained"]:
        yield f'<p class="warning">{escape(UNTRAINED)}</p>'
    for scan in evaluation.scans:
        for warning in scan.warnings:
            yield f'<p class="warning">{escape(scan.scan.name)}: {escape(warning)}</p>'


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    patients = {scan.scan.patient for scan in evaluation.scans}
    yield "data set", evaluation.dataset
    yield "scans", f"{len(evaluation.scans)} of {len(patients)} patients"
    prediction = evaluation.prediction
    yield "evaluated", prediction["what"]
    if "model" in prediction:
        yield "trained on", prediction["model"]["training_data"] or "not recorded"
        yield "run with", f"{prediction['backend']}, {prediction['precision']}, on {prediction['device']}"
        smallest = prediction["min_lesion_mm3"]
        dropped = f"; lesions below {smallest:g} mm³ dropped" if smallest else ""
        yield "lesion", f"probability over {prediction['threshold']:g}{dropped}"
        yield "sha256", prediction["model_sha256"]


def _paper_measures(evaluation: Evaluation, group: str, paper: bool) -> str:
    rows = [
        (
            "",
            [
                scan.scan.name,
                str(scan.slices),
                *(number(scan.measures()[group][name], digits(name)) for name in MEASURES),
            ],
        )
        for scan in evaluation.scans
    ]
    summary, count = evaluation.summary()[group], len(evaluation.scans)
    rows.append(("mean", ["mean", "", *(mean_of(summary[name], count, digits(name)) for name in MEASURES)]))
    rows.append(("sd", ["SD", "", *(deviation_of(summary[name], digits(name)) for name in MEASURES)]))
    if paper:
        for fold, values in enumerate(published.FOLDS, 1):
            rows.append(("paper", [f"paper, fold {fold}", "", *(number(values[name]) for name in MEASURES)]))
        rows.append(("paper", ["paper, mean ± SD", "", *(published.FOLDS_MEAN[name] for name in MEASURES)]))
    return table(["Scan", "Slices", *(TITLES[name] for name in MEASURES)], rows)


def _field(evaluation: Evaluation) -> str:
    rows = []
    for scan in evaluation.scans:
        measures = scan.measures()["field"]
        counts = [str(scan.lesions.reference_lesions), str(scan.lesions.predicted_lesions)]
        rows.append(("", [scan.scan.name, *counts, *(number(measures[name], digits(name)) for name in FIELD)]))
    summary, count = evaluation.summary()["field"], len(evaluation.scans)
    rows.append(("mean", ["mean", "", "", *(mean_of(summary[name], count, digits(name)) for name in FIELD)]))
    rows.append(("sd", ["SD", "", "", *(deviation_of(summary[name], digits(name)) for name in FIELD)]))
    return table(["Scan", "Lesions", "Predicted", *(TITLES[name] for name in FIELD)], rows)


def _volumes(evaluation: Evaluation) -> Iterator[str]:
    names = [scan.scan.name for scan in evaluation.scans]
    reference, predicted = evaluation.volumes_ml()
    found = correlation(reference, predicted)
    yield (
        f"<p>Correlation over {len(names)} scans (Pearson): <b>{number(found, 3)}</b>."
        f"{' Fewer than three scans, or volumes all alike, have none.' if found != found else ''}</p>"
    )
    left = f"<figure><figcaption>Predicted and reference volume</figcaption>{scatter(names, reference, predicted)}</figure>"
    limits = "Bland-Altman: mean difference and limits of agreement"
    right = f"<figure><figcaption>{limits}</figcaption>{bland_altman(names, reference, predicted)}</figure>"
    yield f'<div class="plots">{left}{right}</div>'


def _methods() -> Iterator[str]:
    yield "<h2>Published methods, as the paper's Table 3 gives them</h2>"
    yield (
        f"<p>Figures of {escape(published.CITATION)}, Table 3: collected there from other papers, on ISBI 2015, partly "
        "from several kinds of image and other splits. None was measured by lesionrt.</p>"
    )
    rows = []
    for who, method, *values in published.METHODS:
        rows.append(("paper", [who, method, *("–" if value is None else f"{value:.2f}" for value in values)]))
    yield table(["Who", "Method", "Dice", "PPV", "Sensitivity"], rows, text_columns=2)
