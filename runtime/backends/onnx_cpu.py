"""ONNX Runtime on the CPU."""

import platform
from dataclasses import replace

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.onnx_session import OnnxSession, probe_library
from lesionrt.runtime.backends.onnx_stream import OnnxStream
from lesionrt.runtime.bundle import BLOCKED_GRAPHS, STREAM_GRAPHS, Bundle

PROVIDER = "CPUExecutionProvider"


def probe(name: str) -> Probe:
    """Whether it can run here."""
    return probe_library(name, device(), "cpu")


def open_backend(name: str, bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's graph: one that keeps the state between chunks, where there is one."""
    # Only its kernels for x86 have the layout for which blocks are filled up.
    blocked = [BLOCKED_GRAPHS] if platform.machine() in ("x86_64", "AMD64") else []
    graph = bundle.stream_graph(precision, *blocked, STREAM_GRAPHS)
    if graph is None:
        return OnnxSession(name, device(), bundle.graph(precision), precision, PROVIDER, threads)
    return OnnxStream(name, device(), graph, precision, PROVIDER, threads)


def each_graph(bundle: Bundle, precision: str) -> list[Bundle]:
    """A bundle as it is run here, and without the graphs that keep the state: the plain one is what GPUs and engines take."""
    kinds = (STREAM_GRAPHS, BLOCKED_GRAPHS)
    if bundle.stream_graph(precision, *kinds) is None:
        return [bundle]
    plain = {key: value for key, value in bundle.manifest.items() if key not in kinds}
    return [bundle, replace(bundle, manifest=plain)]


def device() -> str:
    """The processor's architecture."""
    return f"CPU ({platform.machine()})"
