"""`lesionrt train`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import DatasetArgument, RecipeOption, SettingsOption, check_folder, given_path, needs


def command(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder.", parser=given_path, show_default=False)],
    recipe: RecipeOption = "default",
    settings: SettingsOption = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="A patient that validates; may be repeated.", show_default=False)
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A patient to leave out; may be repeated.", show_default=False)
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a checkpoint, a bundle's folder, or `default` for the default model.",
            parser=given_path,
            show_default="random weights",
        ),
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

    check_folder(out)
    resolved = load_recipe(recipe, settings or ())
    scans = read_dataset(dataset)
    for finding in patients_in_two_splits(scans):
        raise DatasetError(f"{dataset}: {finding}")
    left_out = {scan.name for scan in select(scans, without or (), "--without")}
    asked = {scan.name for scan in select(scans, validation or (), "--validation")}
    held = asked | {scan.name for scan in scans if scan.split == "validation"}
    used = [scan for scan in scans if scan.name not in left_out and scan.split != "test"]
    lost = asked - {scan.name for scan in used}
    if lost:
        raise UsageError(f"--validation: {', '.join(sorted(lost))} is left out, or in the split test")
    first = int(os.environ.get("RANK", "0")) == 0
    watched = first and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not watched) as bar:
        task = bar.add_task("training", now="", total=None)

        def show(now: Progress) -> None:
            text = f"loss {now.loss:.3f}, {now.slices_per_second:.1f} slices/s, {now.seconds_left / 60:.0f} min left"
            bar.update(task, completed=now.step, total=now.steps, now=text)

        with _checkpoint_of(start) as checkpoint:
            path = train(
                resolved,
                [scan for scan in used if scan.name not in held],
                [scan for scan in used if scan.name in held],
                out,
                resume,
                say=lambda text: print(text, file=sys.stderr, flush=True) if first else None,
                progress=show,
                start=checkpoint,
                name=name,
                left_out=[scan for scan in scans if scan not in used],
            )
    if first:
        print(f"{path}: written")


@contextmanager
def _checkpoint_of(start: Path | None) -> Iterator[Path | None]:
    """The checkpoint to start from; a bundle's is restored from its float32 graph for as long."""
    from lesionrt.runtime.segmenter import DEFAULT_MODEL

    bundle = DEFAULT_MODEL if start is not None and str(start) == "default" and not start.exists() else start
    if bundle is None or not bundle.is_dir():
        yield bundle
        return
    with needs("export"):
        from lesionrt.export.restore import restore_checkpoint
    from lesionrt.runtime.bundle import load_bundle
    from lesionrt.train.checkpoint import save_checkpoint

    with TemporaryDirectory(prefix="lesionrt-start-") as folder:
        path = Path(folder) / "start.pt"
        save_checkpoint(restore_checkpoint(load_bundle(bundle)), path)
        yield path
