"""How near a case comes to what the machine can do."""

import math
from dataclasses import dataclass
from typing import Any

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Work:
    """Of the operators that multiply matrices.

    Attributes
    ----------
    flops
        A multiplication and an addition are two.
    elements
        Values that they read and write: what must pass through memory if every other operator is fused into them.
    """

    flops: float
    elements: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.elements + other.elements)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.flops - other.flops, self.elements - other.elements)

    def __mul__(self, factor: float) -> "Work":
        return Work(factor * self.flops, factor * self.elements)


def stack_work(kind: str, encode: Work, decode: Work, slices: int, chunk: int | None = None) -> Work:
    """What a case computes for so many output slices; in one pass at the least, or with two slices encoded again for each chunk.

    >>> one = Work(1, 1)
    >>> [stack_work(kind, one, one, 10).flops for kind in ("authors", "window", "backend")]
    [60, 40, 22]
    >>> stack_work("torch", one, one, 10, 4).flops  # 10 decoded, 6 + 6 + 4 encoded
    26
    """
    if kind == "authors":
        return (encode + decode) * (3 * slices)
    if kind == "window":
        return encode * (3 * slices) + decode * slices
    return encode * (slices + 2 * math.ceil(slices / (chunk or slices))) + decode * slices


def slab_in_volume(kind: str, encode: Work, decode: Work, slab: int, slices: int, chunk: int | None = None) -> float:
    """How much more work a whole volume is than a slab of it: one pass encodes two slices more, of either or of each chunk.

    >>> one = Work(1, 1)
    >>> [slab_in_volume(kind, one, one, 10, 100) for kind in ("authors", "backend")]
    [10.0, 9.181818181818182]
    """
    whole, part = (stack_work(kind, encode, decode, count, chunk).flops for count in (slices, slab))
    return whole / part


def roofline(work: Work, precision: str, seconds: float, rates: dict[str, Any]) -> dict[str, Any] | None:
    """Achieved over possible; None where the rate in this precision was not measured.

    Parameters
    ----------
    work
        That was done.
    precision
        In which; for one that the device computes in another, that other's rate and bytes count.
    seconds
        That it took.
    rates
        Of the device, as :func:`lesionrt.benchmarks.rates.measure` gives them.
    """
    precision = rates.get("computed_in", {}).get(precision, precision)
    rate = rates["flops_per_s"].get(precision)
    if rate is None:
        return None
    computing = work.flops / rate
    moving = work.elements * BYTES[precision] / rates["bytes_per_s"]
    return {
        "gflop": work.flops / 1e9,
        "gbyte": work.elements * BYTES[precision] / 1e9,
        "achieved_gflops": work.flops / seconds / 1e9,
        "possible_gflops": work.flops / max(computing, moving) / 1e9,
        "bound_by": "arithmetic" if computing >= moving else "memory",
        "share": max(computing, moving) / seconds,
    }
