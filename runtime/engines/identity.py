"""What an engine is and for what it was built: two engines with one identity are interchangeable."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from lesionrt.runtime.errors import BundleError

Shape = tuple[int, int, int]  # slices, height, width
FLAVOURS = ("tensorrt", "rtx")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")  # the most exact first
# RTX engines without a target list run from this compute capability on.
RTX_SINCE = (8, 0)


def number(capability: str) -> tuple[int, ...]:
    """``8.6`` as (8, 6), so that 12.0 is over 8.6."""
    return tuple(int(part) for part in capability.split("."))


def graph_precision(precision: str) -> str:
    """Of the ONNX graph: TF32 is how a float32 graph is computed."""
    return "fp32" if precision == "tf32" else precision


@dataclass(frozen=True)
class Profile:
    """Stacks that an engine takes: slices (two more than output slices), height and width in pixels."""

    smallest: Shape
    optimum: Shape
    largest: Shape

    def __post_init__(self) -> None:
        shapes = (self.smallest, self.optimum, self.largest)
        if not all(len(shape) == 3 and all(type(size) is int for size in shape) for shape in shapes):
            raise BundleError(f"profile {self}: expected three shapes of slices, height and width")

    def takes(self, slices: int, height: int, width: int) -> bool:
        """Whether a stack of this shape lies within the profile."""
        sizes = zip(self.smallest, (slices, height, width), self.largest, strict=True)
        return all(least <= size <= most for least, size, most in sizes)


@dataclass(frozen=True)
class Identity:
    """Everything that an engine depends on.

    Attributes
    ----------
    onnx_sha256
        Of the graph that it was built from, and of the file that holds its weights
        (:meth:`lesionrt.runtime.bundle.Bundle.graph_sha256`).
    flavour
        ``tensorrt`` or ``rtx``.
    version
        Of that library, in full.
    precision
        ``fp32``, ``tf32``, ``fp16`` or ``bf16``.
    gpu, compute_capability
        Where it was built, which is where it runs; None for RTX, which compiles for its device at first run.
    targets
        Compute capabilities that an RTX engine is for; empty for RTX's own choice, and for TensorRT.
    profile
        The stacks that it takes.
    workspace_bytes
        What its activations had to fit.
    flags
        Build options that are switched on.
    """

    onnx_sha256: str
    flavour: str
    version: str
    precision: str
    gpu: str | None
    compute_capability: str | None
    targets: tuple[str, ...]
    profile: Profile
    workspace_bytes: int
    flags: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """One name for all of it."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """The plan's, in the bundle."""
        return f"engine_{self.flavour}_{self.precision}_{self.sha256[:16]}.plan"

    @property
    def made_for(self) -> str:
        """Where it runs, for messages."""
        if self.flavour == "rtx":
            return f"compute capability {', '.join(self.targets)}" if self.targets else "RTX GPUs"
        return f"{self.gpu} (compute capability {self.compute_capability})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What :meth:`as_dict` gave, as it comes back from JSON.

        Raises
        ------
        BundleError
            If its flavour or precision is none that there is.
        """
        profile = Profile(**{name: tuple(shape) for name, shape in values["profile"].items()})
        lists = {name: tuple(values[name]) for name in ("targets", "flags")}
        identity = cls(**{**values, **lists, "profile": profile})
        for what, value, known in (
            ("flavour", identity.flavour, FLAVOURS),
            ("precision", identity.precision, PRECISIONS),
        ):
            if value not in known:
                raise BundleError(f"{what} {value!r} is not known; expected {', '.join(known)}")
        return identity

    def suits(self, gpu: str, compute_capability: str) -> bool:
        """Whether it was built for this GPU."""
        if self.flavour != "rtx":
            return (self.gpu, self.compute_capability) == (gpu, compute_capability)
        if self.targets:
            return compute_capability in self.targets
        return number(compute_capability) >= RTX_SINCE

    def mismatch(self, version: str, gpu: str, compute_capability: str) -> str | None:
        """Why it does not run with this version of its library on this GPU; None if it does."""
        if self.version != version:
            return f"built with {self.flavour} {self.version}, here is {version}"
        suits = self.suits(gpu, compute_capability)
        return None if suits else f"built for {self.made_for}, here is {gpu} (compute capability {compute_capability})"


@dataclass(frozen=True)
class Engine:
    """One entry of a bundle's manifest.

    Attributes
    ----------
    file
        The plan's name in the bundle.
    identity
        What it is.
    entry
        The manifest's whole entry: layers, memory figures and parity too.
    """

    file: str
    identity: Identity
    entry: dict[str, Any]


def engines_of(manifest: dict[str, Any]) -> list[Engine]:
    """The engines that a manifest lists, the latest last.

    Raises
    ------
    BundleError
        If an entry is not of this form, contradicts its own identity, or has no sha256.
    """
    entries = manifest.get("engines", [])
    if not isinstance(entries, list):
        raise BundleError(f"its engines are {type(entries).__name__}; expected a list")
    engines = []
    for entry in entries:
        try:
            engine = Engine(entry["file"], Identity.from_dict(entry["identity"]), entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"an engine's entry is damaged ({error!r}); build the engine again") from error
        if engine.file != engine.identity.file_name:
            raise BundleError(f"engine {engine.file!r} is not of the identity that it is listed with; build it again")
        if engine.file not in manifest["files"]:
            raise BundleError(f"engine {engine.file!r} has no sha256; build it again")
        engines.append(engine)
    return engines
