"""What a user gets without this toolkit: the window network, exported plainly, in ONNX Runtime, window after window."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_cuda import PROVIDER as CUDA
from lesionrt.runtime.backends.onnx_session import load
from lesionrt.runtime.prepare import HALO

WINDOW = 2 * HALO + 1


class WindowGraph:
    """A graph ``windows`` (1, 3, H, W) to ``lesion`` (1, H, W), in a session as it comes."""

    name = "window-onnx"
    precision = "fp32"

    def __init__(self, graph: Path, threads: int) -> None:
        ort = load()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        if gpus() and CUDA in ort.get_available_providers():
            ort.preload_dlls()
            providers.insert(0, CUDA)
        self._session: Any = ort.InferenceSession(graph, options, providers=providers)
        self.library = f"onnxruntime {ort.__version__}"
        self.device = str(self._session.get_providers()[0])

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        slices = feed["slices"][:, 0]
        windows = (slices[None, first : first + WINDOW] for first in range(len(slices) - 2 * HALO))
        return {"lesion": np.concatenate([self._session.run(["lesion"], {"windows": window})[0] for window in windows])}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
