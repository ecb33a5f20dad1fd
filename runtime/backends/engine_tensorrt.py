"""Engines of TensorRT on an NVIDIA GPU."""

from lesionrt.runtime.backends import Backend, Probe, engine
from lesionrt.runtime.bundle import Bundle

NAME = "tensorrt"


def probe() -> Probe:
    """Whether its engines can run here."""
    return engine.probe(NAME)


def bundle_problem(bundle: Bundle) -> tuple[str, str] | None:
    """Why this bundle has no engine that runs here, and what builds one."""
    return engine.engine_problem(NAME, bundle)


def precisions(bundle: Bundle) -> list[str]:
    """Of the bundle's engines that run here."""
    return list(dict.fromkeys(found.identity.precision for found in reversed(engine.runnable(NAME, bundle))))


def open_backend(bundle: Bundle, precision: str | None, threads: int | None) -> Backend:
    """Load a bundle's engine."""
    return engine.open_engine(NAME, bundle, precision)
