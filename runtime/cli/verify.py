"""`lesionrt verify`."""

import json
import math
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionrt.runtime.cli.options import (
    BundleArgument,
    ForceOption,
    JsonOption,
    MaxDifference,
    MaxFlipped,
    MinDice,
    PercentileDifference,
    check_new,
    given_path,
    needs,
    tolerances,
)

if TYPE_CHECKING:
    from lesionrt.runtime.backends import Backend
    from lesionrt.runtime.bundle import Bundle
    from lesionrt.runtime.parity import Reference

STORED = ".npz"  # the ending of a reference file; all others are checkpoints


def command(
    bundle: BundleArgument,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, rtx, cuda, openvino or cpu; or all: every one that can run here.")
    ] = "auto",
    precision: Annotated[
        list[str] | None, typer.Option(help="May be repeated.", show_default="all of the bundle")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint (.pt), computed with PyTorch now, or a reference file (.npz).",
            parser=given_path,
            show_default="the bundle's own",
        ),
    ] = None,
    flair: Annotated[
        Path | None, typer.Option("--input", help="Compare on this whole volume; with a checkpoint.", parser=given_path)
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(help="Keep the volume's PyTorch probabilities as a reference file (.npz).", parser=given_path),
    ] = None,
    max_difference: MaxDifference = None,
    percentile_difference: PercentileDifference = None,
    min_dice: MinDice = None,
    max_flipped: MaxFlipped = None,
    bisect: Annotated[
        bool,
        typer.Option("--bisect", help="Name the nodes at which half precision leaves float32, on the CPU; needs onnx."),
    ] = False,
    bisect_tolerance: Annotated[
        float | None,
        typer.Option(help="Share of a node's largest magnitude.", min=0, show_default="fp16 0.01, bf16 0.08"),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with PyTorch's probabilities; out of tolerance is exit code 5."""
    from lesionrt.runtime.bundle import load_bundle
    from lesionrt.runtime.errors import ParityError, UsageError
    from lesionrt.runtime.parity import TOLERANCES
    from lesionrt.runtime.verify import verify

    if flair is not None and (reference is None or reference.suffix == STORED):
        raise UsageError("--input needs PyTorch's probabilities of that volume: give --reference checkpoint.pt too")
    if save_reference is not None and flair is None:
        raise UsageError(
            "--save-reference keeps the probabilities of a volume: give --input and --reference checkpoint.pt too"
        )
    if save_reference is not None:
        if save_reference.suffix != STORED:
            raise UsageError(
                f"--save-reference is {save_reference}; expected a name that ends in {STORED}, as --reference"
            )
        check_new(save_reference, force)
    if bisect_tolerance is not None and not math.isfinite(bisect_tolerance):
        raise UsageError(f"--bisect-tolerance is {bisect_tolerance}; expected a number")
    bounds_given = (max_difference, percentile_difference, min_dice, max_flipped)
    if force and save_reference is None:
        raise UsageError("--force overwrites the file of --save-reference, which is not given")
    if bisect and (backend != "auto" or any(bound is not None for bound in bounds_given)):
        raise UsageError(
            "--bisect runs on the CPU by its own tolerance: give no --backend, and --bisect-tolerance alone"
        )
    loaded = load_bundle(bundle)
    if bisect:
        known = _reference(loaded, reference, flair, save_reference)
        _bisect(loaded, known, precision, bisect_tolerance, as_json)
        return
    plan = _plan(loaded, backend, precision)
    bounds = {
        name: tolerances(TOLERANCES, precisions, max_difference, percentile_difference, min_dice, max_flipped)
        for name, precisions in plan.precisions.items()
    }
    known = _reference(loaded, reference, flair, save_reference)
    rows = []
    for name, by_precision in bounds.items():
        compared, left_out = verify(loaded, known, name, by_precision, _open)
        rows += compared
        plan.left_out.update(left_out)
    passed = not any(row["findings"] for row in rows)
    if as_json:
        print(_as_json(loaded, plan, rows, passed))
    else:
        _show(loaded, plan, rows, passed)
    if not passed:
        raise typer.Exit(ParityError.exit_code)


@dataclass(frozen=True)
class _Plan:
    """What is compared: precisions by backend, why these, and what cannot be with the reason."""

    precisions: dict[str, list[str]]
    why: str
    left_out: dict[str, str]


def _plan(bundle: "Bundle", backend: str, asked: list[str] | None) -> _Plan:
    from lesionrt.runtime.backends import NAMES, choose, needs_engine, precisions, probe
    from lesionrt.runtime.backends import left_out as engines_left_out
    from lesionrt.runtime.errors import UnavailableError, UsageError

    left_out = {}
    if backend == "all":
        probes = [probe(name, bundle) for name in NAMES]
        names = [found.name for found in probes if found.problem is None]
        left_out = {found.name: f"{found.problem}. {found.remedy}" for found in probes if found.problem is not None}
        why = "all that can run here"
        if not names:
            raise UnavailableError("no backend can run here:\n" + "\n".join(map(": ".join, left_out.items())))
    else:
        name, why = choose(backend, bundle)
        names = [name]
        # A backend that runs graphs may not run every one of them; the CPU does.
        if backend == "auto" and not needs_engine(name) and name != "cpu" and probe("cpu").problem is None:
            names.append("cpu")
    had = {name: precisions(name, bundle) for name in names}
    known = list(dict.fromkeys(precision for each in had.values() for precision in each))
    for name in names:
        for precision, reason in engines_left_out(name, bundle).items():
            left_out[f"{name} {precision}"] = reason
            if precision in (asked or ()) and precision not in known:
                raise UnavailableError(reason)
    missing = [precision for precision in asked or () if precision not in known]
    if missing:
        raise UsageError(f"{bundle.path} has no {', '.join(missing)} for {', '.join(names)}, only {', '.join(known)}")
    if not asked and "bf16" in had.get("cpu", ()) and find_spec("onnx") is None:
        had["cpu"].remove("bf16")
        left_out["cpu bf16"] = "emulating it needs onnx. Run: pip install 'lesionrt[export]'"
    wanted = {name: [precision for precision in each if not asked or precision in asked] for name, each in had.items()}
    planned = {name: each for name, each in wanted.items() if each}
    if not planned:
        raise UnavailableError(
            f"{bundle.path}: nothing can be compared here:\n" + "\n".join(map(": ".join, left_out.items()))
        )
    return _Plan(planned, why, left_out)


def _as_json(bundle: "Bundle", plan: _Plan, rows: list[dict[str, Any]], passed: bool) -> str:
    """JSON has no NaN: what is not a number is null."""
    plain = [{**row, "comparison": {name: _or_null(n) for name, n in row["comparison"].items()}} for row in rows]
    report = {"bundle": str(bundle.path), "model": bundle.model.as_dict(), "backend_chosen": plan.why}
    return json.dumps({**report, "left_out": plan.left_out, "passed": passed, "results": plain}, allow_nan=False)


def _show(bundle: "Bundle", plan: _Plan, rows: list[dict[str, Any]], passed: bool) -> None:
    from lesionrt.runtime.parity import report_lines
    from lesionrt.runtime.parity_table import table_lines

    print("\n".join(report_lines(rows)))
    if len(rows) > 1:
        print("\n".join(table_lines(rows)))
    for what, reason in plan.left_out.items():
        print(f"not compared: {what}: {reason}", file=sys.stderr)
    print(f"{bundle.path}: {'within' if passed else 'OUT OF'} tolerance")


def _open(name: str, bundle: "Bundle", precision: str) -> "Backend":
    """ONNX Runtime's CPU has no bfloat16: there it is emulated."""
    from lesionrt.runtime.backends import open_backend

    if (name, precision) != ("cpu", "bf16"):
        return open_backend(name, bundle, precision)
    with needs("export"):
        from lesionrt.export.emulation import open_emulated
    return open_emulated(bundle)


def _bisect(
    bundle: "Bundle", known: "Reference", asked: list[str] | None, tolerance: float | None, as_json: bool
) -> None:
    """Print the nodes at which half-precision graphs leave the float32 one; some is exit code 5."""
    with needs("export"):
        from lesionrt.export.bisect import TOLERANCES, bisect, report
    from lesionrt.runtime.errors import ParityError, UsageError

    halves = asked or [precision for precision in bundle.precisions if precision in TOLERANCES]
    if not halves or not {"fp32", *halves} <= {*bundle.precisions} or not {*halves} <= {*TOLERANCES}:
        raise UsageError(
            f"--bisect compares fp16 or bf16 graphs with the fp32 one; {bundle.path} has {', '.join(bundle.precisions)}"
            + (f", asked for {', '.join(asked)}" if asked else "")
        )
    results = {}
    for precision in halves:
        bound = TOLERANCES[precision] if tolerance is None else tolerance
        found = bisect(bundle, precision, known.slices)
        results[precision] = {
            "tolerance": bound,
            "results": len(found),
            "beyond": [
                {**asdict(node), "difference": _or_null(node.difference)} for node in found if node.beyond(bound)
            ],
        }
        if not as_json:
            print("\n".join(report(found, precision, bound)))
    if as_json:
        print(json.dumps({"bundle": str(bundle.path), "what": known.source, "bisect": results}, allow_nan=False))
    if any(result["beyond"] for result in results.values()):
        raise typer.Exit(ParityError.exit_code)


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reference(bundle: "Bundle", given: Path | None, flair: Path | None, save: Path | None) -> "Reference":
    """What to compare with: the bundle's own probabilities, a file's, or those that PyTorch computes now."""
    from lesionrt.runtime.bundle import REFERENCE
    from lesionrt.runtime.parity import load_reference

    if given is None:
        return load_reference(bundle.checked(REFERENCE))
    return load_reference(given) if given.suffix == STORED else _from_checkpoint(bundle, given, flair, save)


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
