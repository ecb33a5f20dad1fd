"""How large the stacks of an engine may be."""

from typing import Any

from lesionrt.runtime.backends.cuda import gpu
from lesionrt.runtime.engines.identity import Profile
from lesionrt.runtime.engines.wanted import SMALLEST_STACK, Wanted
from lesionrt.runtime.errors import UnavailableError, UsageError
from lesionrt.runtime.prepare import HALO

GIB = 2**30
# A whole brain of 1 mm slices and what its box is padded to.
BRAIN = (144 + 2 * HALO, 160, 192)
# NVIDIA's limit on the elements of one tensor, whatever memory there is.
MOST_ELEMENTS = 2**31 - 1
# Room for activations: of the GPU's memory, or where none is there, a small card's.
DEVICE_SHARE = 0.7
WITHOUT_DEVICE = 4 * GIB
# A first guess of activation bytes per pixel of the stack, measured with the paper's network; the builder's own figure
# decides.
BYTES_PER_PIXEL = {"fp32": 2700, "tf32": 2700, "fp16": 1400, "bf16": 1400}


def room(wanted: Wanted) -> int:
    """Bytes for activations: of the GPU here if the engine is for it, of a small card's otherwise."""
    try:
        here = gpu()
    except UnavailableError:
        if wanted.flavour != "rtx":
            raise
        return WITHOUT_DEVICE
    for_others = set(wanted.targets) - {here.compute_capability}
    return WITHOUT_DEVICE if for_others else int(DEVICE_SHARE * here.memory_bytes)


def widest(network: dict[str, Any]) -> int:
    """Channels of the widest tensor at full size: what the last block gets and what its layers add."""
    try:
        return max(1, int(network["first_channels"]) + 3 * int(network["layers"]) * int(network["growth_rate"]))
    except (KeyError, TypeError, ValueError, OverflowError):  # a network of another kind; as the paper's
        return 228


def first_guess(wanted: Wanted, workspace: int, channels: int) -> int:
    """Slices of the largest stack, before the builder was asked: those that are asked for, or what should fit.

    Raises
    ------
    UsageError
        If more are asked for than a tensor may hold; the builder takes them, and its memory figures overflow.
    """
    height, width = wanted.max_size
    most = MOST_ELEMENTS // (channels * height * width)
    if wanted.max_slices is not None:
        if wanted.max_slices > most:
            raise UsageError(
                f"--max-slices is {wanted.max_slices}; of {channels} channels of {height}x{width} a tensor holds {most} slices "
                f"at most ({MOST_ELEMENTS} elements): give fewer, or a smaller --max-size"
            )
        return wanted.max_slices
    fitting = workspace // (BYTES_PER_PIXEL[wanted.precision] * height * width)
    return max(SMALLEST_STACK, min(BRAIN[0] * 2, fitting, most))


def profile_for(wanted: Wanted, multiple: int, slices: int) -> Profile:
    """From the smallest stack to the largest, with the optimum at a whole brain as far as it fits.

    Raises
    ------
    UsageError
        If the largest size is no multiple of what the network needs.
    """
    height, width = wanted.max_size
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise UsageError(f"--max-size is {height}x{width}; this network needs multiples of {multiple}")
    fitting = (min(most, usual) for most, usual in zip((slices, height, width), BRAIN, strict=True))
    count, *sizes = fitting
    rows, columns = (size // multiple * multiple for size in sizes)
    return Profile((SMALLEST_STACK, multiple, multiple), (count, rows, columns), (slices, height, width))
