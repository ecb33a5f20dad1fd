"""A bundle checked against reference probabilities, without torch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lesionrt.runtime.backends import Backend, open_backend
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import InputError
from lesionrt.runtime.parity import Reference, Tolerance, compare

# What ONNX Runtime's CPU does not show of half precision.
EMULATED = "half precision is emulated on the CPU: this shows rounding, not overflow or half-precision accumulation"


Opener = Callable[[str, Bundle, str], Backend]


def verify(
    bundle: Bundle,
    reference: Reference,
    backend: str,
    tolerances: Mapping[str, Tolerance],
    opener: Opener = open_backend,
) -> list[dict[str, Any]]:
    """Run the graphs or engines of some precisions on a reference's slices and compare.

    Parameters
    ----------
    bundle
        The model.
    reference
        Slices and the probabilities that PyTorch gave for them.
    backend
        Its name, as :func:`lesionrt.runtime.backends.choose` gives it.
    tolerances
        By precision; these precisions are run.
    opener
        Loads them.

    Returns
    -------
    A row for each precision, plain values: `findings` lists what is out of tolerance.

    Raises
    ------
    InputError
        If the reference's slices do not fit the network.
    """
    multiple = bundle.size_multiple
    if any(size % multiple for size in reference.slices.shape[2:]):
        raise InputError(
            f"the reference's slices are {'x'.join(map(str, reference.slices.shape[2:]))} pixels; "
            f"this network needs multiples of {multiple}"
        )
    rows = []
    for precision, tolerance in tolerances.items():
        with opener(backend, bundle, precision) as network:
            rows.append(compare_backend(bundle, network, reference, tolerance))
    return rows


def compare_backend(
    bundle: Bundle, backend: Backend, reference: Reference, tolerance: Tolerance, chunk: int | None = None
) -> dict[str, Any]:
    """One loaded network against a reference, as a row of plain values."""
    candidate = infer_in_chunks(backend, reference.slices, chunk)
    comparison = compare(reference.lesion, candidate, bundle.threshold, bundle.preparation.spacing_mm**3)
    notes = [EMULATED] if backend.name == "cpu" and backend.precision in ("fp16", "bf16") else []
    exported = bundle.manifest["checkpoint"]["sha256"]
    if reference.checkpoint_sha256 != exported:
        notes.append(
            f"the reference is of another checkpoint ({reference.checkpoint_sha256[:12]}…) than the bundle ({exported[:12]}…)"
        )
    return {
        "precision": backend.precision,
        "backend": backend.name,
        "library": backend.library,
        "device": backend.device,
        "engine": getattr(backend, "engine_file", None),
        "what": reference.source,
        "tolerance": asdict(tolerance),
        "masks_count": bundle.model.trained,
        "comparison": comparison.as_dict(),
        "findings": comparison.findings(tolerance, bundle.model.trained),
        "notes": notes,
    }
