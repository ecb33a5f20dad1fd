"""Interchangeable ways to run a bundle's network, behind one small contract."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.errors import UnavailableError, UsageError

Arrays = Mapping[str, NDArray[np.float32]]
# Fastest first: the order in which `auto` looks. Each module has `probe` and `open_backend`, which are told the name; one that
# does not run every graph of a bundle also has `bundle_problem` and `precisions`, one that runs engines, which are built for one
# device, `runnable` and `left_out`, one that runs some graph of several of a precision `each_graph`, one whose library takes long to load
# `early_probe`, one that is not always faster than those after it `slower_because`.
_MODULES = {
    "tensorrt": "lesionrt.runtime.backends.engine",
    "rtx": "lesionrt.runtime.backends.engine",
    "cuda": "lesionrt.runtime.backends.onnx_cuda",
    "openvino": "lesionrt.runtime.backends.openvino_cpu",
    "cpu": "lesionrt.runtime.backends.onnx_cpu",
}
NAMES = tuple(_MODULES)
_NONE: Mapping[str, str] = {}


class Backend(Protocol):
    """A loaded network; a context manager that holds its memory.

    Attributes
    ----------
    name
        As it is chosen on the command line.
    library
        The inference library with its version.
    device
        On what it computes.
    precision
        Of the graph that it runs.
    """

    name: str
    library: str
    device: str
    precision: str

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W), probabilities."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


# The next slices (n, 1, H, W) of one stack, at least 3 at first, to the probabilities of those that now have both
# neighbours: (n - 2, H, W) at first, then (n, H, W).
Stream = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@runtime_checkable
class StreamingBackend(Backend, Protocol):
    """A backend that keeps what it computed of the last slices, so that a stack may come in pieces."""

    def stream(self) -> Stream:
        """Begin a stack."""
        ...


@dataclass(frozen=True)
class Probe:
    """Whether a backend can run here.

    Attributes
    ----------
    problem
        Why it cannot; None if it can.
    remedy
        What would mend that.
    """

    name: str
    library: str
    device: str
    problem: str | None = None
    remedy: str | None = None


def probe(name: str, bundle: Bundle | None = None) -> Probe:
    """Look whether a backend can run here, and this bundle with it; nothing is loaded."""
    module = import_module(_MODULES[name])
    if bundle is not None and hasattr(module, "early_probe"):
        early: Probe | None = module.early_probe(name, bundle)
        if early is not None:
            return early
    result: Probe = module.probe(name)
    if bundle is None or result.problem is not None or not hasattr(module, "bundle_problem"):
        return result
    lacking = module.bundle_problem(name, bundle)
    return result if lacking is None else replace(result, problem=lacking[0], remedy=lacking[1])


def precisions(name: str, bundle: Bundle) -> list[str]:
    """In which precisions a backend that can run here runs a bundle; the one that it takes unasked first."""
    module = import_module(_MODULES[name])
    found: list[str] = module.precisions(name, bundle) if hasattr(module, "precisions") else bundle.precisions
    return found


def left_out(name: str, bundle: Bundle) -> dict[str, str]:
    """Precisions of a bundle's engines of which none runs here, and why, of a backend that can run here."""
    module = import_module(_MODULES[name])
    found: dict[str, str] = module.left_out(name, bundle) if hasattr(module, "left_out") else {}
    return found


def needs_engine(name: str) -> bool:
    """Whether a backend runs nothing but engines."""
    return hasattr(import_module(_MODULES[name]), "runnable")


def each_way(name: str, bundle: Bundle, precision: str) -> list[Bundle]:
    """A bundle once for each engine from which a backend would choose, with that engine alone, or for each graph; once of others."""
    module = import_module(_MODULES[name])
    if hasattr(module, "each_graph"):
        graphs: list[Bundle] = module.each_graph(bundle, precision)
        return graphs
    engines = module.runnable(name, bundle, precision) if hasattr(module, "runnable") else []
    return [replace(bundle, manifest={**bundle.manifest, "engines": [each.entry]}) for each in engines] or [bundle]


def choose(name: str, bundle: Bundle | None = None, refused: Mapping[str, str] = _NONE) -> tuple[str, str]:
    """The backend to use and why.

    Parameters
    ----------
    name
        A backend's name, or ``auto`` for the fastest that can run here.
    bundle
        What it is to run; without one, backends that need an engine count as able to run.
    refused
        Backends that ``auto`` passes over, with the reason.

    Raises
    ------
    UsageError
        If there is no such backend.
    UnavailableError
        If it cannot run here.
    """
    if name == "auto":
        passed: list[Probe] = []
        slower = None
        for candidate in NAMES:
            found = probe(candidate, bundle)
            if candidate in refused:
                found = replace(found, problem=refused[candidate], remedy=None)
            if found.problem is None:
                found = replace(found, problem=_slower_because(candidate))
                slower = slower or (candidate if found.problem is not None else None)
            if found.problem is None:
                others = "".join(f"; not {other.name}: {other.problem}" for other in passed)
                return candidate, f"auto: the first of {', '.join(NAMES)} that can run here{others}"
            passed.append(found)
        if slower is not None:
            others = "".join(f"; not {other.name}: {other.problem}" for other in passed if other.name != slower)
            return slower, f"auto: the only one of {', '.join(NAMES)} that can run here{others}"
        reasons = "\n".join(
            f"  {other.name}: {'. '.join(text for text in (other.problem, other.remedy) if text)}" for other in passed
        )
        raise UnavailableError(f"no backend can run here:\n{reasons}")
    if name not in _MODULES:
        raise UsageError(f"backend {name!r} is not known; expected auto, {', '.join(NAMES)}")
    found = probe(name, bundle)
    if found.problem is not None:
        raise UnavailableError(f"backend {name} cannot run here: {found.problem}. {found.remedy}")
    return name, "asked for"


def _slower_because(name: str) -> str | None:
    """Why a backend that can run should be passed by if another can, too."""
    module = import_module(_MODULES[name])
    reason: str | None = module.slower_because() if hasattr(module, "slower_because") else None
    return reason


def open_backend(name: str, bundle: Bundle, precision: str | None = None, threads: int | None = None) -> Backend:
    """Load a bundle's network with a backend that can run here.

    Parameters
    ----------
    name
        As :func:`choose` gives it.
    bundle
        The model.
    precision
        Of graph or engine; None for the first of :func:`precisions`.
    threads
        On the CPU; None for one a core.

    Raises
    ------
    BundleError
        If the graph is damaged or missing.
    UnavailableError
        If the library does not accept the device.
    """
    if precision is None:
        precision = next(iter(precisions(name, bundle)), None)
    opener: Callable[[str, Bundle, str | None, int | None], Backend] = import_module(_MODULES[name]).open_backend
    return opener(name, bundle, precision, threads)
