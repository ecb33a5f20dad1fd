"""An engine in TensorRT's terms, and what RTX compiled for it."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lesionrt.runtime.backends.cuda import Gpu, OutOfDeviceMemoryError
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.engines.identity import Identity
from lesionrt.runtime.engines.library import Log, compiles_at_first_run, start
from lesionrt.runtime.errors import OutputError, UnavailableError
from lesionrt.runtime.files import sha256_of, write_atomically


class LoadedEngine:
    """A deserialised engine with the objects that it needs, and RTX's compiled kernels.

    Parameters
    ----------
    trt
        The library's module.
    plan
        The engine.
    cache_file
        Where the compiled kernels are kept; None to keep none.
    """

    def __init__(self, trt: Any, plan: bytes, cache_file: Path | None) -> None:
        self.log = Log(trt)
        self._trt = trt
        self._runtime = start(trt, "Runtime", self.log)
        self.engine: Any = self.checked(self._runtime.deserialize_cuda_engine(plan), "load the engine")
        self._config: Any = None
        self._cache: Any = None
        self._cache_file, self._cached = cache_file, _kept(cache_file)
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
            if self._cached:
                # One of another device or driver is refused, and compiled anew.
                self._cache.deserialize(self._cached)
                self.log.forget_errors()
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
        """Keep what RTX compiled, for the next process.

        Raises
        ------
        UnavailableError
            If RTX does not give it.
        OutputError
            If it cannot be written.
        """
        if self._cache is None or self._cache_file is None:
            return
        with self._lock:
            compiled = bytes(self.checked(self._cache.serialize(), "give its runtime cache"))
            if compiled and compiled != self._cached:
                self._cached = compiled
                try:
                    write_atomically({self._cache_file: compiled})
                except OSError as error:  # of a folder that may not even be looked into
                    raise OutputError(f"{self._cache_file}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Let go of everything, what depends on something else first."""
        with suppress(UnavailableError, OutputError):
            self.save_runtime_cache()
        self._config = self._cache = None
        self.engine = None
        self._runtime = None


def _kept(cache_file: Path | None) -> bytes:
    try:
        return b"" if cache_file is None else cache_file.read_bytes()
    except OSError:  # there is none yet, or it is not ours to read
        return b""


def runtime_cache_file(trt: Any, identity: Identity, gpu: Gpu) -> Path | None:
    """Where RTX's compiled kernels of an engine are kept, for this driver and GPU; None where nothing is compiled, or this
    user has no folder for it."""
    if not compiles_at_first_run(trt):
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lesionrt"
    except RuntimeError:
        return None
    key = sha256_of(" ".join((identity.sha256, str(gpu), *gpus())).encode())
    return folder / f"rtx_{key[:32]}.cache"
