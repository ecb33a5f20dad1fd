"""The engines of one precision, among which a stack's shape decides."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.backends.engine_backend import CLOSED, EngineBackend
from lesionrt.runtime.backends.engine_choice import holding
from lesionrt.runtime.backends.engine_lane import Array, Progress
from lesionrt.runtime.backends.engine_plan import read_plan
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.engines.identity import Engine
from lesionrt.runtime.errors import UsageError


class EngineGroup:
    """A bundle's engines of one precision: each stack runs on one whose profile holds it.

    The latest is loaded at once, another when a stack first needs it.

    Parameters
    ----------
    bundle
        That has them.
    engines
        The latest last.

    Raises
    ------
    BundleError
        If a plan is not the one that was built.
    UnavailableError
        If library or GPU are missing or refuse the plan.
    """

    def __init__(self, bundle: Bundle, engines: Sequence[Engine]) -> None:
        self._bundle, self._engines = bundle, engines
        self._lock, self._closed = threading.Lock(), False
        self._loaded: dict[str, EngineBackend] = {}
        latest = self._load(engines[-1])
        self.name, self.precision = latest.name, latest.precision
        self.library, self.device = latest.library, latest.device

    @property
    def engine_file(self) -> str | None:
        """Of the only engine; None where there are several."""
        return self._engines[0].file if len(self._engines) == 1 else None

    @property
    def warnings(self) -> list[str]:
        """What a person should know of the runs so far."""
        return [warning for backend in [*self._loaded.values()] for warning in backend.warnings]

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.infer_stack(feed["slices"])}

    def infer_stack(self, slices: Array, chunk: int | None = None, progress: Progress | None = None) -> Array:
        """A whole stack, as :meth:`EngineBackend.infer_stack` does it.

        Raises
        ------
        StackError
            If no engine was built for slices of this size.
        UsageError
            If the backend is closed.
        """
        return self.backend_for(slices).infer_stack(slices, chunk, progress, self._release_idle)

    def backend_for(self, slices: Array) -> EngineBackend:
        """What runs a stack (n, 1, H, W); the latest engine, which says what it takes, if none can."""
        count, _, height, width = slices.shape
        return self._load(holding(self._engines, count, height, width) or self._engines[-1])

    def _release_idle(self) -> bool:
        """Give back what none of the engines uses; whether there was any."""
        released = [backend.release_idle() for backend in [*self._loaded.values()]]
        return any(released)

    def _load(self, engine: Engine) -> EngineBackend:
        with self._lock:
            if self._closed:
                raise UsageError(CLOSED)
            if engine.file not in self._loaded:
                self._loaded[engine.file] = EngineBackend(engine, read_plan(self._bundle, engine))
            return self._loaded[engine.file]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
        for backend in self._loaded.values():
            backend.__exit__(kind, error, trace)
