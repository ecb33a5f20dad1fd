"""TensorRT and TensorRT for RTX: one programming interface from two libraries."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TextIO

from lesionrt.runtime.errors import UnavailableError

# What lesionrt builds on; a library without one of these is too old, whatever it calls its version.
_NEEDED = (
    ("DataType", "BF16"),
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
    ("IExecutionContext", "set_device_memory"),
    ("IExecutionContext", "update_device_memory_size_for_shapes"),
)
# Since 10.10 a context's memory follows its stack where this is asked for; a later library may do so unasked.
_RESIZES = ("PreviewFeature", "RUNTIME_ACTIVATION_RESIZE_10_10")


@dataclass(frozen=True)
class Library:
    """A flavour of TensorRT.

    Attributes
    ----------
    flavour
        As it is called on the command line; also the extra that brings it.
    title
        For messages.
    module
        To import.
    since
        The oldest version that will do, for what the module cannot be asked: 10.12 is TensorRT's first in which strong typing
        is the way, and contexts of 10.9 ask for the memory of the largest stack whatever the stack.
    """

    flavour: str
    title: str
    module: str
    since: tuple[int, int]


LIBRARIES = {
    "tensorrt": Library("tensorrt", "TensorRT", "tensorrt", (10, 12)),
    "rtx": Library("rtx", "TensorRT for RTX", "tensorrt_rtx", (1, 1)),
}


def load(flavour: str) -> Any:
    """A flavour's module.

    Raises
    ------
    UnavailableError
        If it is not installed, does not load or is too old.
    """
    library = LIBRARIES[flavour]
    if find_spec(library.module) is None:
        raise UnavailableError(f"{library.title} is not installed. Run: pip install 'lesionrt[{flavour}]'")
    try:
        module = import_module(library.module)
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(
            f"{library.title} is installed but cannot be loaded ({error}). "
            f"Run: pip install --force-reinstall {library.module.replace('_', '-')}"
        ) from error
    _check_age(library, module)
    return module


def _check_age(library: Library, module: Any) -> None:
    """Refuse a library that is too old.

    Raises
    ------
    UnavailableError
        With its version, the one that is needed, and what it lacks.
    """
    number = re.match(r"(\d+)\.(\d+)", module.__version__)
    old = number is not None and (int(number[1]), int(number[2])) < library.since
    needed = (*_NEEDED, _RESIZES) if old else _NEEDED
    missing = [f"{kind}.{name}" for kind, name in needed if not hasattr(getattr(module, kind, None), name)]
    if old or missing:
        lacks = f"has no {', '.join(missing)}" if missing else "is too old"
        least = ".".join(map(str, library.since))
        raise UnavailableError(
            f"{library.title} {module.__version__} {lacks}; expected {least} or later. "
            f"Run: pip install --upgrade 'lesionrt[{library.flavour}]' (on a Jetson: a JetPack that brings it)"
        )


def start(trt: Any, kind: str, log: "Log") -> Any:
    """A library's ``Builder`` or ``Runtime``.

    Raises
    ------
    UnavailableError
        If the library does not start here, with TensorRT's own message.
    """
    log.forget_errors()
    try:
        return getattr(trt, kind)(log.logger)
    except TypeError as error:  # as pybind11 puts it that there is none
        raise UnavailableError(
            f"{trt.__name__} {trt.__version__} does not start: {log.text_of_errors()}. Install the newest NVIDIA driver, "
            f"or a {trt.__name__} for the CUDA version that `nvidia-smi` names"
        ) from error


def compiles_at_first_run(trt: Any) -> bool:
    """Whether this library leaves the choice of kernels to the device that runs the engine, as RTX does."""
    return hasattr(trt, "IRuntimeCache")


class _Errors(threading.local):
    """A list for each thread, which goes with it."""

    def __init__(self) -> None:
        self.found: list[str] = []


class Log:
    """What TensorRT says: every line into a file as it is said, its errors at hand for our own.

    Threads that share it see the errors of their own calls only. Those of threads that TensorRT started itself belong to no
    call that could be told: whoever asks first has them.

    Parameters
    ----------
    trt
        The library's module.
    file
        To write to; None to write nothing and to keep no lines, as where an engine runs for ever.

    Attributes
    ----------
    lines
        Without what is verbose.
    """

    def __init__(self, trt: Any, file: TextIO | None = None) -> None:
        self.lines: list[str] = []
        self._file = file
        self._own, self._workers = _Errors(), list[str]()
        self.logger = _logger(trt, self._take)

    @property
    def errors(self) -> list[str]:
        """What TensorRT complained of since this thread last forgot it."""
        return [*self._own.found, *self._workers]

    def forget_errors(self) -> None:
        """Nothing that was said so far concerns this thread's next call."""
        self._own.found.clear()
        self._workers.clear()

    def text_of_errors(self) -> str:
        """TensorRT's own message, for an error of ours; forgotten afterwards."""
        errors = self.errors
        self.forget_errors()
        return "; ".join(dict.fromkeys(errors)) or "TensorRT gave no reason"

    def _take(self, severity: str, message: str) -> None:
        if severity == "VERBOSE":
            return
        if severity in ("ERROR", "INTERNAL_ERROR"):
            ours = threading.get_ident() in {thread.ident for thread in threading.enumerate()}
            (self._own.found if ours else self._workers).append(message.strip())
        if self._file is not None:
            self.lines.append(message)
            self._file.write(f"{severity}: {message}\n")
            self._file.flush()  # a build that is killed leaves what it said


def _logger(trt: Any, take: Callable[[str, str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            take(severity.name, msg)

    return Logger()
