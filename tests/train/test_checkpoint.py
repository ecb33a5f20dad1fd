"""Checkpoints rebuild their network, and say what is wrong with a file that is none."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lesionrt.runtime.errors import CheckpointError
from lesionrt.train.checkpoint import load_checkpoint, save_checkpoint
from lesionrt.train.model import Network, NetworkConfig
from lesionrt.train.untrained import untrained_checkpoint

SMALL = NetworkConfig(growth_rate=2, layers=1, levels=1, first_channels=4, attention=False, readout="centre")


def test_a_checkpoint_rebuilds_its_network_without_other_arguments(tmp_path: Path) -> None:
    saved = untrained_checkpoint(SMALL, seed=5)
    save_checkpoint(saved, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.network.config == SMALL
    assert (loaded.preparation, loaded.model) == (saved.preparation, saved.model)
    assert not loaded.network.training
    windows = torch.randn(1, 3, 4, 4)
    with torch.inference_mode():
        assert torch.equal(loaded.network(windows), saved.network.eval()(windows))


def test_the_untrained_network_depends_on_its_seed_alone() -> None:
    first, again, other = (untrained_checkpoint(SMALL, seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save_checkpoint(untrained_checkpoint(SMALL), path)
    return path


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(file: Path, keep: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(
        CheckpointError, match=r"model\.pt: (damaged, truncated or )?not a PyTorch file|model\.pt: damaged"
    ):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value.half(), r"'first\.weight' of its state is torch\.float16; expected torch\.float32"),
        (lambda value: value.double(), r"is torch\.float64; expected torch\.float32"),
        (lambda value: value * float("nan"), r"'first\.weight' holds more than finite real numbers"),
    ],
)
def test_weights_of_another_type_or_that_are_no_numbers_are_named(file: Path, change: Any, problem: str) -> None:
    content = torch.load(file, weights_only=True)
    content["state"]["first.weight"] = change(content["state"]["first.weight"])
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=rf"model\.pt: .*{problem}"):
        load_checkpoint(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02}q\x00.", b"\x80\x04K\x01a."])
def test_a_pickle_of_nothing_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt: "):
        load_checkpoint(tmp_path / "model.pt")


def test_a_damaged_file_is_never_another_network(file: Path) -> None:
    content = file.read_bytes()
    state = load_checkpoint(file).network.state_dict()
    refused = 0
    for position in range(0, len(content), len(content) // 100):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        try:
            loaded = load_checkpoint(file).network.state_dict()
        except CheckpointError as error:
            refused += "model.pt" in str(error)
            continue
        assert all(torch.equal(loaded[name], value) for name, value in state.items()), position
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ({"weights": torch.zeros(1)}, "not a lesionrt checkpoint"),
        ({"model_state": {}}, "import-official"),
        ([1, 2], "not a lesionrt checkpoint"),
        ({"format": "lesionrt checkpoint", "version": 99}, "version 99"),
        ({"format": "lesionrt checkpoint", "version": 1, "state": {}}, "without network, preparation, model"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: object, finding: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt: .*{finding}"):
        load_checkpoint(tmp_path / "other.pt")


def test_parameters_that_do_not_fit_are_all_listed(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    del content["state"]["first.bias"]
    content["state"]["extra"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"(?s)first\.bias.*extra|extra.*first\.bias"):
        load_checkpoint(file)


@pytest.mark.parametrize("entry", [{7: torch.zeros(1)}, {"first.bias": "text"}])
def test_a_state_of_anything_but_named_tensors_is_refused(file: Path, entry: dict[object, object]) -> None:
    content = torch.load(file, weights_only=True)
    torch.save({**content, "state": {**content["state"], **entry}}, file)
    with pytest.raises(
        CheckpointError, match=rf"model\.pt: entry {next(iter(entry))!r} of its state is no named tensor"
    ):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("changed", "finding"),
    [({"levels": 9}, "levels is 9; expected at most 8"), ({"growth_rate": 10**6}, "size mismatch")],
)
def test_a_configuration_beyond_its_parameters_takes_no_memory(
    file: Path, changed: dict[str, int], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(file, weights_only=True)
    content["network"].update(changed)
    torch.save(content, file)
    devices = []
    built = Network.__init__

    def init(self: Network, config: NetworkConfig) -> None:
        devices.append(torch.get_default_device().type)
        if devices[-1] == "meta":
            built(self, config)

    monkeypatch.setattr(Network, "__init__", init)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.pt: .*{finding}"):
        load_checkpoint(file)
    assert set(devices) <= {"meta"}


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": _Code()}, "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: .*never loaded"):
        load_checkpoint(Path("evil.pt"))
    assert not Path("executed").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such file"):
        load_checkpoint(tmp_path / "gone.pt")


def test_saving_replaces_a_file_as_a_whole(file: Path) -> None:
    save_checkpoint(untrained_checkpoint(SMALL, seed=9), file)
    assert load_checkpoint(file).model.version == "seed9"
    assert [path.name for path in file.parent.iterdir()] == ["model.pt"]
