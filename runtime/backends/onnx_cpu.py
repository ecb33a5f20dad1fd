"""ONNX Runtime on the CPU."""

import platform

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.onnx_session import OnnxSession, probe_library
from lesionrt.runtime.bundle import Bundle

NAME = "cpu"


def probe() -> Probe:
    """Whether it can run here."""
    return probe_library(NAME, device(), NAME)


def open_backend(bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's graph."""
    return OnnxSession(NAME, device(), bundle, precision, "CPUExecutionProvider", threads)


def device() -> str:
    """The processor's architecture."""
    return f"CPU ({platform.machine()})"
