"""One execution context, its streams and its buffers."""

from collections.abc import Callable
from contextlib import suppress
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends.cuda import DeviceMemory, Event, OutOfDeviceMemoryError, PinnedArray, Stream
from lesionrt.runtime.backends.engine_loaded import LoadedEngine
from lesionrt.runtime.engines.schedule import spans
from lesionrt.runtime.errors import BundleError, UnavailableError
from lesionrt.runtime.prepare import HALO

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
Shape = tuple[int, ...]
Buffer = TypeVar("Buffer", PinnedArray, DeviceMemory)
SLOTS = 2  # one is computed while the other is copied
ALIGNMENT = 256  # bytes; also the least that is allocated


class Slot:
    """Buffers for one run's copies, and the moments at which they may be used again.

    Parameters
    ----------
    slices, lesion
        Room for so many numbers of each.
    """

    def __init__(self, slices: int, lesion: int) -> None:
        self._buffers: list[PinnedArray | DeviceMemory] = []
        try:
            self._pinned_slices = self._kept(PinnedArray((slices,)))
            self._pinned_lesion = self._kept(PinnedArray((lesion,)))
            self.slices = self._kept(DeviceMemory(self._pinned_slices.array.nbytes))
            self.lesion = self._kept(DeviceMemory(self._pinned_lesion.array.nbytes))
        except UnavailableError:
            self.free()  # now, while the context is current on this thread
            raise
        self.uploaded, self.computed, self.downloaded = Event(), Event(), Event()

    def _kept(self, buffer: Buffer) -> Buffer:
        self._buffers.append(buffer)
        return buffer

    def shape(self, stack: Shape, lesion: Shape) -> None:
        """Let the host's arrays be as large as a run's."""
        self.host_slices = self._pinned_slices.array[: prod(stack)].reshape(stack)
        self.host_lesion = self._pinned_lesion.array[: prod(lesion)].reshape(lesion)

    def free(self) -> None:
        """Give the buffers back."""
        while self._buffers:
            self._buffers.pop().free()


class Lane:
    """One execution context with its streams and buffers, which are kept for the next volume and only grow."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._context: Any = loaded.execution_context()
        self._stack: Shape | None = None
        self.fresh = False  # whether it ran a shape for the first time, for which RTX compiles
        self._slots: list[Slot] = []
        self._memory: DeviceMemory | None = None
        self._room = (0, 0, 0)  # bytes of the context's memory, numbers of a slot's slices and lesion
        self._upload, self._compute, self._download = Stream(), Stream(), Stream()

    def run(self, slices: Array, at_once: int, progress: Progress | None) -> Array:
        """A whole stack; the next run's upload and the last one's download hide behind the compute."""
        total, height, width = len(slices) - 2 * HALO, *slices.shape[2:]
        result = np.empty((total, height, width), np.float32)
        cuts = spans(total, at_once)
        self._fit((cuts[0][1] - cuts[0][0] + 2 * HALO, 1, height, width))
        for number, (first, last) in enumerate(cuts):
            self._enqueue(self._slots[number % SLOTS], slices[first : last + 2 * HALO])
            if number:  # collect the run before, while this one computes
                self._collect(number - 1, cuts, result, progress)
        self._collect(len(cuts) - 1, cuts, result, progress)
        return result

    def _fit(self, stack: Shape) -> None:
        """Shapes and memory for stacks of this shape; nothing to do if the last volume had it too."""
        if stack == self._stack:
            return
        self._stack = None
        checked, context = self._loaded.checked, self._context
        checked(context.set_input_shape("slices", stack), f"take stacks of {stack}")
        try:
            unspecified = context.infer_shapes()
        except RuntimeError as error:
            unspecified = [str(error)]
        checked(not unspecified, f"tell its shapes ({', '.join(unspecified)})")
        lesion = tuple(context.get_tensor_shape("lesion"))
        expected = (stack[0] - 2 * HALO, *stack[2:])
        if lesion != expected:
            raise BundleError(
                f"the engine gives lesion {lesion} for slices {stack}; expected {expected}: build it again"
            )
        self._loaded.log.forget_errors()
        nbytes = context.update_device_memory_size_for_shapes()
        checked(nbytes > 0 or not self._loaded.log.errors, "tell its memory")
        memory = self._memory_for(max(nbytes, ALIGNMENT), prod(stack), prod(lesion))
        context.set_device_memory(memory.address, memory.nbytes)  # gives nothing back
        checked(not self._loaded.log.errors, "take its memory")
        for slot in self._slots:
            slot.shape(stack, lesion)
        self._stack, self.fresh = stack, True

    def _memory_for(self, *needed: int) -> DeviceMemory:
        """What there is if it is large enough, else more: as much as was ever needed, or where that is too much, as is now."""
        largest = tuple(map(max, needed, self._room))
        if self._memory is not None and largest == self._room:
            return self._memory
        self._free()
        try:
            return self._allocated(*largest)
        except OutOfDeviceMemoryError:
            self._free()
            return self._allocated(*needed)

    def _allocated(self, nbytes: int, slices: int, lesion: int) -> DeviceMemory:
        self._memory = DeviceMemory(nbytes)
        for _ in range(SLOTS):
            self._slots.append(Slot(slices, lesion))
        self._room = (nbytes, slices, lesion)
        return self._memory

    def _enqueue(self, slot: Slot, slices: Array) -> None:
        checked, context = self._loaded.checked, self._context
        # The host's buffers of this slot are free: its last run was collected. The device's may still be read.
        np.copyto(slot.host_slices, slices)
        slot.computed.hold(self._upload)
        self._upload.upload(slot.slices, slot.host_slices)
        slot.uploaded.record(self._upload)
        slot.uploaded.hold(self._compute)
        slot.downloaded.hold(self._compute)
        checked(context.set_tensor_address("slices", slot.slices.address), "take its input's address")
        checked(context.set_tensor_address("lesion", slot.lesion.address), "take its output's address")
        checked(context.execute_async_v3(self._compute.handle), "run")
        slot.computed.record(self._compute)
        slot.computed.hold(self._download)
        self._download.download(slot.host_lesion, slot.lesion)
        slot.downloaded.record(self._download)

    def _collect(self, number: int, cuts: list[tuple[int, int]], result: Array, progress: Progress | None) -> None:
        first, last = cuts[number]
        slot = self._slots[number % SLOTS]
        slot.downloaded.synchronize()
        result[first:last] = slot.host_lesion
        if progress is not None:
            progress(last, len(result))

    def _free(self) -> None:
        """Buffers only; what is still running has to end first."""
        for stream in (self._upload, self._compute, self._download):
            stream.synchronize()
        slots, self._slots, self._room, self._stack = self._slots, [], (0, 0, 0), None
        for slot in slots:
            slot.free()
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free()

    def close(self) -> None:
        """Free everything, as far as the device still answers."""
        with suppress(UnavailableError):
            self._free()
        self._context = None
        del self._upload, self._compute, self._download
