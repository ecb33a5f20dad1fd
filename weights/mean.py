"""The mean of two checkpoints of one network, the second trained from the first.

    python weights/mean.py FIRST.pt SECOND.pt OUT.pt

Half way between them fewer voxels lie so near the threshold that rounding to half precision flips them.
"""

import sys
from pathlib import Path

from lesionrt.train.checkpoint import load_checkpoint, save_checkpoint


def main(first: Path, second: Path, out: Path) -> None:
    """Write the second checkpoint with weights and norms' statistics half way to the first, rounded to float16."""
    start, end = load_checkpoint(first), load_checkpoint(second)
    other = start.network.state_dict()
    mean = {
        name: ((value.float() + other[name].float()) / 2).half().to(value.dtype) if value.is_floating_point() else value
        for name, value in end.network.state_dict().items()
    }
    end.network.load_state_dict(mean)
    save_checkpoint(end, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
