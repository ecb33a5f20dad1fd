"""`lesionrt verify`."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionrt.runtime.cli.options import (
    BackendOption,
    BundleArgument,
    ForceOption,
    JsonOption,
    MaxDifference,
    MaxFlipped,
    MinDice,
    PercentileDifference,
    check_new,
    needs,
    tolerances,
)

if TYPE_CHECKING:
    from lesionrt.runtime.bundle import Bundle
    from lesionrt.runtime.parity import Reference


def command(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    precision: Annotated[
        list[str] | None, typer.Option(help="May be repeated.", show_default="all of the bundle")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint (.pt), computed with PyTorch now, or a reference file (.npz).",
            show_default="the bundle's own",
        ),
    ] = None,
    flair: Annotated[
        Path | None, typer.Option("--input", help="Compare on this whole volume; with a checkpoint.")
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep the volume's PyTorch probabilities as a reference file.")
    ] = None,
    max_difference: MaxDifference = None,
    percentile_difference: PercentileDifference = None,
    min_dice: MinDice = None,
    max_flipped: MaxFlipped = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with PyTorch's probabilities; out of tolerance is exit code 5."""
    from lesionrt.runtime.backends import choose
    from lesionrt.runtime.bundle import REFERENCE, load_bundle
    from lesionrt.runtime.errors import ParityError, UsageError
    from lesionrt.runtime.parity import TOLERANCES, load_reference, report_lines
    from lesionrt.runtime.verify import verify

    computed = reference is not None and reference.suffix != ".npz"
    if flair is not None and not computed:
        raise UsageError("--input needs PyTorch's probabilities of that volume: give --reference checkpoint.pt too")
    if save_reference is not None and flair is None:
        raise UsageError(
            "--save-reference keeps the probabilities of a volume: give --input and --reference checkpoint.pt too"
        )
    if save_reference is not None:
        check_new(save_reference, force)
    loaded = load_bundle(bundle)
    precisions = list(dict.fromkeys(precision or loaded.precisions))
    missing = [name for name in precisions if name not in loaded.precisions]
    if missing:
        raise UsageError(f"{bundle} has no {', '.join(missing)} graph, only {', '.join(loaded.precisions)}")
    name, why = choose(backend)
    if reference is None:
        known = load_reference(loaded.checked(REFERENCE))
    elif computed:
        known = _from_checkpoint(loaded, reference, flair, save_reference)
    else:
        known = load_reference(reference)
    bounds = tolerances(TOLERANCES, precisions, max_difference, percentile_difference, min_dice, max_flipped)
    rows = verify(loaded, known, name, bounds)
    passed = not any(row["findings"] for row in rows)
    if as_json:
        # JSON has no NaN: what is not a number is null.
        plain = [{**row, "comparison": {name: _or_null(n) for name, n in row["comparison"].items()}} for row in rows]
        report = {"bundle": str(bundle), "model": loaded.model.as_dict(), "backend_chosen": why}
        print(json.dumps({**report, "passed": passed, "results": plain}, allow_nan=False))
    else:
        print("\n".join(report_lines(rows)))
        print(f"{bundle}: {'within' if passed else 'OUT OF'} tolerance")
    if not passed:
        raise typer.Exit(ParityError.exit_code)


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_checkpoint(bundle: "Bundle", checkpoint: Path, flair: Path | None, save: Path | None) -> "Reference":
    """PyTorch's own probabilities of a volume, or of the bundle's slices, computed now."""
    with needs("export"):
        from lesionrt.export.reference import checkpoint_reference
    from lesionrt.runtime.parity import save_reference

    progress = (
        (lambda done, total: print(f"\rPyTorch: slice {done} of {total}", end="", file=sys.stderr))
        if sys.stderr.isatty()
        else None
    )
    known = checkpoint_reference(bundle, checkpoint, flair, progress)
    if progress is not None:
        print(file=sys.stderr)
    if save is not None:
        save_reference(known, save)
        print(f"{save}: reference of {known.source} written", file=sys.stderr)
    return known
