"""ONNX Runtime with the state of the last slices kept between chunks."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays, Stream
from lesionrt.runtime.backends.onnx_session import OnnxSession, load
from lesionrt.runtime.errors import BundleError

STATE = "state_"


class OnnxStream(OnnxSession):
    """A graph that takes and gives the state between chunks: ``state_D`` in, ``next_D`` out, D pixels per value."""

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.stream()(feed["slices"])}

    def stream(self) -> Stream:
        """Begin a stack."""
        state: dict[str, Any] = {}

        def following(slices: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal state
            with self.failures():
                value = load().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(slices))
                feed = {"slices": value, **(state or self._no_slices(*slices.shape[2:]))}
                lesion, *parts = self._session.run_with_ort_values(None, feed)
                state = dict(zip([*feed][1:], parts, strict=True))
                return lesion.numpy()  # type: ignore[no-any-return]

        return following

    def _no_slices(self, height: int, width: int) -> dict[str, Any]:
        """The state before the first slice of a stack."""
        state = {}
        for value in self._session.get_inputs()[1:]:
            pixels = int(value.name.removeprefix(STATE))
            shape = (0, value.shape[1], height // pixels, width // pixels)
            state[value.name] = load().OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        return state

    @staticmethod
    def _check_names(graph: Path, inputs: list[str], outputs: list[str]) -> None:
        check_names(graph, inputs, outputs)


def check_names(graph: Path, inputs: list[str], outputs: list[str]) -> None:
    """Refuse a graph that does not take and give its state.

    Raises
    ------
    BundleError
        With the names that were found.
    """
    pixels = [name.removeprefix(STATE) for name in inputs[1:]]
    names = [["slices", *(f"{STATE}{d}" for d in pixels)], ["lesion", *(f"next_{d}" for d in pixels)]]
    if [inputs, outputs] != names or not pixels or not all(map(str.isdecimal, pixels)):
        raise BundleError(
            f"{graph}: its inputs and outputs are {[inputs, outputs]}; expected slices and lesion with their state"
        )
