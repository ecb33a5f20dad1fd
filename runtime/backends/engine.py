"""The backends that run TensorRT engines, one for each flavour: TensorRT and TensorRT for RTX."""

from importlib.util import find_spec

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.cuda import gpu
from lesionrt.runtime.backends.engine_choice import bundle_problem as bundle_problem
from lesionrt.runtime.backends.engine_choice import find_engines, of_flavour, runnable
from lesionrt.runtime.backends.engine_choice import left_out as left_out
from lesionrt.runtime.backends.engine_group import EngineGroup
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.engines.library import LIBRARIES, load
from lesionrt.runtime.engines.targets import listed, too_old
from lesionrt.runtime.errors import UnavailableError


def early_probe(flavour: str, bundle: Bundle) -> Probe | None:
    """Why a bundle cannot run here, as far as that shows without loading the library, which takes up to a second; None if it
    may run, or the library is not there to be loaded."""
    module = LIBRARIES[flavour].module
    if find_spec(module) is None:
        return None
    try:
        found = gpu()
    except UnavailableError as error:
        return Probe(flavour, module, "NVIDIA GPU", *_problem_and_remedy(error))
    lacking = None if of_flavour(flavour, bundle) else bundle_problem(flavour, bundle)
    return None if lacking is None else Probe(flavour, module, found.name, *lacking)


def probe(flavour: str) -> Probe:
    """Whether a flavour's engines can run here at all."""
    title = LIBRARIES[flavour].title
    try:
        library = f"{LIBRARIES[flavour].module} {load(flavour).__version__}"
    except UnavailableError as error:
        return Probe(flavour, LIBRARIES[flavour].module, "NVIDIA GPU", *_problem_and_remedy(error))
    try:
        found = gpu()
    except UnavailableError as error:
        return Probe(flavour, library, "NVIDIA GPU", *_problem_and_remedy(error))
    if not hasattr(load(flavour), "Runtime"):
        return Probe(flavour, library, found.name, f"this {title} has no runtime", "Install the full library")
    device = f"{found.name} (compute capability {found.compute_capability})"
    if too_old(load(flavour), found.compute_capability):
        names = ", ".join(listed(load(flavour)))
        return Probe(
            flavour, library, device, f"{title} is for compute capability {names}", "Use --backend cuda or cpu"
        )
    return Probe(flavour, library, device)


def _problem_and_remedy(error: UnavailableError) -> tuple[str, str]:
    problem, dot, remedy = str(error).partition(". ")
    return problem, remedy if dot else "See `lesionrt doctor`"


def precisions(flavour: str, bundle: Bundle) -> list[str]:
    """Of the bundle's engines that run here, the most exact first."""
    return list(dict.fromkeys(found.identity.precision for found in reversed(runnable(flavour, bundle))))


def open_backend(flavour: str, bundle: Bundle, precision: str | None, threads: int | None) -> Backend:
    """Load a bundle's engines of a precision."""
    return EngineGroup(bundle, find_engines(flavour, bundle, precision))
