"""`lesionrt data`: its verbs look at data sets."""

import json

import typer

from lesionrt.runtime.cli.options import DatasetArgument, JsonOption

group = typer.Typer(help="Look at data sets.", no_args_is_help=True)


@group.callback()
def _callback() -> None:
    """Keep `check` a verb of its own while it is the only one."""


@group.command()
def check(
    dataset: DatasetArgument,
    as_json: JsonOption = False,
) -> None:
    """Report what to know before training; a scan that cannot be used is exit code 3."""
    from lesionrt.runtime.errors import DatasetError
    from lesionrt.train.check import check_dataset, check_lines
    from lesionrt.train.dataset import read_dataset

    found = check_dataset(dataset, read_dataset(dataset))
    print(json.dumps(found.as_dict(), allow_nan=False) if as_json else "\n".join(check_lines(found)))
    if found.all_errors():
        raise typer.Exit(DatasetError.exit_code)
