"""`lesionrt untrained`."""

from typing import Annotated

import typer

from lesionrt.runtime.cli.options import CheckpointOut, ForceOption, check_new, needs

LARGEST_SEED = 2**64 - 1  # that PyTorch takes


def command(
    out: CheckpointOut,
    seed: Annotated[int, typer.Option(help="Of the random weights.", min=0, max=LARGEST_SEED)] = 0,
    force: ForceOption = False,
) -> None:
    """Write a checkpoint of the paper's network with random weights: a placeholder that segments nothing."""
    with needs("export"):
        from lesionrt.train.checkpoint import save_checkpoint
        from lesionrt.train.untrained import untrained_checkpoint

    check_new(out, force)
    save_checkpoint(untrained_checkpoint(seed=seed), out)
    print(f"{out}: an UNTRAINED network, seed {seed}; its masks mean nothing")
