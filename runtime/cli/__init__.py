"""The `lesionrt` command: one module a verb; heavy imports happen inside the command."""

import os
import signal
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from lesionrt.runtime.errors import InputError, LesionrtError, UnavailableError

VERBS = (
    *("segment", "verify", "inspect", "doctor", "bench"),
    *("export", "engine", "import_official", "untrained", "phantom"),
    *("data", "train", "evaluate", "crossval"),
)


def build() -> typer.Typer:
    """The command line with all its verbs."""
    app = typer.Typer(
        help="Segment multiple-sclerosis lesions in FLAIR volumes. A research tool, not a medical device.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option)
    for verb in VERBS:
        module: Any = import_module(f"lesionrt.runtime.cli.{verb}")
        if hasattr(module, "group"):
            app.add_typer(module.group, name=verb)
        else:
            app.command(name=verb.replace("_", "-"))(module.command)
    return app


def main() -> None:
    """Run the command; our errors, and those of the file system, become a message on stderr and their exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if sys.stdout is None:  # closed: what is opened next might take its number, and what a library prints
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:  # closed: `print` would put errors on stdout
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold what a terminal cannot show
    try:
        build()()
    except LesionrtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError as error:
        print(
            f"error: not enough memory ({error}); end what else uses it, or give smaller volumes or chunks",
            file=sys.stderr,
        )
        sys.exit(UnavailableError.exit_code)
    except OSError as error:
        # Such as a name too long or a folder that may not be entered, wherever a path is first looked at.
        named = "standard output, or what the system gives" if error.filename is None else error.filename
        print(f"error: {named}: cannot be used ({error.strerror or error}); give another path", file=sys.stderr)
        sys.exit(InputError.exit_code)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like an exception, so that unfinished files are removed."""
    sys.exit(128 + signum)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lesionrt {version('lesionrt')}")
        raise typer.Exit


def _version_option(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass
