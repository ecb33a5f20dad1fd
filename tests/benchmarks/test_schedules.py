"""The benchmark's baseline is the paper's schedule."""

import numpy as np
import pytest

from lesionrt.benchmarks.schedules import OnePass, authors_schedule
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


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("bf16", 5e-2)])
@pytest.mark.parametrize("chunk", [2, 4, 9])
def test_the_one_pass_in_pieces_gives_the_window_forwards_numbers(precision: str, most: float, chunk: int) -> None:
    network = untrained_checkpoint(NetworkConfig(4, 1, 2, 8)).network
    slices = np.random.default_rng(0).normal(size=(7, 1, 8, 12)).astype(np.float32)
    found = OnePass(network, precision, compiled=False).infer_stack(slices, chunk, None)
    np.testing.assert_allclose(found, window_probabilities(network, slices), atol=most)
