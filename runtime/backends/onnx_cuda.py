"""ONNX Runtime on an NVIDIA GPU."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_session import OnnxSession, load, probe_library
from lesionrt.runtime.bundle import Bundle

PROVIDER = "CUDAExecutionProvider"
# TF32 off: its 10-bit mantissa is not float32, and parity is promised for float32. Algorithms by rule and not by timing
# them, which could choose others in the next run.
OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


def probe(name: str) -> Probe:
    """Whether it can run here."""
    found = gpus()
    result = probe_library(name, device(), "gpu")
    if not found:
        remedy = "With such a GPU, install its driver: `nvidia-smi` must list it"
        return replace(result, problem="no NVIDIA GPU is seen", remedy=remedy)
    if result.problem is None and PROVIDER not in load().get_available_providers():
        remedy = "Run: pip uninstall -y onnxruntime, then: pip install 'lesionrt[gpu]'"
        return replace(result, problem="this ONNX Runtime is built without CUDA", remedy=remedy)
    return result


def bundle_problem(name: str, bundle: Bundle) -> tuple[str, str] | None:
    """Why it cannot run this bundle, and what would mend that."""
    if precisions(name, bundle):
        return None
    return (
        "ONNX Runtime has no bfloat16 convolution, and the bundle no other graph",
        "Export it again with --precision fp32",
    )


def precisions(name: str, bundle: Bundle) -> list[str]:
    """ONNX Runtime has no bfloat16 convolution."""
    return [precision for precision in bundle.precisions if precision != "bf16"]


def open_backend(name: str, bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's graph."""
    # CUDA and cuDNN come as Python packages with the `gpu` extra; ONNX Runtime must be told to load them.
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        load().preload_dlls()
    return OnnxSession(name, device(), bundle.graph(precision), precision, (PROVIDER, OPTIONS), threads)


def device() -> str:
    """CUDA's first GPU: it counts them otherwise than the driver, and may be shown only some."""
    names = sorted(set(gpus()))
    return f"CUDA device 0 of {', '.join(names)}" if len(names) > 1 else (names or ["NVIDIA GPU"])[0]
