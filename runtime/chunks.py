"""A stack of any length through a network in bounded memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Backend, StreamingBackend
from lesionrt.runtime.errors import ParityError
from lesionrt.runtime.prepare import HALO

# Pixels that enter the network at a time: 8 slices of 160x192 or 4 of 256x256. Memory grows with it: in ONNX Runtime on the
# CPU 0.9, 1.1, 1.4 and 2.1 GB at 2, 4, 8 and 16 slices of 160x160. A backend that streams computes no more with fewer, and took
# the same time at each of these, within a tenth (benchmarks/results/bench-2-core-epyc.json); one that does not needs large chunks.
BUDGET = 4 * 256 * 256


def default_chunk(height: int, width: int) -> int:
    """Output slices that fit the budget with the two neighbours of the first chunk, at least one.

    >>> default_chunk(160, 192), default_chunk(256, 256), default_chunk(512, 512)
    (6, 2, 1)
    """
    return max(1, BUDGET // (height * width) - 2 * HALO)


class HaloStream:
    """A stack through a backend without state: the last two slices are fed again with the next ones."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._before: NDArray[np.float32] | None = None

    def __call__(self, slices: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next slices of the stack to the probabilities of those that now have both neighbours."""
        stack = slices if self._before is None else np.concatenate([self._before, slices])
        self._before = stack[-2 * HALO :]
        return self._backend.infer({"slices": stack})["lesion"]


def infer_in_chunks(
    backend: Backend,
    slices: NDArray[np.float32],
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Probabilities of all slices but the first and last.

    Parameters
    ----------
    backend
        The network.  One that streams computes each slice once, another the two slices between chunks twice.
    slices
        (n + 2, 1, H, W).
    chunk
        Output slices at a time; None for the default budget.
    progress
        Called with the output slices done and their total.

    Returns
    -------
    (n, H, W)

    Raises
    ------
    ParityError
        If the network gives another shape.
    """
    n, _, height, width = slices.shape
    total = n - 2 * HALO
    if hasattr(backend, "infer_stack"):  # it cuts a stack itself, to keep the GPU busy
        whole: NDArray[np.float32] = backend.infer_stack(slices, chunk, progress)
        if whole.shape != (total, height, width):
            raise ParityError(
                f"the network gave lesion {whole.shape} for slices {slices.shape}; expected {(total, height, width)}: "
                "export the bundle, or build its engine, again"
            )
        return whole
    chunk = chunk or default_chunk(height, width)
    result = np.empty((total, height, width), np.float32)
    stream = backend.stream() if isinstance(backend, StreamingBackend) else HaloStream(backend)
    for first in range(0, total, chunk):
        last = min(first + chunk, total)
        known = 2 * HALO if first else 0
        lesion = stream(slices[first + known : last + 2 * HALO])
        if lesion.shape != (last - first, height, width):
            raise ParityError(
                f"the network gave lesion {lesion.shape} for slices {first} to {last + 2 * HALO - 1}; "
                f"expected {(last - first, height, width)}: the bundle's graph is not one of `lesionrt export`"
            )
        result[first:last] = lesion
        if progress is not None:
            progress(last, total)
    return result
