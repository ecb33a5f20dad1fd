"""Every case's probabilities beside PyTorch's in float32."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lesionrt.benchmarks.running import Running, Say
from lesionrt.runtime.bundle import REFERENCE, Bundle
from lesionrt.runtime.errors import LesionrtError, UnavailableError
from lesionrt.runtime.parity import TOLERANCES, Comparison, compare, load_reference


def compare_slabs(running: Sequence[Running], bundle: Bundle, height_width: tuple[int, ...], folder: Path) -> str:
    """Fill in each row's parity and findings on the slab; what it was compared with."""
    alive = [one for one in running if one.alive]
    reference, verb, what = _reference(alive, bundle, folder)
    for one in alive:
        if one.case.kind == "window" and reference.shape[1:] != height_width:
            one.row["not_compared"] = "it was exported for the volume's height and width, the reference has others"
            continue
        try:
            found = compare(reference, one.probabilities(folder, verb), bundle.threshold)
        except LesionrtError as error:  # its times stand
            one.row["not_compared"] = str(error)
            continue
        one.row["parity"] = found.as_dict()
        one.row["findings"] = _findings(one, found, bundle)
        one.row["wrong"] = bool(one.row["findings"])
    return what


def compare_volumes(running: Sequence[Running], bundle: Bundle, folder: Path, say: Say) -> str | None:
    """The others' whole volumes, which are cut into other pieces, with a float32 case's whose slab is right; its name."""
    for one in running:
        if one.alive and one.row["volume_failed"] is not None:
            one.row["findings"].append(f"whole volume: {one.row['volume_failed']}")
            one.row["wrong"] = True
    whole = [one for one in running if one.row["volume"] and one.alive]
    right = [one for one in whole if one.case.precision == "fp32" and one.row["parity"] and not one.row["wrong"]]
    right = [one for one in right if not one.case.compiled]
    if not right:
        return None
    right.sort(key=lambda one: not one.case.in_pytorch)  # PyTorch first
    try:
        reference = right[0].probabilities(folder, "save_volume")
    except LesionrtError as error:
        say(f"whole volumes were not compared: {error}")
        return None
    for one in whole:
        if one is right[0]:
            continue
        try:
            found = compare(reference, one.probabilities(folder, "save_volume"), bundle.threshold)
        except LesionrtError as error:  # its times stand
            say(f"{one.case.name}: its whole volume was not compared: {error}")
            continue
        one.row["volume_parity"] = found.as_dict()
        one.row["findings"] += [f"whole volume: {finding}" for finding in _findings(one, found, bundle)]
        one.row["wrong"] = bool(one.row["findings"])
    return right[0].case.name


def _findings(one: Running, found: Comparison, bundle: Bundle) -> list[str]:
    # A precision without bounds of its own is held to the loosest.
    return found.findings(TOLERANCES.get(one.case.precision, TOLERANCES["bf16"]), bundle.model.trained)


def _reference(alive: Sequence[Running], bundle: Bundle, folder: Path) -> tuple[np.ndarray, str, str]:
    """PyTorch's probabilities, the order with which the others give theirs of the same slices, and what they are."""
    for one in alive:  # the authors' schedule first
        if one.case.in_pytorch and one.case.precision == "fp32" and not one.case.compiled:
            with contextlib.suppress(UnavailableError):  # it is told as not compared
                return one.probabilities(folder, "save"), "save", f"{one.case.title} float32, the same slices"
    known = load_reference(bundle.checked(REFERENCE))
    return known.lesion, "reference", f"PyTorch float32 at export, {known.source} in the bundle"
