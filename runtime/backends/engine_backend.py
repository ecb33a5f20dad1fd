"""One engine, run on whole stacks and from several threads."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.backends.cuda import Device, DeviceError, OutOfDeviceMemoryError
from lesionrt.runtime.backends.engine_lane import Array, Lane, Progress
from lesionrt.runtime.backends.engine_loaded import LoadedEngine, runtime_cache_file
from lesionrt.runtime.engines.identity import Engine
from lesionrt.runtime.engines.library import load
from lesionrt.runtime.errors import OutputError, StackError, UnavailableError, UsageError
from lesionrt.runtime.prepare import HALO

CLOSED = "the segmenter is closed; use it inside its `with` block"


class EngineBackend:
    """One engine on one GPU; each thread that runs it has an execution context of its own.

    Parameters
    ----------
    engine
        What it is.
    plan
        Its bytes, already known to be the manifest's.

    Attributes
    ----------
    warnings
        What a person should know of the runs so far.

    Raises
    ------
    UnavailableError
        If library or GPU are missing or refuse the plan.
    """

    def __init__(self, engine: Engine, plan: bytes) -> None:
        identity = engine.identity
        trt = load(identity.flavour)
        self.device_gpu = Device()
        self.name, self.precision = identity.flavour, identity.precision
        self.library = f"{trt.__name__} {trt.__version__}"
        self.device = f"{self.device_gpu.gpu.name} (compute capability {self.device_gpu.gpu.compute_capability})"
        self.engine_file = engine.file
        self.warnings: list[str] = []
        self._identity = identity
        self._lock = threading.Lock()
        self._closed = False
        self._lost: str | None = None
        self._limit: int | None = None  # output slices at a time, once memory ran out
        with self.device_gpu.active():
            self._loaded = LoadedEngine(trt, plan, runtime_cache_file(trt, identity, self.device_gpu.gpu))
        self._idle: list[Lane] = []
        # Also at the interpreter's exit, while CUDA is still there.
        self._close = weakref.finalize(self, _close, self.device_gpu, self._idle, self._loaded)

    @property
    def most_slices(self) -> int:
        """Output slices of one run at most; between runs two are encoded again."""
        most = self._identity.profile.largest[0] - 2 * HALO
        return most if self._limit is None else min(most, self._limit)

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.infer_stack(feed["slices"])}

    def infer_stack(
        self,
        slices: Array,
        chunk: int | None = None,
        progress: Progress | None = None,
        release: Callable[[], bool] | None = None,
    ) -> Array:
        """A whole stack (n, 1, H, W), in as few runs as the engine and the memory allow, to (n - 2, H, W).

        Parameters
        ----------
        slices
            float32.
        chunk
            Output slices at a time at most.
        progress
            Called with the output slices done and their total; starts anew if memory runs out.
        release
            Called if memory runs out, to give back what is not in use, and says whether there was any; None for
            :meth:`release_idle`.

        Raises
        ------
        StackError
            If the engine was not built for slices of this size.
        UsageError
            If the backend is closed.
        UnavailableError
            If the GPU fails, or has no room for even one slice.
        """
        total, size = len(slices) - 2 * HALO, slices.shape[2:]
        profile = self._identity.profile
        if not profile.takes(profile.smallest[0], *size):
            raise StackError(
                f"slices are {size[0]}x{size[1]} pixels; the engine {self.engine_file} takes "
                f"{'x'.join(map(str, profile.smallest[1:]))} to {'x'.join(map(str, profile.largest[1:]))}; build one with a larger --max-size"
            )
        limits = (total, self.most_slices, chunk)
        at_once = min(limit for limit in limits if limit is not None)
        released = False
        while True:
            try:
                with self._lane() as lane:
                    return lane.run(slices, at_once, progress)
            except OutOfDeviceMemoryError as error:
                if not released and (release or self.release_idle)():
                    released = True
                    continue
                if at_once == 1:
                    raise UnavailableError(
                        f"{self.device}: no memory for a single slice of {size[0]}x{size[1]} ({error}); end what else uses the GPU"
                    ) from error
                at_once = self._limit = at_once // 2
                released = False
                self.warnings.append(f"the GPU ran out of memory; {at_once} slices at a time from then on ({error})")

    @contextmanager
    def _lane(self) -> Iterator["Lane"]:
        """An execution context that nobody else uses, with the GPU's context current."""
        if self._lost is not None:
            raise DeviceError(self._lost)
        with self.device_gpu.active():
            with self._lock:
                if self._closed:
                    raise UsageError(CLOSED)
                lane = self._idle.pop() if self._idle else None
            try:
                lane = lane or Lane(self._loaded)
                yield lane
            except BaseException as error:
                if lane is not None:
                    lane.close()
                if isinstance(error, UnavailableError):
                    self._look_after(error)
                raise
            fresh, lane.fresh = lane.fresh, False
            with self._lock:
                closed = self._closed
                if not closed:
                    self._idle.append(lane)
            if closed:
                lane.close()
            elif fresh:
                self._keep_what_was_compiled()

    def _keep_what_was_compiled(self) -> None:
        """For the next process, which compiles again without it: that it cannot be kept is a warning."""
        try:
            self._loaded.save_runtime_cache()
        except (UnavailableError, OutputError) as error:
            warning = f"what was compiled for this GPU is not kept ({error})"
            self.warnings += [warning] if warning not in self.warnings else []

    def _look_after(self, error: UnavailableError) -> None:
        """A failure after which nothing on the device answers is for good."""
        try:
            self.device_gpu.synchronize()
        except UnavailableError as sticky:
            self._lost = f"{self.device}: {sticky} (first: {error})"
            raise DeviceError(self._lost) from error

    def release_idle(self) -> bool:
        """Give back the memory of execution contexts that nobody uses; whether there were any."""
        with self._lock:
            lanes, self._idle[:] = list(self._idle), []
        with self.device_gpu.active():
            for lane in lanes:
                lane.close()
        return bool(lanes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True  # what still runs is closed when it returns
        self._close()


def _close(device: Device, lanes: "list[Lane]", loaded: "LoadedEngine") -> None:
    """Free execution contexts before the engine, and the engine before CUDA's context."""
    try:
        with device.active():
            _free(lanes, loaded)
    except UnavailableError:  # after a sticky error nothing can be freed; it is let go of all the same
        _free(lanes, loaded)


def _free(lanes: "list[Lane]", loaded: "LoadedEngine") -> None:
    while lanes:
        lanes.pop().close()
    loaded.close()
