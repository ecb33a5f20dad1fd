"""`lesionrt import-official`."""

from pathlib import Path
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import CheckpointOut, ForceOption, check_new, given_path, needs


def command(
    weights: Annotated[
        Path, typer.Argument(help="A checkpoint of the paper's authors' code.", parser=given_path, show_default=False)
    ],
    out: CheckpointOut,
    force: ForceOption = False,
) -> None:
    """Turn a checkpoint of the paper's authors into one of ours."""
    with needs("export"):
        from lesionrt.train.checkpoint import save_checkpoint
        from lesionrt.train.official import import_official

    check_new(out, force)
    checkpoint = import_official(weights)
    save_checkpoint(checkpoint, out)
    config = checkpoint.network.config
    parts = [
        name for name, there in (("squeeze-and-attention", config.attention), ("ConvLSTM", config.convlstm)) if there
    ]
    parameters = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    print(f"{out}: {' + '.join(['FC-DenseNet', *parts])}, {parameters:,} parameters, readout {config.readout}")
