"""The one-pass network as an ONNX graph that takes and gives the state between chunks of slices."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from lesionrt.export.blocked import BlockedStream, store_unfilled
from lesionrt.export.graph import EXAMPLE, OPSETS, Shape, check_signature, trace
from lesionrt.export.weights import share_weights, store_in_half
from lesionrt.train.model import WINDOW, Network


class Stream(nn.Module):
    """:meth:`Network.forward_stream`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def state_channels(self) -> dict[int, int]:
        """Of the network."""
        return self.network.state_channels()

    def forward(self, slices: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Slices (n, 1, H, W) and the state to probabilities and the next state."""
        lesion, following = self.network.forward_stream(slices, state)
        return lesion, *following


def export_stream_graph(stream: Stream | BlockedStream, path: Path, metadata: Mapping[str, str], weights: Path) -> None:
    """Write the float32 graph ``slices``, ``state_1``, ``state_2``, ... to ``lesion``, ``next_1``, ``next_2``, ...

    A part of the state is (k, C, H/d, W/d), where its name ends with d: k is 0 at the start of a stack, then 2.
    ``slices`` (n, 1, H, W) give ``lesion`` (k + n - 2, H, W) and the next state.  All but C is dynamic.

    Parameters
    ----------
    stream
        Of a network in evaluation mode, with one input channel.
    path
        The file to write.
    metadata
        Texts to store in the graph.
    weights
        The float32 graph of :func:`lesionrt.export.graph.export_graph` in the same folder, from which the new one
        takes its weights.

    Raises
    ------
    ParityError
        If an input or output of the graph is not what it should be.
    """
    channels = stream.state_channels()
    multiple = max(channels)
    inputs: dict[str, Shape] = {"slices": (None, 1, None, None)}
    outputs: dict[str, Shape] = {"lesion": (None, None, None)}
    for d, c in channels.items():
        inputs[f"state_{d}"] = outputs[f"next_{d}"] = (None, c, None, None)
    stack, h, w = EXAMPLE
    slices = torch.zeros(stack, 1, h * multiple, w * multiple)
    state = [torch.zeros(WINDOW - 1, c, h * multiple // d, w * multiple // d) for d, c in channels.items()]
    height, width, known = Dim("h", min=1), Dim("w", min=1), Dim("k", min=0)
    model = trace(
        stream.eval(),
        (slices, state),
        (
            {0: Dim("n", min=1), 2: multiple * height, 3: multiple * width},
            [{0: known, 2: multiple // d * height, 3: multiple // d * width} for d in channels],
        ),
        [*inputs],
        [*outputs],
        OPSETS["fp32"],
    )
    if isinstance(stream, BlockedStream):
        store_unfilled(model, stream)
    store_in_half(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    check_signature(model, inputs, outputs)
    share_weights(model, weights)
    onnx.save(model, path)
