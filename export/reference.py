"""The PyTorch side of a parity check: the plain window forward, in float32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lesionrt.runtime.bundle import REFERENCE, Bundle
from lesionrt.runtime.errors import CheckpointError
from lesionrt.runtime.files import sha256
from lesionrt.runtime.parity import Reference, load_reference
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.volume import nonzero_brain, read_flair
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import Network, windows_of


def window_probabilities(
    network: Network, slices: NDArray[np.float32], progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Lesion probabilities (n, H, W) of a stack (n + 2, 1, H, W), window by window."""
    windows = windows_of(torch.from_numpy(np.ascontiguousarray(slices)))
    result = np.empty((len(windows), *slices.shape[2:]), np.float32)
    with torch.inference_mode():
        for index, window in enumerate(windows):
            result[index] = network(window[None])[0].numpy()
            if progress is not None:
                progress(index + 1, len(windows))
    return result


def checkpoint_reference(
    bundle: Bundle, checkpoint: Path, flair: Path | None, progress: Callable[[int, int], None] | None = None
) -> Reference:
    """A checkpoint's probabilities, on a whole volume or on the bundle's own phantom slices.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read, or prepares its input otherwise than the bundle.
    VolumeError
        If the volume cannot be used.
    """
    loaded = load_checkpoint(checkpoint)
    if loaded.preparation != bundle.preparation:
        raise CheckpointError(
            f"{checkpoint}: prepares its input as {loaded.preparation}, the bundle {bundle.path} as {bundle.preparation}; export it again"
        )
    if flair is None:
        stored = load_reference(bundle.checked(REFERENCE))
        slices, source = stored.slices, stored.source
    else:
        volume = read_flair(flair)
        slices = prepare_volume(volume, nonzero_brain(volume), bundle.preparation, bundle.size_multiple).slices
        source = f"{flair.name} (sha256 {volume.sha256})"
    return Reference(slices, window_probabilities(loaded.network, slices, progress), sha256(checkpoint), source)
