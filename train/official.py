"""Checkpoints of the paper's authors (ictlab-unict/attention-cnn-MS-segmentation)."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.errors import CheckpointError
from lesionrt.runtime.prepare import SLICE_MIN_MAX, Preparation
from lesionrt.train.checkpoint import Checkpoint, check_numbers, read_torch_file
from lesionrt.train.model import Network, NetworkConfig

# Our module names, and theirs.
_MODULES = {
    "first": "firstconv",
    "dense_down": "denseBlocksDown",
    "attention_down": "saBlocksDown",
    "transition_down": "transDownBlocks",
    "bottleneck": "bottleneck.bottleneck",
    "convlstm.gates": "biConvLSTM.cell_list.0.Gates.0",
    "transition_up": "transUpBlocks",
    "dense_up": "denseBlocksUp",
    "attention_up": "saBlocksUp",
    "final": "finalConv",
}
# In their attention blocks `conv` is the full-resolution branch and `conv_atten` the pooled one.
_BRANCHES = {".squeeze.": ".conv_atten.conv.", ".residual.": ".conv.conv."}


def official_name(ours: str) -> str:
    """The authors' name of one of our parameters.

    >>> official_name("attention_down.0.squeeze.3.weight")
    'saBlocksDown.0.conv_atten.conv.3.weight'
    >>> official_name("transition_up.4.conv.bias")
    'transUpBlocks.4.convTrans.bias'
    """
    module = next(module for module in _MODULES if ours.startswith(module + "."))
    name = _MODULES[module] + ours.removeprefix(module)
    for branch, theirs in _BRANCHES.items():
        name = name.replace(branch, theirs)
    return name.replace(".conv.", ".convTrans.") if module == "transition_up" else name


def network_from_official(state: Mapping[str, Tensor], source: str) -> Network:
    """The network that an official ``model_state`` fills, its variant recognised from the keys.

    Parameters
    ----------
    state
        Their parameters by name.
    source
        What to call the file in an error.

    Raises
    ------
    CheckpointError
        Listing every missing, unexpected and misshapen key.
    """
    config = NetworkConfig(
        attention=any(name.startswith("saBlocks") for name in state),
        convlstm=any(name.startswith("biConvLSTM") for name in state),
        readout="centre",
    )
    network = Network(config)
    expected = {official_name(name): (name, value) for name, value in network.state_dict().items()}
    findings = [f"missing: {name}" for name in expected if name not in state]
    findings += [f"unexpected: {name}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        found, wanted = tuple(state[name].shape), tuple(expected[name][1].shape)
        if found != wanted:
            findings.append(f"misshapen: {name} is {found}, expected {wanted}")
    if findings:
        raise CheckpointError(
            f"{source}: not the model_state of the authors' network with attention {'on' if config.attention else 'off'} and "
            f"ConvLSTM {'on' if config.convlstm else 'off'} (recognised from its keys); {len(findings)} keys differ:\n  "
            + "\n  ".join(sorted(findings))
        )
    network.load_state_dict({name: state[theirs] for theirs, (name, _) in expected.items()})
    return network.eval()


def import_official(path: Path) -> Checkpoint:
    """Read a checkpoint of the authors' training code.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds no ``model_state`` or one of another network, or weights that are no finite numbers.
    """
    content = read_torch_file(path)
    state = content.get("model_state") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path}: holds no 'model_state' of named tensors; expected a checkpoint of the authors' train.py"
        )
    try:
        check_numbers(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(
        network=network_from_official(state, str(path)),
        # Their slices' orientation is not recorded: x and y in the array order of an LAS volume, as in the test vectors.
        preparation=Preparation(normalisation=SLICE_MIN_MAX, axes="SLA"),
        model=ModelInfo(
            name=path.stem,
            version="official",
            trained=True,
            description="imported from the paper's authors' format",
            training_data="not recorded in the file",
            licence="not recorded in the file",
        ),
    )
