"""Evaluation of masks and models against a data set: values worked out by hand, files and errors."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lesionrt.runtime.bundle import UNTRAINED
from lesionrt.runtime.errors import DatasetError
from lesionrt.runtime.volume import read_flair
from lesionrt.train import published
from lesionrt.train.dataset import Scan, read_dataset
from lesionrt.train.evaluation import Evaluation, compare_masks, evaluate
from lesionrt.train.evaluation_page import evaluation_page
from lesionrt.train.page import page
from lesionrt.train.pictures import FALSE_NEGATIVE, FALSE_POSITIVE, difference_picture
from lesionrt.train.plots import bland_altman, scatter
from lesionrt.train.predictions import BundleModel, MaskFolder, open_model

Run = Callable[..., object]
# Axes S, R, A: slices lie along the first; voxels of 3 x 1 x 2 mm.
AFFINE = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """A scan of 4 slices of 5 x 6 voxels; nothing in its mask yet."""
    data = np.arange(1, 121, dtype=np.float32).reshape(SHAPE)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "flair.nii.gz")
    return Scan(tmp_path / "flair.nii.gz", tmp_path / "mask.nii.gz", "p", "1")


def save_mask(voxels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), AFFINE), path)


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Reference: two voxels in slice 1, one in slice 3. Prediction: one of the first two, one beside, one in slice 0."""
    reference, prediction = np.zeros((2, *SHAPE), bool)
    reference[1, 1, 1:3] = reference[3, 4, 5] = True
    prediction[1, 1, 2:4] = prediction[0, 4, 0] = True
    return reference, prediction


def test_measures_of_a_scan_worked_out_by_hand(scan: Scan) -> None:
    found = compare_masks(scan, read_flair(scan.flair), *two_masks())
    measures = found.measures()
    assert found.slices == 2
    assert measures["lesion_slices"]["dice"] == pytest.approx(2 / 5)  # TP 1, FP 1, FN 2 in slices 1 and 3
    assert measures["lesion_slices"]["specificity"] == pytest.approx(56 / 57)  # 60 voxels, 3 of them lesion
    assert measures["whole_volume"]["dice"] == pytest.approx(2 / 6)  # and one more FP in slice 0
    assert measures["whole_volume"]["extra_fraction"] == pytest.approx(2 / 117)
    assert found.reference_ml == pytest.approx(0.018)  # 3 voxels of 6 mm3
    field = measures["field"]
    assert (field["lesion_true_positive_rate"], field["lesion_false_positive_rate"]) == (0.5, 0.5)
    assert (field["lesion_f1"], field["volume_difference_ml"], field["relative_volume_difference"]) == (0.5, 0, 0)
    # To the nearest: the reference's 2 mm, 0 and from (3,4,5) to (1,1,3) 6, 3 and 4 mm; the prediction's 0, 2 mm and
    # from (0,4,0) to (1,1,1) 3, 3 and 2 mm.
    distances = [2, 0, math.sqrt(61), 0, 2, math.sqrt(22)]
    assert field["average_surface_distance_mm"] == pytest.approx(sum(distances) / 6)
    assert field["hausdorff95_mm"] == pytest.approx(2 + 0.9 * (math.sqrt(61) - 2))  # 95 % of the way over 0, 2, 7.8


def test_a_scan_without_lesions_has_no_value_for_slices_with_lesions_and_leaves_the_mean(scan: Scan) -> None:
    reference, prediction = two_masks()
    flair, empty = read_flair(scan.flair), np.zeros(SHAPE, bool)
    found = Evaluation(
        "made by hand",
        {"what": "masks"},
        tuple(
            compare_masks(scan, flair, *pair) for pair in ((reference, prediction), (empty, empty), (empty, prediction))
        ),
    )
    summary = found.summary()
    assert (summary["lesion_slices"]["dice"].mean, summary["lesion_slices"]["dice"].n) == (pytest.approx(0.4), 1)
    assert summary["whole_volume"]["dice"].mean == pytest.approx((1 / 3 + 1 + 0) / 3)
    document = json.loads(found.as_json())
    assert document["scans"][1]["lesion_slices"]["dice"] is None
    assert document["scans"][2]["field"]["hausdorff95_mm"] == pytest.approx(math.sqrt(12**2 + 5**2 + 12**2))
    assert document["volume_agreement"]["correlation"] == pytest.approx(0.5)  # (0.018, 0, 0), (0.018, 0, 0.018)
    rows = list(csv.DictReader(found.as_csv().splitlines()))
    assert [row["lesion_slices_dice"] for row in rows] == ["0.4", "", ""]
    assert "0.4000 (n = 1)" in evaluation_page(found)


