"""3x3 convolutions with half the multiplications: Winograd's F(4, 3) along the height (Lavin and Gray 2016, section 4).

Four rows of the result come of six rows of the input by six products instead of twelve. What stands before and after the products
are convolutions of each channel by itself, to which ONNX Runtime joins the sums, so that it stays in its layout of channel blocks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4  # of the result, computed together: the height is a multiple of them
# For the points 0, 1, -1, 2, -2 and infinity: of rows 0, 2, 4 of the six for the first product, of rows 1, 3, 5 for the last, and of
# rows 1 to 4 for those between.
ENDS = (4.0, -5.0, 1.0)
BETWEEN = ((-4.0, -4.0, 1.0, 1.0), (4.0, -4.0, -1.0, 1.0), (-2.0, -1.0, 2.0, 1.0), (2.0, -1.0, -2.0, 1.0))
KERNEL = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with padding 1, then ReLU.

    Parameters
    ----------
    x
        (n, C, h, w), h a multiple of 4.
    weight
        (K, C, 3, 3).
    bias
        (K,).
    """
    inputs = [
        _each(F.pad(x, (0, 0, 1, 0)), ENDS, stride=ROWS, dilation=2),
        *(_each(x, taps, stride=ROWS) for taps in BETWEEN),
        _each(F.pad(x, (0, 0, 0, 1)), ENDS, stride=ROWS, dilation=2),
    ]
    kernels = (torch.tensor(KERNEL) @ weight).split(1, 2)

    def product(index: int, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(inputs[index], kernels[index], bias, padding=(0, 1))

    one, two, three, four = map(product, range(1, 5))
    even, odd = one + two, _each(two, [-1.0]) + one
    even_far, odd_far = three + four, _each(four, [-1.0]) + three
    rows = (
        product(0, bias) + (even + even_far),
        _each(odd_far, [2.0], bias) + odd,
        _each(even_far, [4.0], bias) + even,
        product(5, bias) + (_each(odd_far, [8.0]) + odd),
    )
    return torch.stack([F.relu(row) for row in rows], 3).flatten(2, 3)


def _each(
    x: Tensor, taps: Sequence[float], bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The same taps along the height in each channel."""
    channels = x.shape[1]
    weight = torch.tensor([*taps]).view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return F.conv2d(x, weight, bias, stride=(stride, 1), dilation=(dilation, 1), groups=channels)
