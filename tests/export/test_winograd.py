"""3x3 convolutions with half the multiplications give what the plain ones give."""

import pytest
import torch
import torch.nn.functional as F

from lesionrt.export.winograd import ROWS, conv_relu


def test_ones_are_counted_under_the_kernel() -> None:
    found = conv_relu(torch.ones(1, 1, ROWS, 3), torch.ones(1, 1, 3, 3), torch.tensor([-4.0]))
    # 4 under it at a corner, 6 at an edge, 9 inside; less the bias, nothing below 0.
    expected = [[0.0, 2, 0], [2, 5, 2], [2, 5, 2], [0, 2, 0]]
    torch.testing.assert_close(found[0, 0], torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_each_place_of_the_kernel_shifts_the_map(row: int, column: int) -> None:
    x = torch.arange(1.0, 25).view(1, 1, 8, 3)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, row, column] = 1
    shifted = F.pad(x, (1, 1, 1, 1))[:, :, row : row + 8, column : column + 3]
    torch.testing.assert_close(conv_relu(x, weight, torch.zeros(1)), shifted, rtol=0, atol=1e-4)


def test_many_channels_round_by_about_one_part_in_a_million() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 96, 12, 5), torch.randn(32, 96, 3, 3), torch.randn(32)
    expected = F.relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1))
    difference = (conv_relu(x, weight, bias) - expected).abs().max() / expected.max()
    assert difference < 3e-6
