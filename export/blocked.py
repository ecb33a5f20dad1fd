"""The network as ONNX Runtime computes it fastest on a CPU: the same numbers, channels in whole blocks.

Its fast convolutions (MLAS, layout NCHWc) take channels in blocks of up to 16, and stay in that layout from one operator to the
next only while all channels come in whole blocks. Dense layers bring 12 each, so that the plain graph leaves it and comes back at
every layer. Here every tensor is filled up with channels of zeros; a convolution of several tensors side by side is the sum of
one for each, so that large ones are not copied together again for each layer; a norm before a convolution is a convolution
of each channel by itself; a transposed convolution is four plain ones; and wide 3x3 convolutions take half the multiplications.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from lesionrt.export import winograd
from lesionrt.export.weights import prepend
from lesionrt.train.model import DenseBlock, Network, SqueezeAttention, TransitionDown, lesion_probability

BLOCK = 16  # channels: MLAS's with AVX-512; those of narrower processors, 4 and 8, divide it
WIDE = 96  # output channels from which fewer multiplications pay for the sums before and after them
FILLED = "filled"  # what the exporter calls the weights of :class:`BlockedStream`


@dataclass(frozen=True)
class Blocked:
    """Feature maps (n, C, h, w), and where among the C channels the network's own stand; the others are zero."""

    value: Tensor
    channels: tuple[int, ...]

    def map(self, value: Tensor) -> "Blocked":
        """Other feature maps with the same channels."""
        return Blocked(value, self.channels)


@dataclass(frozen=True)
class Places:
    """Of which of the network's weights a filled one is made: along axes 0 and 1, the place after the last being zeros."""

    weight: str
    axes: tuple[Tensor, Tensor]


