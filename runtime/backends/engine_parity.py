"""A finished engine against the bundle's reference."""

from typing import Any

from lesionrt.runtime.backends.cuda import gpu
from lesionrt.runtime.backends.engine import probe
from lesionrt.runtime.backends.engine_backend import EngineBackend
from lesionrt.runtime.bundle import REFERENCE, Bundle
from lesionrt.runtime.engines.identity import Engine
from lesionrt.runtime.engines.library import load
from lesionrt.runtime.errors import ParityError, UnavailableError
from lesionrt.runtime.parity import TOLERANCES, load_reference, report_lines
from lesionrt.runtime.verify import compare_backend


def measure(bundle: Bundle, engine: Engine, plan: bytes) -> tuple[list[dict[str, Any]] | None, str | None]:
    """A finished engine's parity with the bundle's reference, None where it cannot run; and why it cannot, None where there
    simply is no GPU or no pycuda.

    Raises
    ------
    ParityError
        If it is out of tolerance.
    UnavailableError
        If it does not load or run on the GPU that it was built on, and for.
    """
    identity = engine.identity
    reference = load_reference(bundle.checked(REFERENCE))
    try:
        here = gpu()
    except UnavailableError:
        return None, None
    problem = probe(identity.flavour).problem or identity.mismatch(
        load(identity.flavour).__version__, here.name, here.compute_capability
    )
    if problem is not None:
        return None, problem
    size = reference.slices.shape[2:]
    if not identity.profile.takes(identity.profile.smallest[0], *size):
        return None, f"the reference's slices are {'x'.join(map(str, size))} pixels, too large for it"
    try:
        with EngineBackend(engine, plan) as backend:
            row = compare_backend(bundle, backend, reference, TOLERANCES[identity.precision])
    except UnavailableError as error:
        if identity.flavour != "rtx":
            raise
        return None, str(error)  # another GPU may run it
    if row["findings"]:
        raise ParityError(
            "the engine does not agree with PyTorch; it was not added to the bundle\n" + "\n".join(report_lines([row]))
        )
    return [row], None
