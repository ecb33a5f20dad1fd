"""`lesionrt evaluate`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lesionrt.runtime.cli.options import (
    DatasetArgument,
    ForceOption,
    JsonOption,
    ThresholdOption,
    check_folder,
    check_new,
    given_path,
    needs,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lesionrt.train.dataset import Scan
    from lesionrt.train.predictions import Predictor

NAME = "evaluation"


def command(
    dataset: DatasetArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the results.", parser=given_path, show_default=False)
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks: patient_time.nii.gz, or as `lesionrt segment` names them.", parser=given_path
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A bundle's folder or a checkpoint (.pt).", parser=given_path, show_default="the default model"
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="For a bundle: auto or one of `lesionrt doctor`; for a checkpoint: pytorch.")
    ] = "auto",
    threshold: ThresholdOption = None,
    min_lesion_mm3: Annotated[float, typer.Option(help="Drop predicted lesions below this volume.", min=0)] = 0.0,
    split: Annotated[str | None, typer.Option(help="Only the scans of this split.", show_default="all")] = None,
    patient: Annotated[
        list[str] | None, typer.Option(help="Only this patient's scans; may be repeated.", show_default="all")
    ] = None,
    table3: Annotated[
        bool, typer.Option("--table3", help="Show the paper's Table 3, labelled as the paper's.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare predicted masks with a data set's: JSON, CSV and one HTML page."""
    from lesionrt.runtime.errors import UsageError
    from lesionrt.runtime.files import write_atomically
    from lesionrt.train.dataset import read_dataset, select_split
    from lesionrt.train.dataset import select as select_patients
    from lesionrt.train.evaluation import CHOSEN_ON, TRAINED_ON, evaluate
    from lesionrt.train.evaluation_page import evaluation_page

    if masks is not None and (model is not None or threshold is not None or min_lesion_mm3 or backend != "auto"):
        raise UsageError("--masks are evaluated as they are: give no --model, --backend, --threshold, --min-lesion-mm3")
    check_folder(out)
    targets = {ending: out / f"{NAME}.{ending}" for ending in ("json", "csv", "html")}
    for path in targets.values():
        check_new(path, force)
    scans = read_dataset(dataset)
    if split is not None:
        scans = select_split(scans, split, str(dataset))
    if patient:
        scans = select_patients(scans, patient, str(dataset))
    with _predictor(scans, masks, model, backend, threshold, min_lesion_mm3) as predictor:
        print(f"evaluating {predictor.description['what']}", file=sys.stderr)
        found = evaluate(dataset, scans, predictor, lambda line: print(line, file=sys.stderr))
    known = {
        scan.scan.patient
        for scan in found.scans
        if any(text.startswith((TRAINED_ON, CHOSEN_ON)) for text in scan.warnings)
    }
    if known:
        print(
            f"note: the model was trained or chosen on patients named {', '.join(sorted(known))}; their figures count in the means",
            file=sys.stderr,
        )
    content = {"json": found.as_json(), "csv": found.as_csv(), "html": evaluation_page(found, table3)}
    write_atomically({targets[ending]: text.encode() for ending, text in content.items()})
    if as_json:
        print(content["json"], end="")
        return
    dice, f1 = found.summary()["whole_volume"]["dice"], found.summary()["field"]["lesion_f1"]
    print(f"{len(scans)} scans, whole volumes: mean Dice {dice.mean:.4f}, mean lesion F1 {f1.mean:.4f}")
    for ending, path in targets.items():
        print(f"  {ending:<6}{path}")


def _predictor(
    scans: "list[Scan]",
    masks: Path | None,
    model: Path | None,
    backend: str,
    threshold: float | None,
    min_lesion_mm3: float,
) -> "AbstractContextManager[Predictor]":
    from lesionrt.train.predictions import MaskFolder, open_model

    if masks is not None:
        return nullcontext(MaskFolder(masks, scans))
    with needs("train"):
        return open_model(model, backend, threshold, min_lesion_mm3)
