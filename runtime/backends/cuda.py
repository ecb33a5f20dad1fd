"""Every CUDA call that lesionrt makes, through pycuda.

The device's primary context is retained, never created anew: it is the one that PyTorch and TensorRT use in the same
process. It is pushed for as long as something is done and popped afterwards, on whichever thread that happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.errors import UnavailableError

LOST = "what this process had on the GPU is lost, start it again"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: pycuda gives a stream's flags to cuStreamCreate as they are


class DeviceError(UnavailableError):
    """The GPU, or this process's CUDA context, is lost or never was there."""


class OutOfDeviceMemoryError(UnavailableError):
    """The GPU has no room for what was asked."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it.

    Attributes
    ----------
    name
        The maker's.
    compute_capability
        For example ``8.6``.
    memory_bytes
        All of it.
    driver
        Newest CUDA version that the driver supports, for example ``13.0``.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str


@cache
def _driver() -> Any:
    """pycuda's driver module, initialised."""
    if find_spec("pycuda") is None:
        raise UnavailableError(
            "pycuda is not installed. Run: pip install 'lesionrt[cuda]' (it is compiled, which needs the CUDA toolkit)"
        )
    try:
        import pycuda.driver
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"pycuda is installed but cannot be loaded ({error}). Install the NVIDIA driver, "
            "then: pip install --force-reinstall --no-binary pycuda pycuda"
        ) from error
    try:
        pycuda.driver.init()
    except pycuda.driver.Error as error:
        raise DeviceError(
            f"CUDA does not start ({error}). Install the NVIDIA driver: `nvidia-smi` must list a GPU"
        ) from error
    return pycuda.driver


@cache
def gpu() -> Gpu:
    """The first GPU of this machine that CUDA shows.

    Raises
    ------
    UnavailableError
        If pycuda is missing, or there is no GPU.
    """
    driver = _driver()
    with _translated():
        if driver.Device.count() == 0:
            raise DeviceError("no NVIDIA GPU is seen. Install its driver: `nvidia-smi` must list it")
        device = driver.Device(0)
        version = driver.get_driver_version()  # 1000 * major + 10 * minor
        return Gpu(
            device.name(),
            ".".join(map(str, device.compute_capability())),
            device.total_memory(),
            f"{version // 1000}.{version % 1000 // 10}",
        )


@cache
def _primary_context() -> Any:
    """One for the whole process, and for its whole life: pycuda frees memory only under the same context object, and
    releasing it would leave a dead context current for PyTorch."""
    return _driver().Device(0).retain_primary_context()


@contextmanager
def _translated() -> Iterator[None]:
    """pycuda's exceptions as ours."""
    driver = _driver()
    try:
        yield
    except driver.MemoryError as error:
        raise OutOfDeviceMemoryError(f"the GPU is out of memory ({error})") from error
    except driver.Error as error:
        raise DeviceError(f"CUDA failed ({error}); {LOST}") from error


# Contexts that must not be pushed again: pycuda takes them for valid no more, and would pop one too many.
_given_up: list[Any] = []


def _give_up(context: Any) -> None:
    """Take a context that cannot be popped from this thread's stack in pycuda, which would end the process with SIGABRT when
    the thread ends with something on it."""
    driver = _driver()
    with suppress(driver.Error):
        context.detach()  # refused for one that another thread gave up
    _given_up.append(context)
    driver.Context.get_current()  # on its way pycuda drops what was detached


class Device:
    """The GPU, whose primary context is made current only while it is used.

    Raises
    ------
    UnavailableError
        If there is no GPU or its context cannot be had.
    """

    def __init__(self) -> None:
        self.gpu = gpu()
        with _translated():
            self._context = _primary_context()

    @contextmanager
    def active(self) -> Iterator[None]:
        """The context is current on this thread inside, and what was current before is so again afterwards.

        Raises
        ------
        DeviceError
            If CUDA fails inside.
        OutOfDeviceMemoryError
            If it is out of memory.
        """
        driver = _driver()
        if self._context in _given_up:  # it may be another thread that lost it
            raise DeviceError(f"CUDA failed before; {LOST}")
        with _translated():
            self._context.push()
            try:
                yield
            finally:
                try:
                    driver.Context.pop()
                except driver.Error:  # after a sticky error this fails too, and would hide it
                    _give_up(self._context)

    def synchronize(self) -> None:
        """Wait for everything on the device; an error that it met comes out here. Needs :meth:`active`."""
        with _translated():
            _driver().Context.synchronize()


class DeviceMemory:
    """A block of device memory; made and freed under :meth:`Device.active`."""

    def __init__(self, nbytes: int) -> None:
        with _translated():
            self._block: Any = _driver().mem_alloc(nbytes)
        self.nbytes = nbytes
        self.address = int(self._block)

    def free(self) -> None:
        """Give it back; once."""
        with _translated():
            self._block.free()


class PinnedArray:
    """A float32 array in memory that the GPU copies from and to by itself; made and freed under :meth:`Device.active`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        with _translated():
            self.array: NDArray[np.float32] = _driver().pagelocked_empty(shape, np.float32)

    def free(self) -> None:
        """Give it back; once, and nobody may look at the array afterwards."""
        block: Any = self.array.base
        del self.array
        with _translated():
            block.free()


class Event:
    """A moment on a stream; made and dropped under :meth:`Device.active`."""

    def __init__(self) -> None:
        driver = _driver()
        with _translated():
            self._event = driver.Event(driver.event_flags.DISABLE_TIMING)

    def record(self, stream: "Stream") -> None:
        """It happens when the stream has done all that it was given so far."""
        with _translated():
            self._event.record(stream.pycuda)

    def synchronize(self) -> None:
        """Wait for it."""
        with _translated():
            self._event.synchronize()

    def hold(self, stream: "Stream") -> None:
        """The stream goes on only when it has happened; one that was never recorded holds nothing."""
        with _translated():
            stream.pycuda.wait_for_event(self._event)


class Stream:
    """Work on the GPU in its order; made and dropped under :meth:`Device.active`.

    It does not wait for the default stream, on which PyTorch works in the same process, nor lets that wait for it.
    """

    def __init__(self) -> None:
        with _translated():
            self.pycuda = _driver().Stream(_NON_BLOCKING)

    @property
    def handle(self) -> int:
        """CUDA's own, for TensorRT."""
        return int(self.pycuda.handle)

    def upload(self, memory: DeviceMemory, array: NDArray[np.float32]) -> None:
        """Copy a pinned array to the device; it must not change until that is done."""
        with _translated():
            _driver().memcpy_htod_async(memory.address, array, self.pycuda)

    def download(self, array: NDArray[np.float32], memory: DeviceMemory) -> None:
        """Copy from the device to a pinned array, as many bytes as it has."""
        with _translated():
            _driver().memcpy_dtoh_async(array, memory.address, self.pycuda)

    def synchronize(self) -> None:
        """Wait until it has nothing left to do."""
        with _translated():
            self.pycuda.synchronize()
