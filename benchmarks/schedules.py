"""The authors' schedule and the one pass, both in PyTorch, behind the runtime's contract for backends."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.chunks import default_chunk, even_size, infer_in_equal_pieces
from lesionrt.runtime.prepare import HALO
from lesionrt.train.inference import NetworkBackend
from lesionrt.train.model import WINDOW, Network, lesion_probability, windows_of

Array = np.ndarray


def authors_schedule(network: Network, slices: Array) -> Array:
    """Probabilities (n, H, W) of a stack (n + 2, 1, H, W): three encodes and three decodes a window, one of them kept."""
    result = []
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for window in windows_of(torch.from_numpy(np.ascontiguousarray(slices)).to(device)):
            features, skips = network.encode(window[:, None])
            states = features
            if network.convlstm is not None:
                hidden = network.convlstm(features[None])  # after each slice
                last = network.config.readout == "last"  # then every slice is decoded from the state after all three
                states = torch.cat([hidden[-1]] * WINDOW if last else hidden)
            result.append(lesion_probability(network.decode(states, skips))[WINDOW // 2].cpu().numpy())
    return np.stack(result)


class AuthorsSchedule(NetworkBackend):
    """What the authors' code computes for a volume, in float32."""

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W), window after window."""
        return {"lesion": authors_schedule(self.network, feed["slices"])}


class OnePass(NetworkBackend):
    """The one pass in float32 or under bfloat16 autocast, as it is or compiled; as in the runtime no slice is encoded twice."""

    def __init__(self, network: Network, precision: str, compiled: bool) -> None:
        super().__init__(network)
        self.precision = precision
        forward = network.forward_stream
        self._forward: Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]] = (
            torch.compile(forward) if compiled else forward
        )

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        return {"lesion": self.infer_stack(feed["slices"], None, None)}

    def infer_stack(self, slices: Array, chunk: int | None, progress: Callable[[int, int], None] | None) -> Array:
        """A stack (n + 2, 1, H, W) to (n, H, W), in pieces of one size, so that one compilation serves all."""
        height, width = slices.shape[2:]
        half = self.precision == "bf16"
        # Of autocast's type: joined with another one, everything would be computed in float32.
        dtype = torch.bfloat16 if half else torch.float32
        channels = self.network.state_channels()
        shapes = [(2 * HALO, count, height // d, width // d) for d, count in channels.items()]
        empty = [torch.zeros(shape, dtype=dtype, device=self.device) for shape in shapes]
        size = even_size(len(slices), chunk or default_chunk(height, width))
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half),
        ):
            return infer_in_equal_pieces(slices, size, empty, self._piece, progress)

    def _piece(self, slices: Array, state: list[Tensor]) -> tuple[Array, list[Tensor]]:
        lesion, state = self._forward(torch.from_numpy(slices).to(self.device), state)
        return lesion.float().cpu().numpy(), state