class BlockedStream(nn.Module):
    """:meth:`Network.forward_stream` with its state and all between in whole blocks of channels.

    Attributes
    ----------
    filled
        The network's weights and norms, filled up.
    places
        By its name in `filled`, of what a convolution's weight is made.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.filled = nn.ParameterDict()
        self.places: dict[str, Places] = {}
        self._names = {module: name for name, module in network.named_modules()}
        multiple = network.config.size_multiple
        with torch.no_grad():  # which fills up the weights as they are met
            parts = self.encode(torch.zeros(3, 1, multiple, multiple))
            self._decode_centres(parts)
        self._channels = [part.value.shape[1] for part in parts]

    def state_channels(self) -> dict[int, int]:
        """As :meth:`Network.state_channels`, in whole blocks."""
        return dict(zip(self.network.state_channels(), self._channels, strict=True))

    def forward(self, slices: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Slices (n, 1, H, W) and the state to probabilities and the next state."""
        pairs = zip(state, self.encode(slices), strict=True)
        encoded = [new.map(torch.cat([before, new.value])) for before, new in pairs]
        return lesion_probability(self._decode_centres(encoded)), *(part.value[-2:] for part in encoded)

    def _decode_centres(self, encoded: Sequence[Blocked]) -> Tensor:
        *skips, features = (part.map(part.value[1:-1]) for part in encoded)
        if self.network.convlstm is not None:
            features = whole(self.network.convlstm.stack(encoded[-1].value, self.network.config.readout))
        return self.decode(features, skips)

    def encode(self, slices: Tensor) -> list[Blocked]:
        """Slices (n, 1, H, W) to skip connections, finest first, and input gates (or features) at the bottleneck."""
        network = self.network
        x = self.conv([whole(slices)], network.first)
        skips = []
        for level, (dense, transition) in enumerate(zip(network.dense_down, network.transition_down, strict=True)):
            new = joined(self.dense_layers([x], dense))
            x = joined([x, self.packed(new, dense) if network.config.attention else new])
            if network.config.attention:
                x = self.squeeze_attention(x, network.attention_down[level], network.config.levels - level)
            skips.append(x)
            x = self.transition_down(x, transition)
        x = joined(self.dense_layers([x], network.bottleneck))
        if network.convlstm is not None:
            gates = network.convlstm.gates
            x = whole(F.conv2d(x.value, self.weight(gates, x, 0, gates.out_channels), padding=1))
        return [*skips, x]

    def decode(self, x: Blocked, skips: Sequence[Blocked]) -> Tensor:
        """Bottleneck features and skip connections to logits (n, 2, H, W)."""
        network = self.network
        parts = [x]
        levels = zip(network.transition_up, network.dense_up, reversed(skips), strict=True)
        for level, (transition, dense, skip) in enumerate(levels):
            before = [self.transposed_conv(joined(parts), transition.conv), skip]
            parts = self.dense_layers(before, dense)
            if dense.keep_input:
                parts = [*before, *parts]
            if level < len(network.attention_up):
                parts = [self.squeeze_attention(joined(parts), network.attention_up[level], level + 1)]
        return self.conv(parts, network.final).value[:, : network.final.out_channels]

    def conv(self, parts: Sequence[Blocked], module: nn.Conv2d) -> Blocked:
        """A convolution of feature maps side by side."""
        total: Tensor | None = None
        start, size = 0, in_blocks(module.out_channels)
        for part in parts:
            bias = (
                None
                if total is not None
                else self.vector(module, "bias", module.bias, range(module.out_channels), size)
            )
            found = F.conv2d(part.value, self.weight(module, part, start, size), bias, padding=module.padding)  # type: ignore[arg-type]
            total = found if total is None else total + found
            start += len(part.channels)
        assert total is not None
        return Blocked(total, tuple(range(module.out_channels)))

    def transposed_conv(self, x: Blocked, module: nn.ConvTranspose2d) -> Blocked:
        """A 3x3 transposed convolution of stride 2, cropped to twice the size: a convolution for each parity of row and column."""
        size = in_blocks(module.out_channels)
        bias = self.vector(module, "bias", module.bias, range(module.out_channels), size)
        kernel = self.weight(module, x, 0, size)
        taps = torch.tensor([2, 0]), torch.tensor([1])  # of the kernel, for even and for odd
        rows = []
        for i in (0, 1):
            columns = []
            for j in (0, 1):
                padded = F.pad(x.value, (1 - j, 0, 1 - i, 0))
                part = kernel.index_select(2, taps[i]).index_select(3, taps[j]).transpose(0, 1)
                columns.append(F.conv2d(padded, part, bias))
            rows.append(torch.stack(columns, 4).flatten(3))
        return Blocked(torch.stack(rows, 3).flatten(2, 3), tuple(range(module.out_channels)))

    def norm_relu(self, parts: Sequence[Blocked], norm: nn.BatchNorm2d) -> list[Blocked]:
        """BatchNorm and ReLU of feature maps side by side, as convolutions of each channel by itself."""
        scale, shift = scale_and_shift(norm)
        found: list[Blocked] = []
        start = 0
        for part in parts:
            size, stop = part.value.shape[1], start + len(part.channels)
            weight, bias = (
                self.vector(norm, f"{name}_{start}", vector[start:stop], part.channels, size)
                for name, vector in (("scale", scale), ("shift", shift))
            )
            found.append(part.map(F.relu(F.conv2d(part.value, weight[:, None, None, None], bias, groups=size))))
            start = stop
        return found

    def dense_layers(self, parts: Sequence[Blocked], block: DenseBlock) -> list[Blocked]:
        """What each layer of a dense block adds to feature maps side by side."""
        new: list[Blocked] = []
        for layer in block.layers:
            before = [*parts, joined(new)] if new else parts
            new.append(self.conv(self.norm_relu(before, layer.norm), layer.conv))  # type: ignore[arg-type]
        return new

    def packed(self, x: Blocked, block: DenseBlock) -> Blocked:
        """What a dense block adds with its zeros behind it: fewer blocks, where many channels come of each."""
        count = len(x.channels)
        key = f"{self._names[block]}_packed".replace(".", "_")
        if key not in self.filled:
            size = x.value.shape[1]
            rows = F.pad(torch.eye(size), (0, 0, 0, 1))[filling(x.channels, range(count), in_blocks(count), size)]
            self._fill(key, rows[:, :, None, None])
        return Blocked(F.conv2d(x.value, self.filled[key]), tuple(range(count)))

    def transition_down(self, x: Blocked, module: TransitionDown) -> Blocked:
        """BatchNorm, ReLU, 1x1 convolution, 2x2 max pooling."""
        x = self.conv(self.norm_relu([x], module.norm), module.conv)
        return x.map(F.max_pool2d(x.value, 2))

    def squeeze_attention(self, x: Blocked, module: SqueezeAttention, halvings: int) -> Blocked:
        """``y * r + y``; the height is a multiple of 2 to the power of `halvings`."""
        y = self.double_conv(x.map(F.avg_pool2d(x.value, 2)), module.squeeze, 2 ** (halvings - 1))
        r = self.double_conv(x, module.residual, 2**halvings)
        up = F.interpolate(y.value, scale_factor=2.0, mode="nearest")
        return r.map(SqueezeAttention.product(up, r.value))

    def double_conv(self, x: Blocked, modules: nn.Sequential, multiple: int) -> Blocked:
        """Two times 3x3 convolution, BatchNorm, ReLU; the height is a multiple of `multiple`."""
        for conv, norm in (modules[:2], modules[3:5]):
            weight, bias = self.with_norm(conv, norm, x)
            if weight.shape[0] >= WIDE and multiple % winograd.ROWS == 0:
                found = winograd.conv_relu(x.value, weight, bias)
            else:
                found = F.relu(F.conv2d(x.value, weight, bias, padding=1))
            x = Blocked(found, tuple(range(conv.out_channels)))
        return x

    def with_norm(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Blocked) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution of `x` and the norm after it together."""
        size = in_blocks(conv.out_channels)
        scale, shift = (
            self.vector(norm, name, values, range(conv.out_channels), size)
            for name, values in zip(("scale", "shift"), scale_and_shift(norm, conv.bias), strict=True)
        )
        return self.weight(conv, x, 0, size) * scale[:, None, None, None], shift

    def weight(self, module: nn.Conv2d | nn.ConvTranspose2d, x: Blocked, start: int, size: int) -> Tensor:
        """A convolution's weight for feature maps that are its input channels from `start` on; `size` channels come out."""
        key = f"{self._names[module]}_{start}".replace(".", "_")
        if key not in self.filled:
            inputs, outputs = int(isinstance(module, nn.Conv2d)), int(isinstance(module, nn.ConvTranspose2d))
            indices = [torch.empty(0)] * 2
            indices[inputs] = filling(
                range(start, start + len(x.channels)), x.channels, x.value.shape[1], module.in_channels
            )
            count = module.out_channels
            indices[outputs] = filling(range(count), range(count), size, count)
            weight = F.pad(module.weight, (0, 0, 0, 0, 0, 1, 0, 1))
            self.places[key] = Places(f"{self._names[module]}.weight", (indices[0], indices[1]))
            self._fill(key, weight.index_select(0, indices[0]).index_select(1, indices[1]))
        return self.filled[key]

    def vector(self, module: nn.Module, name: str, values: Tensor | None, channels: Sequence[int], size: int) -> Tensor:
        """A value per channel, filled up with zeros."""
        key = f"{self._names[module]}_{name}".replace(".", "_")
        if key not in self.filled:
            assert values is not None
            self._fill(key, F.pad(values, (0, 1))[filling(range(len(values)), channels, size, len(values))])
        return self.filled[key]

    def _fill(self, key: str, values: Tensor) -> None:
        self.filled[key] = nn.Parameter(values, requires_grad=False)


