"""The benchmark's baseline is the paper's schedule."""

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
