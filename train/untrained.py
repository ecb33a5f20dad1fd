"""A network that never learned anything: a placeholder that runs every path."""

from functools import cache

import numpy as np
import torch
from torch import nn

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.geometry import ModelGrid
from lesionrt.runtime.phantom import phantom
from lesionrt.runtime.prepare import Preparation, prepare
from lesionrt.train.checkpoint import Checkpoint
from lesionrt.train.model import Network, NetworkConfig
from lesionrt.train.weights import initialise

SLICES = 8
RESIDUAL_GAIN = 0.02  # of the attention's r: close to y * (1 + r) with a small r, as residual branches usually start
SMALLEST_VARIANCE = 0.3  # of a layer's mean; what a phantom leaves dark must not explode on a real scan
SHARE_OVER_HALF = 0.01  # of a phantom's pixels, so that masks and tables have a usual size


def untrained_checkpoint(config: NetworkConfig | None = None, seed: int = 0) -> Checkpoint:
    """A seeded network with random weights, scaled so that its activations stay in range.

    Kaiming-uniform weights as in the authors' code; the batch-norm statistics and the last bias are set from a
    phantom, because with unit statistics the attention products grow from level to level until they overflow.
    """
    preparation = Preparation()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config)
        initialise(network, RESIDUAL_GAIN)
    slices = torch.from_numpy(phantom_slices(preparation, network.config.size_multiple, SLICES, seed))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the one batch that follows
                module.train()
            elif isinstance(module, nn.Dropout2d):
                module.eval()
        network.stack_logits(slices)
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.clamp_(min=SMALLEST_VARIANCE * float(module.running_var.mean()))
                module.momentum = 0.1  # as it is by default
        background, lesion = network.stack_logits(slices).unbind(1)
        margin = lesion - background
        network.final.weight /= margin.std()
        network.final.bias[1] -= torch.quantile(margin / margin.std(), 1 - SHARE_OVER_HALF)
    model = ModelInfo(
        name="untrained",
        version=f"seed{seed}",
        trained=False,
        description="random weights; a placeholder that segments nothing",
        training_data="none",
        licence="Apache-2.0",
    )
    return Checkpoint(network, preparation, model)


@cache
def phantom_slices(preparation: Preparation, size_multiple: int, count: int, seed: int = 0) -> np.ndarray:
    """Consecutive prepared slices (count, 1, H, W) through the middle of a phantom's brain."""
    flair, _ = phantom(seed=seed)
    grid = ModelGrid(flair.shape, np.eye(4), preparation.axes, preparation.spacing_mm)
    slices = prepare(flair, flair != 0, grid, preparation, size_multiple).slices
    first = (len(slices) - count) // 2
    return slices[first : first + count]
