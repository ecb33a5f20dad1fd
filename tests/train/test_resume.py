"""A run that stops, by a signal, a kill or a full disk, goes on as if nothing had been."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lesionrt.train.run
from lesionrt.runtime.errors import DatasetError, Interrupted, OutputError
from lesionrt.runtime.lock import locked
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.dataset import Scan
from lesionrt.train.recipe import load_recipe
from lesionrt.train.training import train
from lesionrt.train.validation import validate

SMALL = ["network.growth_rate=4", "network.layers=1", "network.levels=2", "network.first_channels=8"]
FAST = [*SMALL, "slabs=2", "size=32", "epoch_steps=2", "steps=4", "warm_up=1", "precision=float32"]
PAPER = [*SMALL, "epochs=2", "batch=8", "learning_rate=0.01"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).network.state_dict()


def flat(values: dict[object, object], name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor in nested dictionaries, by its path."""
    found: list[tuple[str, torch.Tensor]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{name}/{key}")
        elif isinstance(value, torch.Tensor):
            found.append((f"{name}/{key}", value))
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def timeless(checkpoint: Path) -> list[str]:
    """A run's history without its speed and seconds."""
    return [line.rsplit(",", 2)[0] for line in (checkpoint.parent / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "settings", "stop_after"),
    [("default", FAST, 1), ("default", FAST, 2), ("default", FAST, 3), ("paper", PAPER, 4)],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    scans: list[Scan], tmp_path: Path, name: str, settings: list[str], stop_after: int
) -> None:
    recipe = load_recipe(name, settings)
    whole = train(recipe, scans[:1], scans[1:], tmp_path / "whole")

    def stop(now: object) -> None:
        if getattr(now, "step", 0) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=rf"stopped after step {stop_after} of \d+;.*--resume") as caught:
        train(recipe, scans[:1], scans[1:], tmp_path / "parts", progress=stop)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    parts = train(recipe, scans[:1], scans[1:], tmp_path / "parts", resume=True)
    assert same(weights(whole), weights(parts))
    states = [torch.load(path.parent / "state.pt", weights_only=True) for path in (whole, parts)]
    assert same(states[0]["network"], states[1]["network"])  # to the bit, before the weights are rounded
    assert states[0]["average"] is None or same(states[0]["average"], states[1]["average"])
    assert same(*(dict(flat(state["optimiser"]["state"])) for state in states))
    assert timeless(whole) == timeless(parts)


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_was_killed_while_it_validated_goes_on_from_there(
    scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    recipe = load_recipe("default", [*FAST, "epoch_steps=1", "steps=2"])
    whole = train(recipe, scans[:1], scans[1:], tmp_path / "whole")
    times = 0

    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> dict[str, float]:
        nonlocal times
        times += 1
        if times == after:
            raise Killed
        return validate(*arguments)

    monkeypatch.setattr(lesionrt.train.run, "validate", killed)
    with pytest.raises(Killed):
        train(recipe, scans[:1], scans[1:], tmp_path / "parts")
    parts = train(recipe, scans[:1], scans[1:], tmp_path / "parts", resume=True)
    assert times == 3  # once too often
    assert same(weights(whole), weights(parts))
    assert timeless(whole) == timeless(parts)


def test_what_a_killed_run_left_half_written_is_removed(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", [*FAST, "steps=1"])
    train(recipe, scans, [], tmp_path / "run")
    (tmp_path / "run" / ".lesionrt-01234567.partial").write_bytes(b"half a state")
    train(recipe, scans, [], tmp_path / "run", resume=True)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_run_is_neither_overwritten_nor_resumed_as_another(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", [*FAST, "steps=1"])
    train(recipe, scans, [], tmp_path / "run")
    with pytest.raises(OutputError, match=r"holds a training run already; give --resume"):
        train(recipe, scans, [], tmp_path / "run")
    with pytest.raises(DatasetError, match=r"run\.json: the run to resume has another recipe"):
        train(load_recipe("default", [*FAST, "steps=2"]), scans, [], tmp_path / "run", resume=True)
    with pytest.raises(DatasetError, match=r"run\.json: the run to resume has another order of scans in train"):
        train(recipe, scans[::-1], [], tmp_path / "run", resume=True)  # which the samples follow
    with locked(tmp_path / "run"), pytest.raises(OutputError, match="another process works in it"):
        train(recipe, scans, [], tmp_path / "run", resume=True)
    with pytest.raises(OutputError, match=r"no run to resume"):
        train(recipe, scans, [], tmp_path / "empty", resume=True)


def test_a_state_that_cannot_be_written_leaves_the_last_one(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", FAST)
    out = tmp_path / "run"
    kept: list[bytes] = []

    def fill(now: object) -> None:
        if getattr(now, "step", 0) == 3:
            kept.append((out / "state.pt").read_bytes())
            # A full disk: nothing larger than what is there can be written by this process any more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OutputError, match=r"state\.pt: cannot be written"):
            train(recipe, scans, [], out, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (out / "state.pt").read_bytes() == kept[0]
    train(recipe, scans, [], out, resume=True)
    assert (out / "checkpoint.pt").exists()


def test_the_command_stops_at_sigint_and_resumes(table: Path, tmp_path: Path) -> None:
    settings = [part for text in [*FAST, "steps=400"] for part in ("--set", text)]
    command = [Path(sys.executable).parent / "lesionrt", "train", table, "-o", tmp_path / "run", *settings]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "epoch 1," not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "continue with --resume" in rest
    assert "Traceback" not in rest
    with subprocess.Popen([*map(str, command), "--resume"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.terminate()
        process.stderr.read()
    assert "epoch" in line
    assert "epoch 1," not in line  # it did not begin again
    assert process.returncode == 143
