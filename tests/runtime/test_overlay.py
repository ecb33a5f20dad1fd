"""What the overlay shows."""

import numpy as np
import pytest

from lesionrt.runtime.overlay import RED, _tile


@pytest.mark.parametrize("side", [453, 340, 100])  # shrunk, as it is, enlarged
def test_a_lesion_of_one_voxel_is_seen_wherever_it_is(side: int) -> None:
    grey = np.zeros((side, side), np.float32)
    for place in range(side // 3, side // 3 + 12):  # away from the names of the sides
        mask = np.zeros((side, side), bool)
        mask[place, place] = True
        shown = np.asarray(_tile(grey, mask, (340, 340), 0.0))
        assert (shown == RED).all(-1).any(), place
