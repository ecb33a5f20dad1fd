"""What the TensorRT backends share: a bundle's engine on an NVIDIA GPU, through pycuda and without PyTorch."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays, Backend, Probe
from lesionrt.runtime.backends.cuda import (
    Device,
    DeviceError,
    DeviceMemory,
    Event,
    OutOfDeviceMemoryError,
    PinnedArray,
    Stream,
    gpu,
)
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.bundle import PRECISIONS, Bundle
from lesionrt.runtime.engines.identity import Engine, engines_of
from lesionrt.runtime.engines.library import LIBRARIES, Log, compiles_at_first_run, load
from lesionrt.runtime.engines.schedule import spans
from lesionrt.runtime.errors import BundleError, InputError, OutputError, UnavailableError
from lesionrt.runtime.files import sha256_of, write_atomically
from lesionrt.runtime.parity import TOLERANCES, load_reference
from lesionrt.runtime.prepare import HALO

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
Buffer = TypeVar("Buffer", PinnedArray, DeviceMemory)
SLOTS = 2  # one is computed while the other is copied
ALIGNMENT = 256  # bytes; also the least that is allocated


def probe(flavour: str) -> Probe:
    """Whether a flavour's engines can run here at all."""
    title = LIBRARIES[flavour].title
    try:
        library = f"{LIBRARIES[flavour].module} {load(flavour).__version__}"
    except UnavailableError as error:
        return Probe(flavour, LIBRARIES[flavour].module, "NVIDIA GPU", *_problem_and_remedy(error))
    try:
        found = gpu()
    except UnavailableError as error:
        return Probe(flavour, library, "NVIDIA GPU", *_problem_and_remedy(error))
    if not hasattr(load(flavour), "Runtime"):
        return Probe(flavour, library, found.name, f"this {title} has no runtime", "Install the full library")
    return Probe(flavour, library, f"{found.name} (compute capability {found.compute_capability})")


def _problem_and_remedy(error: UnavailableError) -> tuple[str, str]:
    problem, dot, remedy = str(error).partition(". ")
    return problem, remedy if dot else "See `lesionrt doctor`"


def engine_problem(flavour: str, bundle: Bundle, precision: str | None = None) -> tuple[str, str] | None:
    """Why a bundle has no engine that runs here, and the command that builds one; None if it has."""
    version, here = load(flavour).__version__, gpu()
    listed = [
        engine
        for engine in engines_of(bundle.manifest)
        if engine.identity.flavour == flavour and precision in (None, engine.identity.precision)
    ]
    reasons = {engine.identity.mismatch(version, here.name, here.compute_capability) for engine in listed}
    if None in reasons:
        return None
    asked = precision or (listed[-1].identity.precision if listed else bundle.precisions[0])
    remedy = f"Run: lesionrt engine build {bundle.path} --flavor {flavour} --precision {asked}"
    kind = f"{flavour} engine" if precision is None else f"{flavour} engine of precision {precision}"
    if not listed:
        return f"{bundle.path} has no {kind}", remedy
    return f"{bundle.path} has no {kind} that runs here: {'; '.join(sorted(map(str, reasons)))}", remedy


def find_engine(flavour: str, bundle: Bundle, precision: str | None = None) -> Engine:
    """The engine that runs here: the most exact precision if none is asked for, and of those the latest.

    Raises
    ------
    UnavailableError
        If there is none, with the command that builds one.
    """
    problem = engine_problem(flavour, bundle, precision)
    if problem is not None:
        raise UnavailableError(". ".join(problem))
    return runnable(flavour, bundle, precision)[-1]


def runnable(flavour: str, bundle: Bundle, precision: str | None = None) -> list[Engine]:
    """The engines of a flavour that run here, the most exact and latest last."""
    version, here = load(flavour).__version__, gpu()
    fitting = [
        engine
        for engine in engines_of(bundle.manifest)
        if engine.identity.flavour == flavour
        and precision in (None, engine.identity.precision)
        and engine.identity.mismatch(version, here.name, here.compute_capability) is None
    ]
    return sorted(fitting, key=lambda engine: -PRECISIONS.index(engine.identity.precision))


