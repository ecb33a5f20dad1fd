"""How a measuring script is run from the command line."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from lesionrt.runtime.errors import LesionrtError


def run(command: Callable[..., Any]) -> None:
    """Its arguments come from the command line; an error of ours becomes a message on stderr and its exit code."""
    try:
        typer.run(command)
    except LesionrtError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
