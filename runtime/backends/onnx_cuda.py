"""ONNX Runtime on an NVIDIA GPU."""

from lesionrt.runtime.backends import Backend, Probe
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_session import OnnxSession, load, probe_library
from lesionrt.runtime.bundle import Bundle

NAME = "cuda"
PROVIDER = "CUDAExecutionProvider"
# Off: its 10-bit mantissa is not float32, and parity is promised for float32.
OPTIONS = {"use_tf32": "0"}


def probe() -> Probe:
    """Whether it can run here."""
    found = gpus()
    device = found[0] if found else "NVIDIA GPU"
    result = probe_library(NAME, device, "gpu")
    if result.problem is not None:
        return result
    if PROVIDER not in load().get_available_providers():
        remedy = "Run: pip uninstall -y onnxruntime, then: pip install 'lesionrt[gpu]'"
        return Probe(NAME, result.library, device, "this ONNX Runtime is built without CUDA", remedy)
    if not found:
        return Probe(
            NAME, result.library, device, "no NVIDIA GPU is seen", "Install its driver; `nvidia-smi` must list the GPU"
        )
    return result


def open_backend(bundle: Bundle, precision: str, threads: int | None) -> Backend:
    """Load a bundle's graph."""
    # CUDA and cuDNN come as Python packages with the `gpu` extra; ONNX Runtime must be told to load them.
    load().preload_dlls()
    return OnnxSession(NAME, gpus()[0], bundle, precision, (PROVIDER, OPTIONS), threads)
