"""Which engine a person asks for."""

from dataclasses import dataclass

from lesionrt.runtime.bundle import PRECISIONS
from lesionrt.runtime.engines.identity import FLAVOURS, graph_precision
from lesionrt.runtime.errors import UsageError
from lesionrt.runtime.prepare import HALO

SMALLEST_STACK = 1 + 2 * HALO
# Holds a brain of 1 mm pixels. Of 256x256, NVIDIA's limit on one tensor leaves fewer slices than a brain has.
MAX_SIZE = (224, 224)


@dataclass(frozen=True)
class Wanted:
    """Which engine to build.

    Attributes
    ----------
    flavour
        ``tensorrt`` or ``rtx``.
    precision
        ``fp32``, ``tf32``, ``fp16`` or ``bf16``.
    max_slices
        Slices of the largest stack; None for as many as fit the workspace.
    max_size
        Height and width of the largest slice, pixels.
    workspace_bytes
        What the activations must fit; None for most of the GPU found, where the engine is for it, or a small card's.
    targets
        Compute capabilities, for RTX only; empty for its own choice.

    Raises
    ------
    UsageError
        If these do not fit together.
    """

    flavour: str = "tensorrt"
    precision: str = "fp32"
    max_slices: int | None = None
    max_size: tuple[int, int] = MAX_SIZE
    workspace_bytes: int | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, value, known in (
            ("flavour", self.flavour, FLAVOURS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"{what} {value!r} is not known; expected {', '.join(known)}")
        if self.targets and self.flavour != "rtx":
            raise UsageError("--target is for --flavor rtx; a TensorRT engine is built for the GPU it is built on")
        if self.max_slices is not None and self.max_slices < SMALLEST_STACK:
            raise UsageError(f"--max-slices is {self.max_slices}; expected at least {SMALLEST_STACK}")
        if min(self.max_size) < 1:
            raise UsageError(f"--max-size is {'x'.join(map(str, self.max_size))}; expected pixels over 0")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise UsageError("--workspace is not over 0")

    @property
    def graph_precision(self) -> str:
        """Of the ONNX graph that it is built from."""
        return graph_precision(self.precision)
