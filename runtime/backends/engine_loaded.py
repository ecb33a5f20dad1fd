"""An engine in TensorRT's terms, and what RTX compiled for it."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lesionrt.runtime.backends.cuda import Device, OutOfDeviceMemoryError
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.engines.library import Log, compiles_at_first_run
from lesionrt.runtime.errors import OutputError, UnavailableError
from lesionrt.runtime.files import sha256_of, write_atomically


class LoadedEngine:
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


def runtime_cache_file(plan: bytes, device: Device) -> Path:
    """Where RTX's compiled kernels of this engine are kept, for this driver and GPU."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lesionrt"
    key = sha256_of(" ".join((sha256_of(plan), str(device.gpu), *gpus())).encode())
    return folder / f"rtx_{key[:32]}.cache"