def open_engine(flavour: str, bundle: Bundle, precision: str | None) -> Backend:
    """Load a bundle's engine."""
    engine = find_engine(flavour, bundle, precision)
    return EngineBackend(engine, read_plan(bundle, engine))


def read_plan(bundle: Bundle, engine: Engine) -> bytes:
    """A plan whose sha256 is the manifest's: to load another would be to run whatever is in it.

    Raises
    ------
    BundleError
        If it is missing or not the plan that was built.
    """
    build = f"build it again: lesionrt engine build {bundle.path} --flavor {engine.identity.flavour} --precision {engine.identity.precision} --force"
    finding = bundle.check(engine.file)
    if finding is None:
        plan = (bundle.path / engine.file).read_bytes()
        # Of the very bytes that are loaded, not of the file that was there a moment ago.
        if sha256_of(plan) == bundle.manifest["files"][engine.file]["sha256"]:
            return plan
        finding = "it changed while it was read"
    raise BundleError(
        f"{bundle.path / engine.file}: {finding}; it is not loaded. If you did not expect this, find out why; to mend it, {build}"
    )


def measure(bundle: Bundle, engine: Engine, plan: bytes) -> list[dict[str, Any]] | None:
    """A finished engine's parity with the bundle's reference, or None where it cannot run.

    Raises
    ------
    ParityError
        If it is out of tolerance.
    """
    from lesionrt.runtime.bundle import REFERENCE
    from lesionrt.runtime.errors import ParityError
    from lesionrt.runtime.parity import report_lines
    from lesionrt.runtime.verify import compare_backend

    identity = engine.identity
    reference = load_reference(bundle.checked(REFERENCE))
    if probe(identity.flavour).problem is not None:
        return None
    here = gpu()
    if identity.mismatch(load(identity.flavour).__version__, here.name, here.compute_capability) is not None:
        return None
    if not identity.profile.takes(identity.profile.smallest[0], *reference.slices.shape[2:]):
        return None
    try:
        with EngineBackend(engine, plan) as backend:
            row = compare_backend(bundle, backend, reference, TOLERANCES[identity.precision])
    except UnavailableError:  # another GPU may run it: the plan is kept, without a figure
        return None
    if row["findings"]:
        raise ParityError(
            "the engine does not agree with PyTorch; it was not added to the bundle\n" + "\n".join(report_lines([row]))
        )
    return [row]


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
        self._lost: str | None = None
        self._limit: int | None = None  # output slices at a time, once memory ran out
        with self.device_gpu.active():
            self._loaded = _Loaded(trt, plan, _runtime_cache_file(plan, self.device_gpu))
        self._idle: list[_Lane] = []
        # Also at the interpreter's exit, while CUDA is still there.
        self._close = weakref.finalize(self, _close, self.device_gpu, self._idle, self._loaded)

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.infer_stack(feed["slices"])}

    def infer_stack(self, slices: Array, chunk: int | None = None, progress: Progress | None = None) -> Array:
        """A whole stack (n, 1, H, W), in as few runs as the engine and the memory allow, to (n - 2, H, W).

        Parameters
        ----------
        slices
            float32.
        chunk
            Output slices at a time at most.
        progress
            Called with the output slices done and their total; starts anew if memory runs out.

        Raises
        ------
        InputError
            If the engine was not built for slices of this size.
        UnavailableError
            If the GPU fails, or has no room for even one slice.
        """
        total, size = len(slices) - 2 * HALO, slices.shape[2:]
        profile = self._identity.profile
        if not profile.takes(profile.smallest[0], *size):
            raise InputError(
                f"slices are {size[0]}x{size[1]} pixels; the engine {self.engine_file} takes "
                f"{'x'.join(map(str, profile.smallest[1:]))} to {'x'.join(map(str, profile.largest[1:]))}; build one with a larger --max-size"
            )
        limits = (total, profile.largest[0] - 2 * HALO, chunk, self._limit)
        at_once = min(limit for limit in limits if limit is not None)
        while True:
            try:
                with self._lane() as lane:
                    return lane.run(slices, at_once, progress)
            except OutOfDeviceMemoryError as error:
                self._release_idle()
                if at_once == 1:
                    raise UnavailableError(
                        f"{self.device}: no memory for a single slice of {size[0]}x{size[1]} ({error}); end what else uses the GPU"
                    ) from error
                at_once = self._limit = at_once // 2
                self.warnings.append(f"the GPU ran out of memory; {at_once} slices at a time from then on ({error})")

    @contextmanager
    def _lane(self) -> Iterator["_Lane"]:
        """An execution context that nobody else uses, with the GPU's context current."""
        if self._lost is not None:
            raise DeviceError(self._lost)
        with self.device_gpu.active():
            with self._lock:
                lane = self._idle.pop() if self._idle else None
            lane = lane or _Lane(self._loaded)
            try:
                yield lane
            except BaseException as error:
                lane.close()
                if isinstance(error, UnavailableError):
                    self._look_after(error)
                raise
            if lane.fresh:
                lane.fresh = False
                self._loaded.save_runtime_cache()
            with self._lock:
                self._idle.append(lane)

    def _look_after(self, error: UnavailableError) -> None:
        """A failure after which nothing on the device answers is for good."""
        try:
            self.device_gpu.synchronize()
        except UnavailableError as sticky:
            self._lost = f"{self.device}: {sticky} (first: {error})"
            raise DeviceError(self._lost) from error

    def _release_idle(self) -> None:
        with self._lock:
            lanes, self._idle[:] = list(self._idle), []
        with self.device_gpu.active():
            for lane in lanes:
                lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _close(device: Device, lanes: "list[_Lane]", loaded: "_Loaded") -> None:
    """Free execution contexts before the engine, and the engine before CUDA's context."""
    with suppress(UnavailableError), device.active():  # after a sticky error nothing can be freed, and nothing is left
        for lane in lanes:
            lane.close()
        lanes.clear()
        loaded.close()


