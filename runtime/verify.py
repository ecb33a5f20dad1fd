"""A bundle checked against reference probabilities, without torch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lesionrt.runtime.backends import Backend, each_way, open_backend
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import InputError, StackError
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
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run the graphs or every engine of some precisions on a reference's slices and compare.

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
    A row for each graph or engine, plain values: `findings` lists what is out of tolerance.  And the engines that were left
    out, because others of their precision take the reference's slices and they do not, with the reason.

    Raises
    ------
    InputError
        If the reference's slices do not fit the network, or no engine of a precision.
    """
    multiple = bundle.size_multiple
    if any(size % multiple for size in reference.slices.shape[2:]):
        raise InputError(
            f"the reference's slices are {'x'.join(map(str, reference.slices.shape[2:]))} pixels; "
            f"this network needs multiples of {multiple}"
        )
    rows, left_out = [], {}
    for precision, tolerance in tolerances.items():
        refusals = []
        candidates = each_way(backend, bundle, precision)
        for candidate in candidates:
            with opener(backend, candidate, precision) as network:
                try:
                    rows.append(compare_backend(bundle, network, reference, tolerance))
                except StackError as error:
                    refusals.append(error)
                    left_out[f"{backend} {precision} {candidate.manifest['engines'][0]['file']}"] = str(error)
        if len(refusals) == len(candidates):
            raise refusals[-1]
    return rows, left_out


def compare_backend(
    bundle: Bundle,
    backend: Backend,
    reference: Reference,
    tolerance: Tolerance,
    chunk: int | None = None,
    masks: bool = True,
) -> dict[str, Any]:
    """One loaded network against a reference, as a row of plain values; a trained model's masks count too if `masks` says so."""
    masks = masks and bundle.model.trained
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
        "graph": getattr(backend, "graph", None),
        "what": reference.source,
        "tolerance": asdict(tolerance),
        "masks_count": masks,
        "comparison": comparison.as_dict(),
        "findings": comparison.findings(tolerance, masks),
        "notes": notes,
    }
