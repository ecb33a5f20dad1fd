"""Options that several verbs share, and what they need of their library."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

from lesionrt.runtime.errors import OutputError, UnavailableError, UsageError, first_line

if TYPE_CHECKING:
    from lesionrt.runtime.parity import Tolerance


def given_path(text: str) -> Path:
    """A path; an empty one, as of an unset shell variable, would be the current folder."""
    if not text:
        raise typer.BadParameter("is empty; expected a file or a folder")
    return Path(text)


BackendOption = Annotated[str, typer.Option(help="auto, tensorrt, rtx, cuda, openvino or cpu (see `lesionrt doctor`).")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else there.")]
DatasetArgument = Annotated[
    Path,
    typer.Argument(
        help="A CSV file with flair, mask, patient, time (and split), or the ISBI 2015 folder.",
        metavar="DATASET",
        parser=given_path,
        show_default=False,
    ),
]
RecipeOption = Annotated[str, typer.Option(help="default, paper, or a TOML file.")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the recipe; may be repeated.", show_default=False)
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="A voxel is lesion where its probability is over this.", show_default="the model's"),
]
BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle's folder.", metavar="BUNDLE", parser=given_path, show_default=False)
]
CheckpointOut = Annotated[
    Path, typer.Option("-o", "--out", help="The checkpoint to write.", parser=given_path, show_default=False)
]
MaxDifference = Annotated[
    float | None, typer.Option(help="Largest maximum difference of probabilities.", min=0, show_default="by precision")
]
PercentileDifference = Annotated[
    float | None, typer.Option(help="Largest 99.9th percentile of the difference.", min=0, show_default="by precision")
]
MinDice = Annotated[
    float | None,
    typer.Option(
        help="Smallest Dice between masks, where more than two voxels flip.", min=0, max=1, show_default="by precision"
    ),
]
MaxFlipped = Annotated[
    float | None,
    typer.Option(
        help="Largest share of the reference mask that may flip; two voxels always may.",
        min=0,
        max=1,
        show_default="by precision",
    ),
]


_LIBRARIES = {"export": "torch onnx onnxscript", "train": "torch matplotlib"}  # by extra


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports that an extra brings: without it, an error that says how to get it.

    Raises
    ------
    UnavailableError
        Naming the library that is missing or does not load, and the pip command.
    """
    try:
        yield
    except (ImportError, OSError) as error:
        name = getattr(error, "name", None) or ""
        if name.partition(".")[0] == "lesionrt" or getattr(error, "errno", None):  # a file's, not a library's
            raise
        if isinstance(error, ModuleNotFoundError):
            raise UnavailableError(
                f"{name} is not installed, which this command needs. Run: pip install 'lesionrt[{extra}]'"
            ) from error
        raise UnavailableError(
            f"a library that this command needs is installed but cannot be loaded ({first_line(error)}). "
            f"Run: pip install --force-reinstall {_LIBRARIES[extra]}"
        ) from error


def check_new(path: Path, force: bool) -> None:
    """Refuse to overwrite a file, and a place that takes none, before any work is done for it.

    Raises
    ------
    OutputError
        If it exists and `force` is not given, or cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected a file to write")
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path} exists already; give --force to overwrite it, or another name")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Refuse what cannot become a folder for results, before any work is done for it.

    Raises
    ------
    OutputError
        If the path, or what it lies below, is a file or takes no new files.
    """
    there = next((place for place in (path, *path.parents) if place.is_symlink() or place.exists()), None)
    if there is not None and not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        raise OutputError(f"{there} is {what}; expected a folder for the results")
    try:
        with TemporaryFile(dir=there):  # permissions alone do not tell: root has them all, /proc takes nothing
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({there}: {error.strerror}); give another folder") from error


def tolerances(
    defaults: "Mapping[str, Tolerance]",
    precisions: Sequence[str],
    max_difference: float | None,
    percentile_difference: float | None,
    min_dice: float | None,
    max_flipped: float | None,
) -> "dict[str, Tolerance]":
    """Tolerances by precision, with what was given on the command line in its place.

    Raises
    ------
    UsageError
        If one is no number: it would hold anything for equal.
    """
    changed = {
        "maximum": max_difference,
        "percentile": percentile_difference,
        "dice": min_dice,
        "flipped_share": max_flipped,
    }
    for name, value in changed.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(f"a tolerance ({name}) is {value}; expected a number")
    return {precision: defaults[precision].replaced(**changed) for precision in precisions}