class _Loaded:
    """A deserialised engine with the objects that it needs, and RTX's compiled kernels."""

    def __init__(self, trt: Any, plan: bytes, cache_file: Path) -> None:
        self.log = Log(trt)
        self._trt = trt
        self._runtime = trt.Runtime(self.log.logger)
        self.engine: Any = self.checked(self._runtime.deserialize_cuda_engine(plan), "load the engine")
        self._config: Any = None
        self._cache: Any = None
        self._cache_file, self._cached = cache_file, b""
        self._lock = threading.Lock()
        if compiles_at_first_run(trt):
            self._config = self.checked(self.engine.create_runtime_config(), "make a runtime configuration")
            self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            # Kernels that are exchanged while it runs would let the same slices give other bits.
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            # The configuration does not keep the cache alive.
            self._cache = self.checked(self._config.create_runtime_cache(), "make a runtime cache")
            if cache_file.is_file():
                self._cached = cache_file.read_bytes()
                # One of another device or driver is refused, and compiled anew.
                self._cache.deserialize(self._cached)
                self.log.errors.clear()
            self.checked(self._config.set_runtime_cache(self._cache), "use a runtime cache")

    def execution_context(self) -> Any:
        """A new one, which has no memory of its own."""
        if self._config is not None:
            context = self.engine.create_execution_context(self._config)
        else:
            context = self.engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return self.checked(context, "make an execution context")

    def checked(self, result: Any, what: str) -> Any:
        """What a TensorRT call gave, unless it says that the call failed.

        Raises
        ------
        OutOfDeviceMemoryError, UnavailableError
            With TensorRT's own message.
        """
        if result is not None and result is not False:
            return result
        message = self.log.text_of_errors()
        text = f"{self._trt.__name__} {self._trt.__version__} could not {what}: {message}"
        if any(
            sign in message.lower()
            for sign in ("out of memory", "out_of_memory", "outofmemory", "memoryallocation", "failed_allocation")
        ):
            raise OutOfDeviceMemoryError(text)
        raise UnavailableError(text)

    def save_runtime_cache(self) -> None:
        """Keep what RTX compiled, for the next process."""
        if self._cache is None:
            return
        with self._lock:
            compiled = bytes(self.checked(self._cache.serialize(), "give its runtime cache"))
            if compiled and compiled != self._cached:
                self._cached = compiled
                with suppress(OutputError):  # without it the next process compiles again, and that is all
                    write_atomically({self._cache_file: compiled})

    def close(self) -> None:
        """Let go of everything, what depends on something else first."""
        with suppress(UnavailableError):
            self.save_runtime_cache()
        self._config = self._cache = None
        self.engine = None
        self._runtime = None


