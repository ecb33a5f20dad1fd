"""A checkpoint's network on whole volumes: the runtime's own preparation and chunks, computed by PyTorch."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import CheckpointError
from lesionrt.runtime.files import sha256
from lesionrt.runtime.lesions import find_lesions
from lesionrt.runtime.prepare import Preparation, prepare_volume
from lesionrt.runtime.segmenter import check_options
from lesionrt.runtime.volume import Volume, nonzero_brain, skull_warning
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.dataset import Scan
from lesionrt.train.model import Network
from lesionrt.train.predictions import Prediction
from lesionrt.train.processes import enough_memory

THRESHOLD = 0.5  # a voxel is lesion where its probability is over this; `lesionrt export` writes it into a bundle


class NetworkBackend:
    """A network in PyTorch behind the runtime's contract for backends."""

    name = "pytorch"
    precision = "fp32"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.library = f"torch {torch.__version__}"
        self.device = str(next(network.parameters()).device)

    def infer(self, feed: Arrays) -> dict[str, NDArray[np.float32]]:
        """``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W), probabilities."""
        slices = torch.from_numpy(np.ascontiguousarray(feed["slices"])).to(self.device)
        # cuDNN would take TF32 for float32 convolutions; these are the numbers that others are compared with. Unless it is
        # named, `flags` switches cuDNN off altogether.
        with (
            enough_memory("a GPU without other programs, or the bundle with `--chunk`"),
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            return {"lesion": self.network.forward_stack(slices).cpu().numpy()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def volume_probability(network: Network, preparation: Preparation, flair: Volume) -> NDArray[np.float32]:
    """Lesion probability (X, Y, Z) on a volume's own grid, 0 outside its brain.

    Parameters
    ----------
    network
        In evaluation mode.
    preparation
        The model's.
    flair
        A skull-stripped volume.

    Raises
    ------
    CheckpointError
        If the network gives anything but numbers.
    VolumeError
        If the volume cannot be prepared.
    """
    brain = nonzero_brain(flair)
    prepared = prepare_volume(flair, brain, preparation, network.config.size_multiple)
    probabilities = infer_in_chunks(NetworkBackend(network), prepared.slices)
    if not np.isfinite(probabilities).all():
        raise CheckpointError(f"{flair.name}: the network gave probabilities that are not numbers; train it anew")
    probability = prepared.restore(probabilities)
    probability[~brain] = 0
    return probability


class CheckpointModel:
    """A checkpoint's predictions; a context manager, as other models are."""

    def __init__(self, path: Path, threshold: float | None = None, min_lesion_mm3: float = 0.0) -> None:
        check_options(threshold, min_lesion_mm3)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._checkpoint = load_checkpoint(path)
        self._network = self._checkpoint.network.to(device)
        self._threshold = THRESHOLD if threshold is None else threshold
        self._min_lesion_mm3 = min_lesion_mm3
        model = self._checkpoint.model
        self.description = {
            "what": f"checkpoint {path}: {model.name} {model.version}",
            "kind": "checkpoint",
            "model": model.as_dict(),
            "model_sha256": sha256(path),
            "backend": NetworkBackend.name,
            "device": str(device),
            "precision": NetworkBackend.precision,
            "threshold": self._threshold,
            "min_lesion_mm3": min_lesion_mm3,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, scan: Scan, flair: Volume) -> Prediction:
        """The mask of a scan."""
        probability = volume_probability(self._network, self._checkpoint.preparation, flair)
        mask, _ = find_lesions(probability > self._threshold, probability, flair.affine, self._min_lesion_mm3)
        skull = skull_warning(flair)
        return Prediction(mask, () if skull is None else (skull,))
