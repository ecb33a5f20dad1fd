"""The benchmark's baseline is the paper's schedule, and its report is complete."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionrt.benchmarks.schedules import authors_schedule
from lesionrt.export.reference import window_probabilities
from lesionrt.train.model import NetworkConfig
from lesionrt.train.untrained import untrained_checkpoint


@pytest.mark.parametrize("readout", ["last", "centre"])
@pytest.mark.parametrize("convlstm", [True, False])
def test_three_encodes_and_decodes_give_the_window_forwards_numbers(readout: str, convlstm: bool) -> None:
    config = NetworkConfig(4, 1, 2, 8, convlstm=convlstm, readout=readout)  # type: ignore[arg-type]
    network = untrained_checkpoint(config).network
    slices = np.random.default_rng(0).normal(size=(4, 1, 8, 12)).astype(np.float32)
    np.testing.assert_allclose(authors_schedule(network, slices), window_probabilities(network, slices), atol=1e-6)


def test_both_schedules_are_timed_and_compared_in_one_run(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "lesionrt.benchmarks.schedules", tiny_checkpoint, tiny_bundle]
    answer = subprocess.run([*command, "--slices", "2", "--repeats", "1"], capture_output=True, text=True, check=True)
    report = json.loads(answer.stdout)
    assert report["output_slices"] == 2
    assert report["max_difference"] <= 1e-4
    assert report["times_faster"] == pytest.approx(
        report["authors_schedule_s_per_slice"] / report["one_pass_s_per_slice"], rel=0.2
    )
