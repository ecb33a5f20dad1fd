"""How well the network does on the scans that validate, after each epoch."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lesionrt.train.cache import PreparedScan
from lesionrt.train.loss import loss_of
from lesionrt.train.model import Network
from lesionrt.train.recipe import Recipe

SLICES = 8  # at a time


def validate(
    network: Network,
    scans: Sequence[PreparedScan],
    recipe: Recipe,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> dict[str, float]:
    """Loss and Dice over the validation scans: whole volumes for slabs, slices with lesions for windows (the paper's way)."""
    network.eval()
    totals, losses = torch.zeros(3, dtype=torch.float64), []
    with torch.inference_mode(), autocast:
        for scan in scans:
            centres = torch.arange(1, len(scan.slices) - 1)
            if recipe.sampling == "windows":
                centres = torch.from_numpy(scan.lesion_slices)
            if not len(centres):  # of which split() would give one empty part
                continue
            stack, lesions = torch.from_numpy(scan.slices).float(), torch.from_numpy(scan.lesions).float()
            for part in centres.split(SLICES):
                if recipe.sampling == "windows":
                    windows = torch.stack([stack[part - 1], stack[part], stack[part + 1]], 1)
                    logits = network.window_logits(windows.to(device))
                else:
                    logits = network.stack_logits(stack[part[0] - 1 : part[-1] + 2, None].to(device))
                target = lesions[part].to(device)
                brain = torch.from_numpy(scan.brain)[part].to(device)  # outside it nothing is lesion
                found = (logits[:, 1] > logits[:, 0]) & brain
                totals += torch.tensor([(found * target).sum(), found.sum(), target.sum()], dtype=torch.float64)
                losses.append(float(loss_of(logits, target, recipe.dice_smoothing, recipe.cross_entropy, whole=True)))
    loss = sum(losses) / len(losses) if losses else math.nan  # windows, and no lesion in any of the scans
    return {"validation_loss": loss, "validation_dice": dice_of(totals)}


def dice_of(counts: Tensor) -> float:
    """Of overlap, found and true voxels; 1 where there is neither."""
    overlap, found, true = counts.tolist()
    return 2 * overlap / (found + true) if found + true else 1.0
