"""What stands beside the toolkit in the benchmark fails by itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lesionrt.benchmarks import peers, peers_measure
from lesionrt.benchmarks.peers_measure import Run, augmentation_makers, measure
from lesionrt.runtime.errors import UnavailableError
from lesionrt.train.checkpoint import load_checkpoint


def failing(times: int, text: str) -> Run:
    """Runs so often, and then no more."""
    left = [None] * times

    def run() -> None:
        if not left:
            raise RuntimeError(text)
        left.pop()

    return run


def test_a_peer_that_fails_is_skipped_with_its_reason_and_the_others_are_measured(least_checkpoint: Path) -> None:
    network, slices = load_checkpoint(least_checkpoint).network, torch.zeros(4, 1, 4, 4)

    def unmade() -> tuple[Run, str]:
        raise ImportError("no module")

    with torch.inference_mode():
        found = measure(
            {
                "unmade": unmade,
                "cold": lambda: (failing(0, "no warm-up"), "a peer"),
                "tired": lambda: (failing(2, "second round"), "a peer"),
                "one-pass": lambda: (lambda: network.forward_stack(slices).numpy(), "one pass"),
            },
            2,
            3,
        )
    assert found["unmade"] == {"skipped": "ImportError: no module"}
    assert found["cold"] == {"skipped": "RuntimeError: no warm-up"}
    assert found["tired"] == {"skipped": "RuntimeError: second round"}
    assert found["one-pass"]["what"] == "one pass"
    assert found["one-pass"]["s_per_slice"]["count"] == 3
    assert "times_faster" not in found["one-pass"]  # the first case was not measured


def test_peers_are_compared_with_the_first_case() -> None:
    zeros = np.zeros((2, 4, 4))
    found = measure(
        {
            "authors": lambda: (lambda: zeros, "right"),
            "near": lambda: (lambda: zeros + 0.25, "off by a quarter"),
            "other": lambda: (lambda: None, "another network"),
            "odd": lambda: (lambda: np.zeros((3, 5)), "another shape"),
            "tired": lambda: (failing(2, "second round"), "a peer"),
        },
        2,
        3,
    )
    assert found["near"]["maximum_difference"] == 0.25
    assert "maximum_difference" not in found["other"]
    assert found["odd"].keys() == found["tired"].keys() == {"skipped"}
    ratio = found["authors"]["s_per_slice"]["median"] / found["other"]["s_per_slice"]["median"]
    assert found["other"]["times_faster"] == ratio


def test_augmentation_is_measured_by_kinds_and_monai_is_left_out_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers_measure, "SLABS", 1)
    monkeypatch.setitem(sys.modules, "monai", None)
    stack = np.random.default_rng(0).uniform(-1, 3, (8, 96, 96)).astype(np.float32)
    stack[:, :4] = -5
    found = measure(augmentation_makers(stack), 3, 1)
    assert found["alike"]["s_per_slice"]["median"] > 0
    assert found["all"]["times_faster"] > 0
    assert found["monai"]["skipped"].startswith("ModuleNotFoundError")


def test_measuring_that_takes_too_long_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UnavailableError, match=r"more than 7200 s; give fewer --slices"):
        peers.measure_in(Path("python"), {"threads": 1})


def test_an_environment_whose_making_was_interrupted_sees_the_outer_packages(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for folder in (packages, tmp_path / "bin"):
        folder.mkdir(parents=True)
    (tmp_path / "bin" / "python").touch()
    peers.environment(tmp_path)
    assert "site-packages" in (packages / "outer.pth").read_text()