@pytest.mark.parametrize(
    "name",
    [
        *("p_1.nii.gz", "p_1.nii", "p_1_lesions.nii.gz", "p_1_mask.nii.gz", "flair_lesions.nii.gz"),
        "SCANS/flair_lesions.nii.gz",
    ],
)
def test_masks_are_found_by_the_scans_name_or_as_segment_names_them(scan: Scan, tmp_path: Path, name: str) -> None:
    name = name.replace("SCANS", tmp_path.name)  # the folder that the volume lies in
    save_mask(two_masks()[1], tmp_path / "masks" / name)
    predictor = MaskFolder(tmp_path / "masks", [scan])
    np.testing.assert_array_equal(predictor(scan, read_flair(scan.flair)).mask, two_masks()[1])


def test_a_missing_mask_is_named_with_what_was_expected(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder of masks"):
        MaskFolder(tmp_path / "masks", [scan])
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match=r"no mask of 1 of 1 scans: p_1; .* p_1.nii.gz, or flair_lesions.nii.gz"):
        MaskFolder(tmp_path / "masks", [scan])


def test_a_mask_outside_the_folder_is_not_taken(scan: Scan, tmp_path: Path) -> None:
    for name in ("masks", "lists"):
        (tmp_path / name).mkdir()
    save_mask(two_masks()[0], tmp_path / "flair_lesions.nii.gz")  # beside the scan: perhaps the reference itself
    save_mask(two_masks()[0], tmp_path / "p_1.nii.gz")
    for listed in (
        replace(scan, flair=tmp_path / "lists" / ".." / scan.flair.name),
        replace(scan, patient="../p"),
    ):
        with pytest.raises(DatasetError, match="no mask of 1 of 1 scans"):
            MaskFolder(tmp_path / "masks", [listed])


def test_the_reference_is_not_taken_for_the_prediction(scan: Scan, tmp_path: Path) -> None:
    save_mask(two_masks()[0], tmp_path / "masks/p_1_mask.nii.gz")
    with pytest.raises(DatasetError, match="holds the reference itself as the prediction of p_1"):
        MaskFolder(tmp_path / "masks", [replace(scan, mask=tmp_path / "masks/p_1_mask.nii.gz")])


def test_a_page_of_a_folder_whose_name_is_no_utf8_can_be_written() -> None:
    assert b"M\\udcfcller" in page("M\udcfcller", []).encode()


def test_several_masks_of_a_scan_or_one_of_several_scans_are_refused(scan: Scan, tmp_path: Path) -> None:
    save_mask(two_masks()[1], tmp_path / "masks/flair_lesions.nii.gz")
    other = Scan(tmp_path / "other/flair.nii.gz", scan.mask, "q", "1")
    with pytest.raises(
        DatasetError, match=r"one mask would be that of several scans \(.*flair_lesions.* by p_1, q_1\)"
    ):
        MaskFolder(tmp_path / "masks", [scan, other])
    for name in ("p_1.nii.gz", "p_1_mask.nii"):
        save_mask(two_masks()[1], tmp_path / "masks" / name)
    with pytest.raises(DatasetError, match=r"several masks of p_1: p_1.nii.gz, p_1_mask.nii"):
        MaskFolder(tmp_path / "masks", [scan])


