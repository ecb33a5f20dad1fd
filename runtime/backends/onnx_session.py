"""What the ONNX Runtime backends share: one session on one execution provider."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays, Probe
from lesionrt.runtime.backends.cuda import LOST, DeviceError
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError, first_line
from lesionrt.runtime.processor import cores

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_INSTALLS = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "'onnxruntime-gpu[cuda,cudnn]'"}
# Memory that was not given, in the words of its arenas, of C++, of CUDA and of NumPy.
_ALLOCATION = re.compile(r"alloc|out of memory", re.IGNORECASE)
_LOST_GPU = re.compile(r"CUDA (failure|error)|cuDNN|cuBLAS", re.IGNORECASE)


def installed() -> dict[str, str]:
    """Versions of the ONNX Runtime distributions that are installed; there should be one."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def probe_library(name: str, device: str, extra: str) -> Probe:
    """Whether ONNX Runtime is there at all, and whole."""
    library = " and ".join(f"{name} {number}" for name, number in installed().items()) or "onnxruntime"
    if find_spec("onnxruntime") is None and not installed():
        return Probe(name, library, device, "ONNX Runtime is not installed", f"Run: pip install 'lesionrt[{extra}]'")
    try:
        load()
    except UnavailableError as error:
        broken = [_INSTALLS[distribution] for distribution in installed()] or ["onnxruntime"]
        return Probe(name, library, device, str(error), f"Run: pip install --force-reinstall {broken[0]}")
    return Probe(name, library, device)


def load() -> Any:
    """The ONNX Runtime module, whose builds would tell their makers of the model and the machine over the network.

    Raises
    ------
    UnavailableError
        If it is installed and does not load.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise UnavailableError(f"ONNX Runtime is installed but cannot be loaded ({first_line(error)})") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # as after one of its two distributions was removed
        raise UnavailableError("ONNX Runtime is installed but its Python files are not there")
    if hasattr(onnxruntime, "disable_telemetry_events"):  # where a host program had imported it before
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def conflict() -> str | None:
    """What is wrong if both distributions are installed, and what mends it."""
    if len(installed()) < 2:
        return None
    return (
        f"{' and '.join(DISTRIBUTIONS)} are both installed and overwrite each other's files. "
        f"Run: pip uninstall -y {' '.join(DISTRIBUTIONS)}, then: pip install 'lesionrt[gpu]' (or 'lesionrt[cpu]' without an NVIDIA GPU)"
    )


class OnnxSession:
    """A bundle's graph in ONNX Runtime on one execution provider, never silently on another."""

    def __init__(
        self,
        name: str,
        device: str,
        graph: Path,
        precision: str,
        provider: str | tuple[str, dict[str, Any]],
        threads: int | None,
    ) -> None:
        ort = load()
        wanted = provider if isinstance(provider, str) else provider[0]
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors reach us as exceptions
        options.use_deterministic_compute = True
        options.enable_mem_pattern = False  # with stacks of any length it plans for nothing and doubles the memory
        # By itself it would count cores that this process may not use.
        options.intra_op_num_threads = threads or cores()
        try:
            # Its own fallback would print to stdout, move to the CPU and go on.
            session = ort.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions share no base
            if "NOT_IMPLEMENTED" in str(error) and precision != "fp32":
                raise UnavailableError(
                    f"{graph}: ONNX Runtime {ort.__version__} does not compute {precision} on {device} ({first_line(error)}); "
                    "export the model again with --precision fp32 as well"
                ) from error
            if (
                wanted != "CPUExecutionProvider"
            ):  # a GPU that is full or hidden; a damaged graph is found on the CPU too
                raise UnavailableError(
                    f"ONNX Runtime {ort.__version__} does not start with {wanted} on {device} ({first_line(error)}); "
                    "see `lesionrt doctor`, or choose --backend cpu"
                ) from error
            raise BundleError(
                f"{graph}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)})"
            ) from error
        if wanted not in session.get_providers():
            raise UnavailableError(
                f"ONNX Runtime did not accept {wanted}, only {', '.join(session.get_providers())}; see `lesionrt doctor`"
            )
        self._check_names(
            graph, *([value.name for value in found()] for found in (session.get_inputs, session.get_outputs))
        )
        self.name, self.device, self.precision, self.graph = name, device, precision, graph.name
        self.library = f"onnxruntime {ort.__version__}"
        self._session: Any = session

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        with self.failures():
            return {"lesion": self._session.run(["lesion"], dict(feed))[0]}

    @staticmethod
    def _check_names(graph: Path, inputs: list[str], outputs: list[str]) -> None:
        if (inputs, outputs) != (["slices"], ["lesion"]):
            raise BundleError(f"{graph}: its inputs and outputs are {[inputs, outputs]}; expected slices and lesion")

    @contextmanager
    def failures(self) -> Iterator[None]:
        """ONNX Runtime's exceptions while it computes, as ours."""
        if self._session is None:
            raise UsageError("the segmenter is closed; use it inside its `with` block")
        try:
            yield
        except Exception as error:
            if _LOST_GPU.search(str(error)) and not _ALLOCATION.search(str(error)):
                raise DeviceError(f"ONNX Runtime failed on {self.device} ({first_line(error)}); {LOST}") from error
            advice = "try a smaller --chunk" if _ALLOCATION.search(str(error)) else "check the model: `lesionrt verify`"
            raise UnavailableError(f"ONNX Runtime failed on {self.device} ({first_line(error)}); {advice}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
