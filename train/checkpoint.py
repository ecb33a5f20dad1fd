"""Checkpoints: one file that rebuilds its network and says how its input is prepared."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.errors import CheckpointError, first_line
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.prepare import Preparation
from lesionrt.train.model import Network, NetworkConfig

FORMAT = "lesionrt checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network with what is needed to use it."""

    network: Network
    preparation: Preparation
    model: ModelInfo


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically; an existing file is replaced."""
    buffer = BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "version": VERSION,
            "network": checkpoint.network.config.as_dict(),
            "preparation": checkpoint.preparation.as_dict(),
            "model": checkpoint.model.as_dict(),
            "state": checkpoint.network.state_dict(),
        },
        buffer,
    )
    write_atomically({path: buffer.getvalue()})


def load_checkpoint(path: Path) -> Checkpoint:
    """Rebuild a network from its checkpoint, in evaluation mode, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, truncated or not one of ours.
    """
    content = read_torch_file(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        hint = " (a checkpoint of the paper's authors? Use `lesionrt import-official`)" if _is_official(content) else ""
        raise CheckpointError(f"{path}: not a lesionrt checkpoint{hint}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {content.get('version')!r}; this lesionrt reads version {VERSION}"
        )
    missing = [key for key in ("network", "preparation", "model", "state") if not isinstance(content.get(key), Mapping)]
    if missing:
        raise CheckpointError(f"{path}: incomplete checkpoint, without {', '.join(missing)}")
    try:
        _check_state(content["network"], content["state"])
        network = Network(NetworkConfig(**content["network"]))
        preparation = Preparation(**content["preparation"])
        model = ModelInfo(**content["model"])
        network.load_state_dict(content["state"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(network.eval(), preparation, model)


def _check_state(network: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse parameters that are not those of the configuration, before the network takes memory."""
    other = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if other:
        raise ValueError(f"entry {other[0]!r} of its state is no named tensor; save the checkpoint again")
    config = NetworkConfig(**network)
    with torch.device("meta"):
        expected = Network(config)
    kinds = {name: value.dtype for name, value in expected.state_dict().items()}
    # A plain dict: the state's own metadata would carry `assign` on to the next one who loads it.
    expected.load_state_dict(dict(state), assign=True)  # lists every key that differs
    for name, value in state.items():
        if value.dtype != kinds[name]:
            raise ValueError(
                f"entry {name!r} of its state is {value.dtype}; expected {kinds[name]}: save it in that type"
            )
    check_numbers(state)


def check_numbers(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights with which nothing can be computed.

    Raises
    ------
    ValueError
        Naming the first entry that holds anything but finite real numbers.
    """
    for name, value in state.items():
        if value.is_meta or value.is_complex() or not torch.isfinite(value).all():
            raise ValueError(f"entry {name!r} holds more than finite real numbers; train or save the network again")


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, tensors and plain values only: no code in the file is run.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, truncated or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path}: damaged: {damaged} does not match its checksum; copy the file again")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:  # its text advises to load the file unsafely
        raise CheckpointError(
            f"{path}: not a PyTorch file, or one that holds more than tensors and plain values, which is never loaded"
        ) from error
    except Exception as error:  # an unpickler of damaged bytes may raise anything
        raise CheckpointError(f"{path}: damaged, truncated or not a PyTorch file ({first_line(error)})") from error


def _is_official(content: Any) -> bool:
    return isinstance(content, Mapping) and "model_state" in content
