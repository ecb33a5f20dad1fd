"""From a bundle back to its checkpoint: the network's weights stand in the float32 graph."""

from dataclasses import replace

import numpy as np
import torch
from onnx import numpy_helper

from lesionrt.export.reference import window_probabilities
from lesionrt.export.weights import read_graph
from lesionrt.runtime.bundle import REFERENCE, Bundle
from lesionrt.runtime.errors import BundleError, CheckpointError
from lesionrt.runtime.parity import EXPORT_TOLERANCES, load_reference
from lesionrt.train.checkpoint import Checkpoint
from lesionrt.train.model import WINDOW, Network, NetworkConfig

PREFIX = "network."  # of the exported module's part
# Under which names the exporter's constants stand for a weight, one beside the other along the input channels: the first kernel
# summed over the repeated grey channels, and a small network's gates, cut into those of the input and of the hidden state.
FOLDED = {"first.weight": ["sum_1"], "convlstm.gates.weight": ["slice_1", "slice_2"]}
UNUSED = "num_batches_tracked"  # of batch norms: for training alone, not in the graph


def restore_checkpoint(bundle: Bundle) -> Checkpoint:
    """A checkpoint that computes what the bundle's was: its network takes one grey channel instead of repeating it.

    Raises
    ------
    BundleError
        If the float32 graph lacks weights, or they do not give the probabilities that PyTorch gave at export.
    """
    path = bundle.graph("fp32")
    remedy = "give the checkpoint itself"
    # Weights that float16 holds exactly are stored as such: read back, all are those of the checkpoint.
    weights = {
        tensor.name.removeprefix(PREFIX): numpy_helper.to_array(tensor) for tensor in read_graph(path).graph.initializer
    }
    for name, parts in FOLDED.items():
        if name not in weights and all(part in weights for part in parts):
            weights[name] = np.concatenate([weights[part] for part in parts], 1)
    try:
        network = Network(replace(NetworkConfig(**bundle.manifest["network"]), input_channels=1)).eval()
    except (TypeError, CheckpointError) as error:
        raise BundleError(f"{bundle.path}: its network cannot be restored ({error}); {remedy}") from error
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith(UNUSED)}
    lacking = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    if lacking:
        raise BundleError(
            f"{path}: lacks {len(lacking)} of the network's {len(wanted)} weights ({lacking[0]}, ...), as after another "
            f"exporter than that of `lesionrt export`; {remedy}"
        )
    network.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in wanted}, strict=False)
    _check(network, bundle, remedy)
    return Checkpoint(network, bundle.preparation, bundle.model)


def _check(network: Network, bundle: Bundle, remedy: str) -> None:
    """One window: names alone would not tell weights that were changed after the export."""
    known, bound = load_reference(bundle.checked(REFERENCE)), EXPORT_TOLERANCES["fp32"].maximum
    middle = len(known.lesion) // 2
    found = window_probabilities(network, known.slices[middle : middle + WINDOW])[0]
    difference = float(np.abs(found - known.lesion[middle]).max())
    if bound is not None and not difference <= bound:
        raise BundleError(
            f"{bundle.graph('fp32')}: its weights give probabilities {difference:.2g} from PyTorch's at export, expected at "
            f"most {bound:g}; {remedy}"
        )
