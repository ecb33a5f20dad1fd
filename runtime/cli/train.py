"""`lesionrt train`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import given_path, needs


def command(
    dataset: Annotated[
        Path, typer.Argument(help="CSV with flair, mask, patient, time; or an ISBI 2015 folder.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder.", parser=given_path, show_default=False)],
    recipe: Annotated[str, typer.Option(help="default, paper, or a TOML file.")] = "default",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recipe; may be repeated.", show_default=False)
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="A patient that validates; may be repeated.", show_default=False)
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A patient to leave out; may be repeated.", show_default=False)
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint whose weights to start from.", show_default="random weights")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the folder's")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
) -> None:
    """Train a network. SIGINT and SIGTERM write the state and stop; --resume continues as if nothing had been."""
    with needs("train"):
        import matplotlib  # noqa: F401 (what the history is drawn with, and would be missed after an epoch only)

        from lesionrt.train.check import patients_in_two_splits
        from lesionrt.train.dataset import read_dataset, select
        from lesionrt.train.recipe import load_recipe
        from lesionrt.train.run import Progress
        from lesionrt.train.training import train
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    from lesionrt.runtime.errors import DatasetError, UsageError

    resolved = load_recipe(recipe, settings or ())
    scans = read_dataset(dataset)
    for finding in patients_in_two_splits(scans):
        raise DatasetError(f"{dataset}: {finding}")
    left_out = {scan.name for scan in select(scans, without or (), "--without")}
    held = {scan.name for scan in select(scans, validation or (), "--validation")}
    held |= {scan.name for scan in scans if scan.split == "validation"}
    used = [scan for scan in scans if scan.name not in left_out and scan.split != "test"]
    lost = held - {scan.name for scan in used}
    if validation and lost:
        raise UsageError(f"--validation: {', '.join(sorted(lost))} is left out, or in the split test")
    first = int(os.environ.get("RANK", "0")) == 0
    watched = first and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not watched) as bar:
        task = bar.add_task("training", now="", total=None)

        def show(now: Progress) -> None:
            text = f"loss {now.loss:.3f}, {now.slices_per_second:.1f} slices/s, {now.seconds_left / 60:.0f} min left"
            bar.update(task, completed=now.step, total=now.steps, now=text)

        path = train(
            resolved,
            [scan for scan in used if scan.name not in held],
            [scan for scan in used if scan.name in held],
            out,
            resume,
            say=lambda text: print(text, file=sys.stderr, flush=True) if first else None,
            progress=show,
            start=start,
            name=name,
            left_out=[scan for scan in scans if scan not in used],
        )
    if first:
        print(f"{path}: written")
