"""The authors' schedule and the one pass, both in PyTorch, behind the runtime's contract for backends."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lesionrt.runtime.backends import Arrays
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
    """The one pass in float32 or under bfloat16 autocast, as it is or compiled.

    Two slices of each chunk are encoded again: with its state kept, as in the runtime, PyTorch was no faster when it was tried: it
    copies what it joins.
    """

    def __init__(self, network: Network, precision: str, compiled: bool) -> None:
        super().__init__(network)
        self.precision = precision
        forward: Callable[[Tensor], Tensor] = network.forward_stack
        self._forward = torch.compile(forward) if compiled else forward

    def infer(self, feed: Arrays) -> dict[str, Array]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W)."""
        slices = torch.from_numpy(np.ascontiguousarray(feed["slices"])).to(self.device)
        kind = slices.device.type
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            return {"lesion": self._forward(slices).float().cpu().numpy()}
