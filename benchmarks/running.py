"""A case while it is measured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesionrt.benchmarks.cases import Case
from lesionrt.benchmarks.child import Child
from lesionrt.runtime.errors import UnavailableError

Say = Callable[[str], None]


@dataclass
class Running:
    """A case, its process, and what was found.

    Attributes
    ----------
    row
        Of the report.
    halo_chunk
        Output slices after which two are encoded again; None where none is.
    device_held_mb
        On the GPU, between orders.
    """

    case: Case
    child: Child
    row: dict[str, Any]
    say: Say
    halo_chunk: int | None = None
    device_held_mb: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it did not fail so far."""
        return self.row["skipped"] is None

    @contextlib.contextmanager
    def told(self, failed: str = "skipped") -> Iterator[None]:
        """A case that fails is left out from here on, or of whole volumes alone (``volume_failed``), with its reason."""
        try:
            yield
        except UnavailableError as error:
            self.row[failed] = f"failed: {error}"
            self.say(f"{self.case.name}: {self.row[failed]}")

    def asked(self, do: str, keep: list[dict[str, Any]] | None = None, failed: str = "skipped") -> float | None:
        """Seconds that it says; None if it fails."""
        if self.alive and self.row[failed] is None:
            with self.told(failed):
                answer = self.child.ask(do)
                if keep is not None:
                    keep.append(answer)
                return float(answer["seconds"])
        return None

    def probabilities(self, folder: Path, verb: str) -> np.ndarray:
        """The slab's with the verb ``save``, a whole volume's with ``save_volume``, the bundle's reference slices' with ``reference``.

        Raises
        ------
        UnavailableError
            If it fails; its times stand.
        """
        path = folder / f"{self.case.name}.npy"
        self.child.ask(verb, path=str(path))
        found: np.ndarray = np.load(path)
        return found