def test_a_mask_on_another_grid_is_refused(scan: Scan, tmp_path: Path) -> None:
    save_mask(np.zeros((4, 5, 7)), tmp_path / "masks/p_1.nii.gz")
    with pytest.raises(DatasetError, match=r"p_1.nii.gz: has 4x5x7 voxels, .*flair.nii.gz has 4x5x6; resample"):
        MaskFolder(tmp_path / "masks", [scan])(scan, read_flair(scan.flair))


def test_an_image_is_not_taken_for_a_mask(scan: Scan, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    shutil.copy(scan.flair, tmp_path / "masks/p_1.nii.gz")
    with pytest.raises(DatasetError, match=r"p_1\.nii\.gz: is no lesion mask"):
        MaskFolder(tmp_path / "masks", [scan])(scan, read_flair(scan.flair))


def test_what_the_runtime_warns_of_stands_in_the_json_and_on_the_page(scan: Scan, tmp_path: Path) -> None:
    save_mask(two_masks()[0], scan.mask)
    taken_over = "run by onnx-cpu (no engine for this stack)"
    predictor = mock.MagicMock(description={"what": "a bundle"})
    segmenter = mock.MagicMock()
    segmenter.return_value.mask = nib.Nifti1Image(two_masks()[1].astype(np.uint8), AFFINE)
    segmenter.return_value.report = {"warnings": [UNTRAINED, taken_over]}
    predictor.side_effect = BundleModel(segmenter)
    found = evaluate(tmp_path, [scan], predictor)
    assert json.loads(found.as_json())["scans"][0]["warnings"] == [taken_over]
    assert f"p_1: {taken_over}" in evaluation_page(found)


def test_a_checkpoints_evaluation_warns_of_a_skull(scan: Scan, least_checkpoint: Path) -> None:
    data = np.full((12, 12, 12), 7, np.float32) + np.arange(12)  # nothing is 0
    nib.save(nib.Nifti1Image(data, np.eye(4)), scan.flair)
    with open_model(least_checkpoint) as predictor:
        (warning,) = predictor(scan, read_flair(scan.flair)).warnings
    assert warning.startswith("does not look skull-stripped")


def test_picture_shows_false_positives_red_and_false_negatives_green(scan: Scan) -> None:
    reference, prediction = two_masks()
    with Image.open(BytesIO(difference_picture(read_flair(scan.flair), reference, prediction))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    quarter = pixels.shape[1] // 4
    for colour, count in ((FALSE_POSITIVE, 2), (FALSE_NEGATIVE, 2)):
        there = (pixels == colour).all(axis=-1)
        assert not there[:, : 3 * quarter].any(), "in the last column only"
        # One voxel of 1 x 2 mm in a picture of 5 x 12 mm that is 260 pixels high, each.
        assert there.sum() == pytest.approx(count * (260 / 12) * (2 * 260 / 12), rel=0.1)


def test_plots_hold_every_scan_and_the_limits_of_agreement() -> None:
    reference, predicted = [10.0, 20.0, 30.0], [11.0, 22.0, 33.0]
    for draw in (scatter, bland_altman):
        assert draw(["a", "b", "<c>"], reference, predicted).count("<circle") == 3
    drawn = bland_altman(["a", "b", "<c>"], reference, predicted)
    assert "mean: 2.00" in drawn
    assert "+1.96 SD: 3.96" in drawn
    assert "<c>" not in drawn
    assert bland_altman(["a"], [0.0], [0.0]).count("<circle") == 1


class Tags(HTMLParser):
    """Start tags with their attributes, and a check that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def evaluated(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """What the command writes for the data set's own masks."""
    folder = tmp_path_factory.mktemp("evaluated")
    for scan in read_dataset(small_dataset):
        (folder / "masks").mkdir(exist_ok=True)
        shutil.copy(scan.mask, folder / "masks" / f"{scan.name}.nii.gz")
    run("evaluate", small_dataset, "--masks", folder / "masks", "-o", folder / "out", "--table3")
    return folder / "out"


def test_a_data_sets_own_masks_are_perfect(evaluated: Path) -> None:
    document = json.loads((evaluated / "evaluation.json").read_text())
    assert [scan["name"] for scan in document["scans"]] == ["a_1", "a_2", "b_1"]
    for group in ("lesion_slices", "whole_volume"):
        assert document["summary"][group]["dice"] == {"mean": 1, "sd": 0, "n": 3}
    assert document["summary"]["field"]["lesion_f1"]["mean"] == 1
    assert document["summary"]["field"]["hausdorff95_mm"]["mean"] == 0
    assert document["volume_agreement"] == {"correlation": 1, "bias_ml": 0, "lower_ml": 0, "upper_ml": 0}
    assert len(list(csv.DictReader((evaluated / "evaluation.csv").read_text().splitlines()))) == 3


def test_the_page_is_well_formed_and_asks_nothing_of_a_server(evaluated: Path) -> None:
    text = (evaluated / "evaluation.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    links = [value for _, attributes in tags.seen for name, value in attributes.items() if name in ("src", "href")]
    assert len(links) == 3
    assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(|<script", text)


def test_the_page_says_which_figures_are_the_papers(evaluated: Path) -> None:
    text = (evaluated / "evaluation.html").read_text()
    rows = re.findall(r"<tr class='(\w+)'>(.*?)</tr>", text)
    papers = [re.findall(r"<td[^>]*>(.*?)</td>", cells) for kind, cells in rows if kind == "paper"]
    assert papers[0][:3] == ["paper, fold 1", "", "0.8448"]
    assert papers[5][0] == "paper, mean ± SD"
    assert len(papers) == 6 + len(published.METHODS)
    assert "None was measured by lesionrt" in text


def test_published_tables_agree_with_themselves() -> None:
    for row in published.FOLDS:
        assert row["iou"] == pytest.approx(row["dice"] / (2 - row["dice"]), abs=2e-4)
        assert row["dice"] == pytest.approx(2 / (1 / row["sensitivity"] + 1 / row["ppv"]), abs=2e-4)
    for variant, (two, four, mean) in published.ABLATION.items():
        assert mean == pytest.approx((two + four) / 2, abs=1e-4)
        if variant == (True, True):
            assert (two, four) == (published.FOLDS[1]["dice"], published.FOLDS[3]["dice"])


def test_a_checkpoint_and_its_bundle_find_the_same(
    small_dataset: Path, tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    scans = read_dataset(small_dataset)[:1]
    found = []
    for model, backend in ((tiny_checkpoint, "auto"), (tiny_bundle, "cpu")):
        with open_model(model, backend, threshold=0.4, min_lesion_mm3=2) as predictor:
            found.append(evaluate(small_dataset, scans, predictor))
    one, other = (evaluation.scans[0] for evaluation in found)
    assert one.predicted_ml > 0
    assert one.in_volume == other.in_volume
    assert [evaluation.prediction["kind"] for evaluation in found] == ["checkpoint", "bundle"]
    assert all(evaluation.prediction["threshold"] == 0.4 for evaluation in found)


def test_a_model_is_evaluated_from_the_command_line(
    run: Run, small_dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", small_dataset, "--model", tiny_checkpoint, "--patient", "b", "-o", tmp_path, "--json")
    result = run(*arguments)
    document = json.loads(result.stdout)
    assert [scan["name"] for scan in document["scans"]] == ["b_1"]
    assert document["prediction"]["model"]["trained"] is False
    assert "the model is untrained" in (tmp_path / "evaluation.html").read_text()
    assert "exists already; give --force" in run(*arguments, code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--masks", ".", "--threshold", "0.4"), 2, "--masks are evaluated as they are"),
        (("--masks", "absent"), 3, "absent: no such folder of masks"),
        (("--model", "absent"), 3, "absent: no such file"),
        (("--model", "absent", "--backend", "cpu"), 2, "a checkpoint runs in PyTorch"),
        (("--masks", ".", "--split", "test"), 3, "no scan of split 'test'; the data set has none"),
        (("--masks", ".", "--patient", "c"), 3, "no scan of patient c; the data set has a, b"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_and_bad_input_end_in_one_clear_error(
    run: Run, small_dataset: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run("evaluate", small_dataset, "-o", tmp_path / "out", *arguments, code=code, cwd=tmp_path)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
