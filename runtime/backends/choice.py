"""Which backend runs a stack: the one that was asked for, or the first of several that takes it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Backend, choose, open_backend
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import StackError, UnavailableError


@dataclass(frozen=True)
class Chosen:
    """A loaded backend and why it was taken."""

    backend: Backend
    why: str


class BackendChoice:
    """A backend that is loaded once; with ``auto`` also those that take stacks for which its engines were not built.

    Parameters
    ----------
    asked
        A backend's name, or ``auto``; or a loaded backend, which stays open.
    bundle
        The model.
    threads
        On the CPU; None for one a core.

    Attributes
    ----------
    first
        The backend that is tried first on every stack.

    Raises
    ------
    BundleError
        If the model is damaged.
    UnavailableError
        If the backend cannot run here.
    UsageError
        If there is no such backend.
    """

    def __init__(self, asked: str | Backend, bundle: Bundle, threads: int | None = None) -> None:
        self._asked, self._bundle, self._threads = asked, bundle, threads
        self._lock = threading.Lock()
        self._opened: dict[str, Backend] = {}
        self._failed: dict[str, str] = {}
        self.first = self._choose({})

    def infer(
        self,
        slices: NDArray[np.float32],
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[NDArray[np.float32], Chosen]:
        """Probabilities, as :func:`lesionrt.runtime.chunks.infer_in_chunks` gives them, and what computed them.

        Raises
        ------
        StackError
            If the backend was asked for by its name, or is the only one, and its engines were not built for this stack.
        """
        refused: dict[str, str] = {}
        chosen = self.first
        while True:
            try:
                return infer_in_chunks(chosen.backend, slices, chunk, progress), chosen
            except StackError as error:
                if self._asked != "auto":
                    raise
                refused[chosen.backend.name] = str(error)
                try:
                    chosen = self._choose(refused)
                except UnavailableError:
                    raise error from None

    def _choose(self, refused: dict[str, str]) -> Chosen:
        if not isinstance(self._asked, str):
            return Chosen(self._asked, "given, loaded")
        while True:
            name, why = choose(self._asked, self._bundle, {**self._failed, **refused})
            with self._lock:
                if name in self._opened:
                    return Chosen(self._opened[name], why)
                try:
                    self._opened[name] = open_backend(name, self._bundle, threads=self._threads).__enter__()
                except UnavailableError as error:  # it seemed able to
                    if self._asked != "auto":
                        raise
                    self._failed[name] = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for backend in self._opened.values():
            backend.__exit__(kind, error, trace)
