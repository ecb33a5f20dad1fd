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


def measure(bundle: Bundle, engine: Engine, plan: bytes) -> list[dict[str, Any]] | None:
    """A finished engine's parity with the bundle's reference, or None where it cannot run.

    Raises
    ------
    ParityError
        If it is out of tolerance.
    """
    identity = engine.identity
    reference = load_reference(bundle.checked(REFERENCE))
    if probe(identity.flavour).problem is not None:
        return None
    here = gpu()
    if identity.mismatch(load(identity.flavour).__version__, here.name, here.compute_capability) is not None:
        return None
    if not identity.profile.takes(identity.profile.smallest[0], *reference.slices.shape[2:]):
        return None
    try:
        with EngineBackend(engine, plan) as backend:
            row = compare_backend(bundle, backend, reference, TOLERANCES[identity.precision])
    except UnavailableError:  # another GPU may run it: the plan is kept, without a figure
        return None
    if row["findings"]:
        raise ParityError(
            "the engine does not agree with PyTorch; it was not added to the bundle\n" + "\n".join(report_lines([row]))
        )
    return [row]