def store_unfilled(model: onnx.ModelProto, stream: BlockedStream) -> None:
    """Let a graph of :class:`BlockedStream` hold the network's own weights, and fill them up when it is loaded."""
    weights = dict(stream.network.named_parameters())
    stored = {tensor.name for tensor in model.graph.initializer}
    padded: dict[str, str] = {}
    nodes = []

    def constant(name: str, values: Tensor) -> str:
        if name not in stored:
            model.graph.initializer.append(numpy_helper.from_array(values.detach().numpy(), name))
            stored.add(name)
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    for tensor in list(model.graph.initializer):
        places = stream.places.get(tensor.name.removeprefix(f"{FILLED}."))
        if places is None:
            continue
        name = f"network.{places.weight}"
        if name not in padded:
            pads = constant("one_more", torch.tensor([0, 0, 0, 0, 1, 1, 0, 0]))
            padded[name] = node("Pad", [constant(name, weights[places.weight]), pads], f"{name}.padded")
        rows, columns = (constant(f"{tensor.name}.axis_{axis}", index) for axis, index in enumerate(places.axes))
        model.graph.initializer.remove(tensor)
        first = node("Gather", [padded[name], rows], f"{tensor.name}.rows", axis=0)
        node("Gather", [first, columns], tensor.name, axis=1)
    prepend(model, nodes)


def whole(value: Tensor) -> Blocked:
    """Feature maps that are all the network's own."""
    return Blocked(value, tuple(range(value.shape[1])))


def joined(parts: Sequence[Blocked]) -> Blocked:
    """Feature maps side by side."""
    if len(parts) == 1:
        return parts[0]
    channels: list[int] = []
    start = 0
    for part in parts:
        channels += [start + channel for channel in part.channels]
        start += part.value.shape[1]
    return Blocked(torch.cat([part.value for part in parts], 1), tuple(channels))


def in_blocks(channels: int) -> int:
    """As many channels, in whole blocks.

    >>> in_blocks(12), in_blocks(112)
    (16, 112)
    """
    return -(-channels // BLOCK) * BLOCK


def filling(sources: Sequence[int], channels: Sequence[int], size: int, zero: int) -> Tensor:
    """Which source stands at each of `size` places: the sources at `channels`, else `zero`.

    >>> filling((5, 6), (0, 2), 4, 9)
    tensor([5, 9, 6, 9])
    """
    index = torch.full((size,), zero)
    index[list(channels)] = torch.tensor(list(sources))
    return index


def scale_and_shift(norm: nn.BatchNorm2d, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a norm at inference multiplies each channel with, and what it adds, after a convolution with a bias or without."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return scale, norm.bias - mean * scale
