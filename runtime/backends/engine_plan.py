"""A plan, read from a bundle."""

from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.engines.command import build_command
from lesionrt.runtime.engines.identity import Engine
from lesionrt.runtime.errors import BundleError


def read_plan(bundle: Bundle, engine: Engine) -> bytes:
    """A plan whose sha256 is the manifest's: to load another would be to run whatever is in it.

    Raises
    ------
    BundleError
        If it is missing or not the plan that was built.
    """
    build = f"build it again: {build_command(bundle.path, engine.identity)} --force"
    try:
        return bundle.content(engine.file)
    except BundleError as error:
        raise BundleError(
            f"{error}; it is not loaded. If you did not expect this, find out why; to mend it, {build}"
        ) from error
