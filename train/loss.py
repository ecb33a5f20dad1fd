"""What is minimised."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lesionrt.train.model import Network
from lesionrt.train.recipe import Recipe


def dice_loss(probabilities: Tensor, lesions: Tensor, smoothing: float, whole: bool = False) -> Tensor:
    """Soft Dice loss on the lesion class over all pixels of the batch (paper, section 4.1).

    ``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)``, the sums being those of all processes unless this one has the
    `whole` batch.

    >>> dice_loss(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5).item()
    0.375
    """
    sums = torch.stack([(probabilities * lesions).sum(), probabilities.sum() + lesions.sum()])
    if dist.is_initialized() and not whole:
        sums = all_reduce(sums)  # differentiable: shards give the gradient of the whole batch
    return 1 - (2 * sums[0] + smoothing) / (sums[1] + smoothing)


def loss_of(logits: Tensor, lesions: Tensor, smoothing: float, cross_entropy: float, whole: bool = False) -> Tensor:
    """Dice loss plus weighted cross-entropy of logits (n, 2, H, W) against lesions (n, H, W) of 0 and 1, in float32."""
    background, lesion = logits.float().unbind(1)
    margin = lesion - background
    loss = dice_loss(torch.sigmoid(margin), lesions, smoothing, whole)
    if cross_entropy:
        loss = loss + cross_entropy * F.binary_cross_entropy_with_logits(margin, lesions)
    return loss


class Objective(nn.Module):
    """The loss of a batch, as one module: what several processes share the gradients of."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe

    def forward(self, slices: Tensor, lesions: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and logits (n, 2, H, W)."""
        windows = self.recipe.sampling == "windows"
        logits = self.network.window_logits(slices) if windows else self.network.slab_logits(slices)
        return loss_of(logits, lesions.flatten(0, 1), self.recipe.dice_smoothing, self.recipe.cross_entropy), logits
