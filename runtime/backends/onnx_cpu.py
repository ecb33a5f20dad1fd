"""ONNX Runtime on the CPU."""

import platform

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.onnx_session import OnnxSession, probe_library
from lesionrt.runtime.backends.onnx_stream import OnnxStream
from lesionrt.runtime.bundle import Bundle

NAME = "cpu"
PROVIDER = "CPUExecutionProvider"


def probe() -> Probe:
    """Whether it can run here."""
    return probe_library(NAME, device(), NAME)


def open_backend(bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's graph: the one that keeps the state between chunks, where there is one."""
    graph = bundle.stream_graph(precision)
    if graph is None:
        return OnnxSession(NAME, device(), bundle.graph(precision), precision, PROVIDER, threads)
    return OnnxStream(NAME, device(), graph, precision, PROVIDER, threads)


def device() -> str:
    """The processor's architecture."""
    return f"CPU ({platform.machine()})"
