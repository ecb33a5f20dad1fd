"""The copies to a GPU and back, by themselves: compute holds them, and may hide them behind its kernels.

From and to pinned memory, as the engine backends copy; other cases may copy slower.
"""

import time

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends.cuda import Device, DeviceMemory, PinnedArray, Stream
from lesionrt.runtime.errors import UnavailableError


def transfer_seconds(slices: NDArray[np.float32]) -> float | None:
    """Copy slices to the GPU and as many bytes less two slices back, from and to pinned memory, as the engines do.

    Parameters
    ----------
    slices
        Prepared slices (n + 2, 1, H, W).

    Returns
    -------
    Seconds of the better of two tries; None where pycuda, a GPU or room on it is missing.
    """
    try:
        return _timed(Device(), slices)
    except UnavailableError:
        return None


def _timed(device: Device, slices: NDArray[np.float32]) -> float:
    n, _, height, width = slices.shape
    with device.active():
        there, back = PinnedArray(slices.shape), PinnedArray((n - 2, height, width))
        memory, stream = DeviceMemory(slices.nbytes), Stream()
        there.array[:] = slices
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            stream.upload(memory, there.array)
            stream.download(back.array, memory)
            stream.synchronize()
            seconds.append(time.perf_counter() - start)
        del stream
        for block in (there, back, memory):
            block.free()
    return min(seconds)