def _runtime_cache_file(plan: bytes, device: Device) -> Path:
    """Where RTX's compiled kernels of this engine are kept, for this driver and GPU."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lesionrt"
    key = sha256_of(" ".join((sha256_of(plan), str(device.gpu), *gpus())).encode())
    return folder / f"rtx_{key[:32]}.cache"


class _Slot:
    """Buffers for one run's copies, and the moments at which they may be used again."""

    def __init__(self, stack: tuple[int, int, int, int]) -> None:
        slices, _, height, width = stack
        self._buffers: list[PinnedArray | DeviceMemory] = []
        try:
            self.host_slices = self._kept(PinnedArray(stack))
            self.host_lesion = self._kept(PinnedArray((slices - 2 * HALO, height, width)))
            self.slices = self._kept(DeviceMemory(self.host_slices.array.nbytes))
            self.lesion = self._kept(DeviceMemory(self.host_lesion.array.nbytes))
        except UnavailableError:
            self.free()  # now, while the context is current on this thread
            raise
        self.uploaded, self.computed, self.downloaded = Event(), Event(), Event()

    def _kept(self, buffer: Buffer) -> Buffer:
        self._buffers.append(buffer)
        return buffer

    def free(self) -> None:
        while self._buffers:
            self._buffers.pop().free()


class _Lane:
    """One execution context with its streams and buffers, kept for the next volume of the same size."""

    def __init__(self, loaded: _Loaded) -> None:
        self._loaded = loaded
        self._context: Any = loaded.execution_context()
        self._stack: tuple[int, int, int, int] | None = None
        self.fresh = False  # whether it ran a shape for the first time, for which RTX compiles
        self._slots: list[_Slot] = []
        self._memory: DeviceMemory | None = None
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

    def _fit(self, stack: tuple[int, int, int, int]) -> None:
        """Shapes and memory for stacks of this shape; nothing to do if the last volume had it too."""
        if stack == self._stack:
            return
        self._free()
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
        self._loaded.log.errors.clear()
        nbytes = context.update_device_memory_size_for_shapes()
        checked(nbytes > 0 or not self._loaded.log.errors, "tell its memory")
        self._memory = DeviceMemory(max(nbytes, ALIGNMENT))
        context.set_device_memory(self._memory.address, self._memory.nbytes)
        for _ in range(SLOTS):
            self._slots.append(_Slot(stack))
        self._stack, self.fresh = stack, True

    def _enqueue(self, slot: _Slot, slices: Array) -> None:
        checked, context = self._loaded.checked, self._context
        # The host's buffers of this slot are free: its last run was collected. The device's may still be read.
        np.copyto(slot.host_slices.array, slices)
        slot.computed.hold(self._upload)
        self._upload.upload(slot.slices, slot.host_slices.array)
        slot.uploaded.record(self._upload)
        slot.uploaded.hold(self._compute)
        slot.downloaded.hold(self._compute)
        checked(context.set_tensor_address("slices", slot.slices.address), "take its input's address")
        checked(context.set_tensor_address("lesion", slot.lesion.address), "take its output's address")
        checked(context.execute_async_v3(self._compute.handle), "run")
        slot.computed.record(self._compute)
        slot.computed.hold(self._download)
        self._download.download(slot.host_lesion.array, slot.lesion)
        slot.downloaded.record(self._download)

    def _collect(self, number: int, cuts: list[tuple[int, int]], result: Array, progress: Progress | None) -> None:
        first, last = cuts[number]
        slot = self._slots[number % SLOTS]
        slot.downloaded.synchronize()
        result[first:last] = slot.host_lesion.array
        if progress is not None:
            progress(last, len(result))

    def _free(self) -> None:
        """Buffers only; what is still running has to end first."""
        for stream in (self._upload, self._compute, self._download):
            stream.synchronize()
        slots, self._slots, self._stack = self._slots, [], None
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
