"""`lesionrt bench`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionrt.runtime.cli.options import ForceOption, check_folder, check_new, given_path

NAME = "bench"


def command(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle's folder.", metavar="[MODEL]", parser=given_path, show_default="the default model"
        ),
    ] = None,
    flair: Annotated[
        Path | None,
        typer.Argument(help="A FLAIR volume.", metavar="[FLAIR]", parser=given_path, show_default="a phantom"),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the results.", parser=given_path, show_default=False)
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The bundle's checkpoint (.pt), for the cases in PyTorch and as the truth.",
            parser=given_path,
            show_default="restored from the bundle",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In under five minutes on two cores.")] = False,
    repeats: Annotated[int | None, typer.Option(help="Timed rounds.", min=1, show_default="3, with --quick 2")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads on the CPU.", min=1, max=1024, show_default="one a core")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.", show_default="all")] = None,
    force: ForceOption = False,
) -> None:
    """Measure how fast whole volumes are segmented, every way side by side: table, JSON and one HTML page.

    A case that is wrong is exit code 5, none that runs 4.
    """
    from lesionrt.benchmarks.bench import Request, bench
    from lesionrt.benchmarks.bench_page import bench_page
    from lesionrt.runtime.errors import ParityError, UnavailableError
    from lesionrt.runtime.files import write_atomically
    from lesionrt.runtime.segmenter import DEFAULT_MODEL

    check_folder(out)
    targets = {ending: out / f"{NAME}.{ending}" for ending in ("json", "html")}
    for path in targets.values():
        check_new(path, force)
    rounds = repeats or (2 if quick else 3)
    request = Request(model or DEFAULT_MODEL, flair, reference, quick, rounds, threads, tuple(case or ()))
    report = bench(request, lambda line: print(line, file=sys.stderr))
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_atomically({targets["json"]: text.encode(), targets["html"]: bench_page(report).encode()})
    _show(report)
    for ending, path in targets.items():
        print(f"  {ending:<6}{path}")
    if any(row["wrong"] for row in report["cases"]):
        raise typer.Exit(ParityError.exit_code)
    if report["baseline"] is None:
        raise typer.Exit(UnavailableError.exit_code)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lesionrt.benchmarks.bench_table import HEAD, explanation, not_compared, rows, skipped

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False, markup=False)
    shown = Table(*HEAD, box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for cells in rows(report):
        shown.add_row(*cells, style="bold red" if cells[-1] == "WRONG" else None)
    console.print(shown)
    notes = (f"note: {note}" for note in (*report["notes"], *not_compared(report)))
    console.print(f"measured in {report['elapsed_s'] / 60:.1f} min")
    for sentence in (*explanation(report), *notes):
        console.print(sentence)
    for row in report["cases"]:
        for finding in row["findings"]:
            console.print(f"WRONG: {row['name']}: {finding}")
    for name, _, reason in skipped(report):
        console.print(f"not measured: {name}: {reason}")
    if report["scaling"] is not None:
        for what in ("slices", "chunk", "threads", "volumes"):
            fit = report["scaling"][what]["seconds_fit"]
            if fit is not None:
                ran = report["scaling"][what]["case"]
                console.print(f"{ran}: seconds grow with {what} to the power of {fit['exponent']:.2f}")
