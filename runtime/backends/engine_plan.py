"""A plan, read from a bundle."""

from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.engines.identity import Engine
from lesionrt.runtime.errors import BundleError
from lesionrt.runtime.files import sha256_of


def read_plan(bundle: Bundle, engine: Engine) -> bytes:
    """A plan whose sha256 is the manifest's: to load another would be to run whatever is in it.

    Raises
    ------
    BundleError
        If it is missing or not the plan that was built.
    """
    build = f"build it again: lesionrt engine build {bundle.path} --flavor {engine.identity.flavour} --precision {engine.identity.precision} --force"
    finding = bundle.check(engine.file)
    if finding is None:
        plan = (bundle.path / engine.file).read_bytes()
        # Of the very bytes that are loaded, not of the file that was there a moment ago.
        if sha256_of(plan) == bundle.manifest["files"][engine.file]["sha256"]:
            return plan
        finding = "it changed while it was read"
    raise BundleError(
        f"{bundle.path / engine.file}: {finding}; it is not loaded. If you did not expect this, find out why; to mend it, {build}"
    )
