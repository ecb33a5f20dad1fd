"""Importing the authors' checkpoints through the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lesionrt.runtime.prepare import OFFICIAL_MEAN, OFFICIAL_STD, Preparation, prepare_volume
from lesionrt.runtime.volume import read_flair
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import Network, NetworkConfig
from lesionrt.train.official import official_name


def official_file(path: Path, change: Callable[[dict[str, Any]], None] = lambda state: None, **config: bool) -> Path:
    """A file as the authors' training code writes it, with random weights."""
    state: dict[str, Any] = {official_name(n): v for n, v in Network(NetworkConfig(**config)).state_dict().items()}  # type: ignore[arg-type]
    change(state)
    torch.save({"startEpoch": 3, "loss": 0.1, "model_state": state, "optim_state": {}, "history_loss_t": [0.1]}, path)
    return path


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("convlstm", [True, False])
def test_every_variant_is_recognised_from_its_keys(
    tmp_path: Path, run: Callable[..., Any], attention: bool, convlstm: bool
) -> None:
    weights = official_file(tmp_path / "weights.pth", attention=attention, convlstm=convlstm)
    run("import-official", weights, "-o", tmp_path / "ours.pt")
    loaded = load_checkpoint(tmp_path / "ours.pt")
    config = loaded.network.config
    assert (config.attention, config.convlstm, config.readout) == (attention, convlstm, "centre")
    assert loaded.preparation.normalisation == "slice-min-max"
    stored = torch.load(weights, weights_only=True)["model_state"]
    assert all(torch.equal(value, stored[official_name(name)]) for name, value in loaded.network.state_dict().items())


def test_all_keys_that_differ_stand_in_one_error(tmp_path: Path, run: Callable[..., Any]) -> None:
    def change(state: dict[str, Any]) -> None:
        del state["finalConv.bias"], state["denseBlocksUp.0.layers.1.norm.weight"]
        state["classifier.weight"] = torch.zeros(1)
        state["firstconv.weight"] = torch.zeros(48, 1, 3, 3)

    weights = official_file(tmp_path / "weights.pth", change)
    error = run("import-official", weights, "-o", tmp_path / "ours.pt", code=3).stderr
    for line in (
        "missing: finalConv.bias",
        "missing: denseBlocksUp.0.layers.1.norm.weight",
        "unexpected: classifier.weight",
        "misshapen: firstconv.weight is (48, 1, 3, 3), expected (48, 3, 3, 3)",
        "weights.pth",
    ):
        assert line in error
    assert not (tmp_path / "ours.pt").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, run: Callable[..., Any]) -> None:
    def change(state: dict[str, Any]) -> None:
        state["firstconv.weight"][0, 0, 0, 0] = float("inf")

    weights = official_file(tmp_path / "weights.pth", change)
    error = run("import-official", weights, "-o", tmp_path / "ours.pt", code=3).stderr
    assert "weights.pth: entry 'firstconv.weight' holds more than finite real numbers" in error


def test_a_file_without_model_state_is_refused(tmp_path: Path, run: Callable[..., Any]) -> None:
    torch.save({"weights": {}}, tmp_path / "weights.pth")
    assert (
        "no 'model_state'" in run("import-official", tmp_path / "weights.pth", "-o", tmp_path / "o.pt", code=3).stderr
    )


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / "ours.pt").write_text("mine")
    weights = official_file(tmp_path / "weights.pth", attention=False, convlstm=False)
    assert "--force" in run("import-official", weights, "-o", tmp_path / "ours.pt", code=3).stderr
    assert (tmp_path / "ours.pt").read_text() == "mine"


def test_slices_are_prepared_as_the_authors_did(shared: Path) -> None:
    golden = np.load(shared / "reference" / "official_golden.npz")["slices"]  # six slices of p19, from slice 98
    flair = read_flair(shared / "data" / "lit" / "p19" / "flair.nii.gz")
    prepared = prepare_volume(flair, flair.data != 0, Preparation("slice-min-max", "SLA"), 32)
    first = 98 - prepared.origin[0] + 1  # one neighbour stands before the first slice
    ours = prepared.slices[first : first + 6, 0]
    # The authors' crop begins at voxel (11, 23) of the LAS array; ours is the brain's box.
    top, left = 11 - prepared.origin[1], 23 - prepared.origin[2]
    rows = slice(max(0, -top), 160 - max(0, top))
    columns = slice(max(0, -left), 160 - max(0, left))
    theirs = golden[:, rows, columns]
    ours = ours[:, rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert golden.min() == pytest.approx(-OFFICIAL_MEAN / OFFICIAL_STD, abs=1e-5)
