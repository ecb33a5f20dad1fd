"""`lesionrt export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import (
    ForceOption,
    MaxDifference,
    MaxFlipped,
    MinDice,
    PercentileDifference,
    given_path,
    needs,
    tolerances,
)


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint to export.", parser=given_path, show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The bundle's folder.", parser=given_path, show_default=False)
    ],
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16 or bf16; may be repeated.", show_default="fp32")
    ] = None,
    flair: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="FLAIR volume on which to look at fp16's range.",
            parser=given_path,
            show_default="a phantom",
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Model card (TOML) to keep in the manifest.", parser=given_path, show_default=False),
    ] = None,
    max_difference: MaxDifference = None,
    percentile_difference: PercentileDifference = None,
    min_dice: MinDice = None,
    max_flipped: MaxFlipped = None,
    force: ForceOption = False,
) -> None:
    """Write a bundle of ONNX graphs that were compared with PyTorch; without parity, no bundle (exit code 5)."""
    with needs("export"):
        import onnxscript  # noqa: F401 (what the exporter needs, and would ask for only after minutes)

        from lesionrt.export.bundle import export_bundle
        from lesionrt.export.card import read_card
        from lesionrt.export.graph import DTYPES
        from lesionrt.train.checkpoint import load_checkpoint
    from lesionrt.runtime.errors import UsageError
    from lesionrt.runtime.files import sha256
    from lesionrt.runtime.parity import EXPORT_TOLERANCES, summary_lines
    from lesionrt.runtime.prepare import prepare_volume
    from lesionrt.runtime.volume import nonzero_brain, read_flair

    precisions = list(dict.fromkeys(precision or ["fp32"]))
    unknown = [name for name in precisions if name not in DTYPES]
    if unknown:
        raise UsageError(f"precision {', '.join(unknown)} is not known; expected {' or '.join(DTYPES)}")
    if flair is not None and "fp16" not in precisions:
        raise UsageError("--input is where to look at half precision's range; it goes with --precision fp16")
    described = None if card is None else read_card(card)
    loaded = load_checkpoint(checkpoint)
    slices = None
    if flair is not None:
        volume = read_flair(flair)
        prepared = prepare_volume(
            volume, nonzero_brain(volume), loaded.preparation, loaded.network.config.size_multiple
        )
        slices = prepared.slices
    rows = export_bundle(
        loaded,
        sha256(checkpoint),
        out,
        precisions,
        tolerances(EXPORT_TOLERANCES, precisions, max_difference, percentile_difference, min_dice, max_flipped),
        slices,
        force,
        say=lambda text: print(f"{text} ...", file=sys.stderr),
        card=described,
    )
    print("\n".join(summary_lines(rows)))
    print(f"{out}: written, {', '.join(precisions)}")
    if not loaded.model.trained:
        print("note: this model is UNTRAINED; its masks mean nothing", file=sys.stderr)
