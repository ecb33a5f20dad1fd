"""What a training step is fed with; each sample depends on its index alone, so that a run can be resumed exactly."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lesionrt.runtime.prepare import BRAIN_QUARTILE_Z
from lesionrt.train.augment import BACKGROUND, Centres, Lesions, cut, lesions_of
from lesionrt.train.cache import PreparedScan
from lesionrt.train.recipe import Recipe

Sample = tuple[Tensor, Tensor]


class Slabs(Dataset[Sample]):
    """Slabs (s, H, W) float32 and their lesions (s, H, W), 0 or 1."""

    def __init__(self, scans: Sequence[PreparedScan], recipe: Recipe, donors: Sequence[Lesions]) -> None:
        self._recipe = recipe
        self._patients = [
            [scan for scan in scans if scan.patient == name] for name in sorted({s.patient for s in scans})
        ]
        self._centres = {scan.name: Centres(scan) for scan in scans}
        self._donors = [*donors, *(lesions_of(scan) for scan in scans if scan.lesions.any())]
        self.batches = recipe.steps
        self.epoch_batches = recipe.epoch_steps

    def batch(self, step: int) -> list[int]:
        """Indices of a step's slabs."""
        return list(range(step * self._recipe.slabs, (step + 1) * self._recipe.slabs))

    def __getitem__(self, index: int) -> Sample:
        recipe, rng = self._recipe, np.random.default_rng([self._recipe.seed, index])
        # A step's slabs come from as many patients as there are, whatever their number of scans: the batch statistics of
        # one scan do not train.
        step, place = divmod(index, recipe.slabs)
        order = np.random.default_rng([recipe.seed, step, recipe.slabs]).permutation(len(self._patients))
        patient = self._patients[order[place % len(order)]]
        scan = patient[rng.integers(len(patient))]
        centre = self._centres[scan.name].draw(rng, rng.random() < recipe.lesion_centred, recipe.size // 4)
        slab = cut(scan, centre, recipe.slab_slices, recipe.size, recipe.augmentation, self._donors, rng)
        return torch.from_numpy(slab.slices), torch.from_numpy(slab.lesions.astype(np.float32))


class Windows(Dataset[Sample]):
    """Windows (3, H, W) around every slice with lesions, and that slice's lesions (1, H, W), 0 or 1; all of one size."""

    def __init__(self, scans: Sequence[PreparedScan], recipe: Recipe) -> None:
        self._recipe = recipe
        self._size = tuple(max(scan.slices.shape[axis] for scan in scans) for axis in (1, 2))
        self._items = [(scan, int(index)) for scan in scans for index in scan.lesion_slices]
        self.epoch_batches = max(1, -(-len(self._items) // recipe.batch))
        self.batches = recipe.epochs * self.epoch_batches

    def batch(self, step: int) -> list[int]:
        """Indices of a step's windows: every epoch all of them in another order."""
        epoch, place = divmod(step, self.epoch_batches)
        order = np.random.default_rng([self._recipe.seed, epoch]).permutation(len(self._items))
        return [int(i) for i in order[place * self._recipe.batch : (place + 1) * self._recipe.batch]]

    def __getitem__(self, index: int) -> Sample:
        scan, slice_ = self._items[index]
        window = scan.slices[slice_ - 1 : slice_ + 2].astype(np.float32)
        outside = BACKGROUND if self._recipe.normalisation == BRAIN_QUARTILE_Z else float(window[0, 0, 0])
        return (
            torch.from_numpy(self._padded(window, outside)),
            torch.from_numpy(self._padded(scan.lesions[slice_][None].astype(np.float32), 0)),
        )

    def _padded(self, stack: np.ndarray, value: float) -> np.ndarray:
        pads = [(0, 0)]
        for length, size in zip(stack.shape[1:], self._size, strict=True):
            pads.append(((size - length) // 2, size - length - (size - length) // 2))
        return np.pad(stack, pads, constant_values=value)


class Batches:
    """A step's samples of one process, from a step on."""

    def __init__(self, samples: Slabs | Windows, start: int, rank: int, world: int) -> None:
        self._samples, self._start, self._rank, self._world = samples, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._samples.batches):
            batch = self._samples.batch(step)
            # Shards of one size, so that the mean of their gradients is the batch's; only the last windows of an epoch, which may
            # be fewer, repeat some for it. Neighbours in the batch stay together: they are of several patients.
            batch += (batch * self._world)[: -len(batch) % self._world]
            share = len(batch) // self._world
            yield batch[self._rank * share : (self._rank + 1) * share]
