"""What a process may want and not get."""

import pytest
import torch

from lesionrt.runtime.errors import UnavailableError
from lesionrt.train.processes import enough_memory


def test_want_of_memory_says_what_to_take_instead() -> None:
    with (
        pytest.raises(UnavailableError, match=r"no memory \(.*allocate memory.*\); take fewer slabs"),
        enough_memory("fewer slabs"),
    ):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="size"), enough_memory("fewer slabs"):
        torch.zeros(2) + torch.zeros(3)
