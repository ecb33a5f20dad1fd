"""FC-DenseNet with squeeze-and-attention and ConvLSTM (Rondinella et al. 2023, section 3.3).

The network reads three consecutive axial FLAIR slices and gives the lesion probability of the centre
one.  It has three forwards with the same numbers: on windows of three slices, as the paper describes it;
on a stack of consecutive slices in one pass, in which no slice is encoded twice; and on a stack that comes
piece by piece, in which the last two slices' encoding is passed on.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lesionrt.runtime.errors import CheckpointError

WINDOW = 3  # consecutive slices (paper, section 3.3)
CLASSES = 2  # background, lesion
GATES = 4  # input, forget, output, cell
# A configuration from a file is built without memory first, to compare shapes; these bound the time which that takes.
LARGEST = {"levels": 8, "layers": 64}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that rebuilds a network; the defaults are the paper's full one.

    Parameters
    ----------
    growth_rate
        New channels of one dense layer.
    layers
        Dense layers in each block.  The paper's Table 1 says 4, the authors' code and the
        parameter counts of Table 5 say 5.
    levels
        Levels down and up; height and width must be multiples of ``2 ** levels`` pixels.
    first_channels
        Channels of the first convolution.
    input_channels
        Channels over which the grey value is repeated.
    attention, convlstm
        Whether the network has squeeze-and-attention blocks and the ConvLSTM (Table 5).
    readout
        ``last``: decode the ConvLSTM's hidden state after all three slices, as the paper's text says.
        ``centre``: decode the one at the centre slice, as the authors' code does.
    dropout
        Probability of dropping a channel in training.

    Raises
    ------
    CheckpointError
        If a value is of the wrong type or out of range.
    """

    growth_rate: int = 12
    layers: int = 5
    levels: int = 5
    first_channels: int = 48
    input_channels: int = 3
    attention: bool = True
    convlstm: bool = True
    readout: Literal["last", "centre"] = "last"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("growth_rate", "layers", "levels", "first_channels", "input_channels"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CheckpointError(
                    f"network configuration: {name} is {value!r}; expected a whole number of at least 1"
                )
            if value > LARGEST.get(name, value):
                raise CheckpointError(f"network configuration: {name} is {value}; expected at most {LARGEST[name]}")
        for name in ("attention", "convlstm"):
            if type(getattr(self, name)) is not bool:
                raise CheckpointError(
                    f"network configuration: {name} is {getattr(self, name)!r}; expected true or false"
                )
        if self.readout not in ("last", "centre"):
            raise CheckpointError(f"network configuration: readout is {self.readout!r}; expected 'last' or 'centre'")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise CheckpointError(f"network configuration: dropout is {self.dropout!r}; expected 0 <= dropout < 1")

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of, in pixels."""
        return int(2**self.levels)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a manifest."""
        return asdict(self)


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, dropout: some new channels out of all channels so far."""

    def __init__(self, channels: int, growth_rate: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth_rate, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, growth rate, h, w)."""
        return self.dropout(self.conv(F.relu(self.norm(x))))


class DenseBlock(nn.Module):
    """Dense layers, each fed with everything before it (paper, Table 1).

    On the way down the block passes its input on together with the new channels, at the bottleneck
    and on the way up only the new ones.
    """

    def __init__(self, channels: int, config: NetworkConfig, keep_input: bool) -> None:
        super().__init__()
        self.keep_input = keep_input
        self.channels = channels * keep_input + config.layers * config.growth_rate  # that it passes on
        self.layers = nn.ModuleList(
            DenseLayer(channels + i * config.growth_rate, config.growth_rate, config.dropout)
            for i in range(config.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, C + new, h, w), or to (n, new, h, w) without the input."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features if self.keep_input else features[1:], 1)


def double_conv(channels: int) -> nn.Sequential:
    """Two times 3x3 convolution, BatchNorm, ReLU; channels kept."""
    parts: list[nn.Module] = []
    for _ in range(2):
        parts += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*parts)


class SqueezeAttention(nn.Module):
    """Squeeze-and-attention (paper, section 3.2 and Figure 4): ``y * r + y``.

    ``y`` looks at the 2x2 average of the input, ``r`` at full resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = double_conv(channels)
        self.residual = double_conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to the same shape; h and w even."""
        y = F.interpolate(self.squeeze(F.avg_pool2d(x, 2)), scale_factor=2.0, mode="nearest")
        return self.product(y, self.residual(x))

    @staticmethod
    def product(y: Tensor, r: Tensor) -> Tensor:
        """``y * r + y``; unbounded, so an export may compute it in another precision than the rest."""
        return y * r + y


class TransitionDown(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, dropout, 2x2 max pooling."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, C, h/2, w/2)."""
        return F.max_pool2d(self.dropout(self.conv(F.relu(self.norm(x)))), 2)


class TransitionUp(nn.Module):
    """3x3 transposed convolution of stride 2, cropped to the skip connection, then [up, skip]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(n, C, h/2, w/2) and a skip connection (n, S, h, w) to (n, C + S, h, w)."""
        up = self.conv(x)[..., :-1, :-1]  # 2h + 1 to 2h: a centre crop of one row takes the last
        return torch.cat([up, skip], 1)


class ConvLSTM(nn.Module):
    """One ConvLSTM layer, one direction, no bias, zero initial state (paper, section 3.2).

    The gates (input, forget, output, cell) are one convolution over [input, hidden].  As it is linear,
    it is a convolution of the input plus one of the hidden state; the first is done once a slice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gates = nn.Conv2d(2 * channels, GATES * channels, 3, padding=1, bias=False)

    def forward(self, windows: Tensor) -> list[Tensor]:
        """Features (batch, 3, C, h, w) to the hidden state (batch, C, h, w) after each slice, step by step."""
        hidden = cell = torch.zeros_like(windows[:, 0])
        states = []
        for features in windows.unbind(1):
            gates = self.gates(torch.cat([features, hidden], 1))
            hidden, cell = self._step(gates, cell)
            states.append(hidden)
        return states

    def input_gates(self, features: Tensor) -> Tensor:
        """Features (n, C, h, w) to what they give to the gates (n, 4C, h, w), in whichever window a slice stands."""
        return F.conv2d(features, self.gates.weight[:, : self.channels], padding=1)

    def stack(self, gates: Tensor, readout: str) -> Tensor:
        """Input gates (n, 4C, h, w) of consecutive slices to hidden states (n - 2, C, h, w), all windows at once."""
        from_hidden = self.gates.weight[:, self.channels :]
        # Static shifts of the stack are its windows. The state before the first slice is zero: there is no hidden
        # state to convolve and nothing to forget.
        i, _, o, g = gates[:-2].chunk(GATES, 1)
        cell = torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        hidden, cell = self._step(gates[1:-1] + F.conv2d(hidden, from_hidden, padding=1), cell)
        if readout == "last":
            hidden, cell = self._step(gates[2:] + F.conv2d(hidden, from_hidden, padding=1), cell)
        return hidden

    @staticmethod
    def _step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = gates.chunk(GATES, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class Network(nn.Module):
    """The paper's network (Figure 2, Table 1) and its variants (Table 5)."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        new = config.growth_rate * config.layers
        self.first = nn.Conv2d(config.input_channels, config.first_channels, 3, padding=1)

        skips = [config.first_channels + (level + 1) * new for level in range(config.levels)]  # 108, 168, 228, 288, 348
        self.dense_down = nn.ModuleList(DenseBlock(channels - new, config, keep_input=True) for channels in skips)
        self.attention_down = nn.ModuleList(SqueezeAttention(channels) for channels in skips if config.attention)
        self.transition_down = nn.ModuleList(TransitionDown(channels, config.dropout) for channels in skips)

        self.bottleneck = DenseBlock(skips[-1], config, keep_input=False)
        self.convlstm = ConvLSTM(new) if config.convlstm else None

        top = config.levels - 1
        self.transition_up = nn.ModuleList(TransitionUp(new) for _ in skips)
        self.dense_up = nn.ModuleList(
            DenseBlock(new + channels, config, keep_input=level == top)
            for level, channels in enumerate(reversed(skips))
        )
        self.attention_up = nn.ModuleList(SqueezeAttention(new) for _ in skips[1:] if config.attention)
        self.final = nn.Conv2d(new + skips[0] + new, CLASSES, 1)

    def encode(self, slices: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Slices (n, 1, H, W) to bottleneck features (n, 60, H/32, W/32) and the skip connections, finest first."""
        # Grey repeated over the input channels meets the sum of the kernel over them.
        x = F.conv2d(slices, self.first.weight.sum(1, keepdim=True), self.first.bias, padding=1)  # (n, 48, H, W)
        skips = []
        for level, (dense, transition) in enumerate(zip(self.dense_down, self.transition_down, strict=True)):
            x = dense(x)
            if self.config.attention:
                x = self.attention_down[level](x)
            skips.append(x)
            x = transition(x)
        return self.bottleneck(x), skips

    def decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck features (n, 60, H/32, W/32) and skip connections to logits (n, 2, H, W)."""
        levels = zip(self.transition_up, self.dense_up, reversed(skips), strict=True)
        for level, (transition, dense, skip) in enumerate(levels):
            x = dense(transition(x, skip))
            if level < len(self.attention_up):
                x = self.attention_up[level](x)
        return self.final(x)  # type: ignore[no-any-return]

    def window_logits(self, windows: Tensor) -> Tensor:
        """Windows (batch, 3, H, W) to logits (batch, 2, H, W) of the centre slices, slice after slice."""
        batch, steps, height, width = windows.shape
        features, skips = self.encode(windows.reshape(batch * steps, 1, height, width))
        features = features.unflatten(0, (batch, steps))
        centre = WINDOW // 2
        if self.convlstm is None:
            hidden = features[:, centre]
        else:
            hidden = self.convlstm(features)[-1 if self.config.readout == "last" else centre]
        return self.decode(hidden, [skip.unflatten(0, (batch, steps))[:, centre] for skip in skips])

    def stack_logits(self, slices: Tensor) -> Tensor:
        """A stack (n, 1, H, W) to logits (n - 2, 2, H, W) of all slices but the first and last, in one pass."""
        return self._decode_centres(self._encode_once(slices))

    def stream_logits(self, slices: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next slices of a stack to logits: each slice is encoded once, however the stack is cut.

        Parameters
        ----------
        slices
            (n, 1, H, W); at least 3 at the start of a stack, then at least 1.
        state
            What :meth:`stream_logits` gave for the slices before, of the shapes in :meth:`state_channels`;
            at the start of a stack of no slices (0, C, h, w).

        Returns
        -------
        Logits (n, 2, H, W), at the start (n - 2, 2, H, W), of the slices that have both neighbours now, and the
        next state, of the last two slices.
        """
        encoded = [torch.cat([before, new]) for before, new in zip(state, self._encode_once(slices), strict=True)]
        return self._decode_centres(encoded), [part[1 - WINDOW :] for part in encoded]

    def state_channels(self) -> dict[int, int]:
        """Pixels per value along height and width, and channels, of each part of the state."""
        bottleneck = self.bottleneck.channels * (1 if self.convlstm is None else GATES)
        skips = {2**level: dense.channels for level, dense in enumerate(self.dense_down)}
        return {**skips, self.config.size_multiple: bottleneck}

    def _encode_once(self, slices: Tensor) -> list[Tensor]:
        """What the windows share: skip connections, finest first, and input gates (or features) at the bottleneck."""
        features, skips = self.encode(slices)
        return [*skips, features if self.convlstm is None else self.convlstm.input_gates(features)]

    def _decode_centres(self, encoded: list[Tensor]) -> Tensor:
        """What :meth:`_encode_once` gives of n slices to logits (n - 2, 2, H, W) of all but the first and last."""
        *skips, features = encoded
        hidden = features[1:-1] if self.convlstm is None else self.convlstm.stack(features, self.config.readout)
        return self.decode(hidden, [skip[1:-1] for skip in skips])

    def slab_logits(self, slabs: Tensor) -> Tensor:
        """Slabs (batch, s, H, W) of consecutive slices to logits (batch s, 2, H, W), in one pass.

        Each slab's first and last slice repeat themselves as neighbour, as the runtime has it at a volume's ends.
        """
        batch, count, height, width = slabs.shape
        *skips, features = self._encode_once(slabs.reshape(batch * count, 1, height, width))
        if self.convlstm is not None:
            slab, halo = torch.arange(batch)[:, None], torch.arange(-1, count + 1).clamp(0, count - 1)
            gates = features[(slab * count + halo).flatten().to(slabs.device)]  # count + 2 of each slab
            # Windows that begin in one slab and end in the next are dropped.
            first = (slab * (count + 2) + torch.arange(count)).flatten().to(slabs.device)
            features = self.convlstm.stack(gates, self.config.readout)[first]
        return self.decode(features, skips)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 3, H, W) to lesion probabilities (batch, H, W) of the centre slices."""
        return lesion_probability(self.window_logits(windows))

    def forward_stack(self, slices: Tensor) -> Tensor:
        """A stack of consecutive slices (n, 1, H, W) to lesion probabilities (n - 2, H, W)."""
        return lesion_probability(self.stack_logits(slices))

    def forward_stream(self, slices: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The next slices of a stack and :meth:`stream_logits`'s state to lesion probabilities and the next state."""
        logits, state = self.stream_logits(slices, state)
        return lesion_probability(logits), state


def lesion_probability(logits: Tensor) -> Tensor:
    """Softmax over the two classes, lesion class, in float32: (n, 2, H, W) to (n, H, W)."""
    background, lesion = logits.float().unbind(1)
    return torch.sigmoid(lesion - background)


def windows_of(slices: Tensor) -> Tensor:
    """Every window of a stack: (n, 1, H, W) to (n - 2, 3, H, W)."""
    n = slices.shape[0]
    return torch.stack([slices[i : n - 2 + i, 0] for i in range(WINDOW)], 1)
