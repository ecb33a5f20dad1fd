"""The network's weights: their first values, their norms, and their rounding."""

import torch
from torch import nn

from lesionrt.train.model import Network, SqueezeAttention


def norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Its batch norms."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def initialise(network: Network, attention_gain: float = 1.0) -> None:
    """Kaiming-uniform weights and zero biases, as in the authors' code.

    With an `attention_gain` below 1, ``y * r + y`` is nearly ``y`` at first, so that products of products do not grow (the same
    reason as for small last norms in residual blocks: Goyal et al. 2017, section 5.1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, SqueezeAttention):
            last = [part for part in module.residual if isinstance(part, nn.BatchNorm2d)][-1]
            nn.init.constant_(last.weight, attention_gain)


def round_weights(network: nn.Module) -> None:
    """Round every weight to the nearest float16, in place."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
