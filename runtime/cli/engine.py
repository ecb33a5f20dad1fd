"""`lesionrt engine`."""

import re
import sys
from typing import Annotated

import typer

from lesionrt.runtime.cli.options import BundleArgument, ForceOption

group = typer.Typer(help="Build TensorRT engines into a bundle.", no_args_is_help=True)


@group.callback()
def _engine() -> None:
    pass


@group.command()
def build(
    bundle: BundleArgument,
    flavor: Annotated[
        str, typer.Option(help="tensorrt, for the GPU here; or rtx, which needs none to build.")
    ] = "tensorrt",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16 or bf16.")] = "fp32",
    max_slices: Annotated[
        int | None, typer.Option(help="Slices of the largest stack.", show_default="what fits the workspace")
    ] = None,
    max_size: Annotated[str, typer.Option(help="Largest slice in pixels: 224, or 192x256 (height x width).")] = "224",
    workspace: Annotated[
        float | None,
        typer.Option(
            help="GiB that activations must fit.",
            show_default="70 % of the GPU's; for rtx 4 where none is found, or --target names others",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Compute capabilities for rtx, such as 8.6,8.9,12.0.", show_default="RTX's own: Ampere and later"
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Add an engine to a bundle, from its ONNX graph of that precision (fp32's for tf32)."""
    from lesionrt.runtime.backends.engine_parity import measure
    from lesionrt.runtime.bundle import load_bundle
    from lesionrt.runtime.engines.build import build_engine
    from lesionrt.runtime.engines.wanted import Wanted
    from lesionrt.runtime.parity import summary_lines

    wanted = Wanted(
        flavour=flavor,
        precision=precision,
        max_slices=max_slices,
        max_size=_size(max_size),
        workspace_bytes=None if workspace is None else _bytes(workspace),
        targets=_targets(target),
    )
    engine = build_engine(load_bundle(bundle), wanted, measure, force, say=lambda text: print(text, file=sys.stderr))
    if engine.entry["parity"] is None:
        reason = engine.entry["not_measured_because"] or "this engine cannot run here"
        print(f"parity: not measured: {reason}; run `lesionrt verify` where it can")
    else:
        print("\n".join(summary_lines(engine.entry["parity"])))
    print(f"{bundle / engine.file}: written, for {engine.identity.made_for}")


def _size(text: str) -> tuple[int, int]:
    sizes = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if sizes is None:
        raise typer.BadParameter(f"--max-size is {text!r}; expected pixels, such as 224 or 192x256")
    return int(sizes[1]), int(sizes[2] or sizes[1])


def _bytes(gib: float) -> int:
    from lesionrt.runtime.engines.stacks import GIB

    size = gib * GIB
    if not 0 < size < 2**63:  # nan neither; TensorRT counts in 64 bits
        raise typer.BadParameter(f"--workspace is {gib}; expected GiB over 0, such as 8")
    return int(size)


def _targets(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text else ()
