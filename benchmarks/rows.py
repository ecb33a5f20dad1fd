"""The report's rows: one a case, plain values, ready for JSON."""

import math
from typing import Any

from lesionrt.benchmarks.cases import BASELINE, Case

STAGES = ("read", "prepare", "transfer", "compute", "restore", "write")  # of a whole volume
# The first of these that was measured and is right is what the others are compared with.
BASELINES = (BASELINE, "window-onnx", "cpu-fp32")


def row_of(case: Case) -> dict[str, Any]:
    """A case before it is measured."""
    known = {"name": case.name, "title": case.title, "precision": case.precision, "skipped": case.skip}
    later = (
        "library",
        "device",
        "slab",
        "slab_beside_volumes",
        "s_per_slice",
        "times_faster",
        "volume",
        "volume_failed",
        "volume_s",
        "volume_scaled",
        "stages",
    )
    more = ("times_faster_volume", "volumes_per_minute", "start_s", "first_s", "cold_s", "cold_again_s", "peak_mb")
    memory = ("peak_volume_mb", "device_mb")
    return {
        **known,
        **dict.fromkeys((*later, *more, *memory, "parity", "volume_parity", "not_compared", "roofline")),
        "findings": [],
        "wrong": False,
    }


def relate(rows: list[dict[str, Any]], slices: int) -> str | None:
    """Fill in what is relative to the baseline and to the number of slices; the baseline's name."""
    measured = [row for row in rows if row["skipped"] is None and row["s_per_slice"] is not None]
    if not measured:
        return None
    right = [row for row in measured if not row["wrong"]] or measured
    base = next((row for name in BASELINES for row in right if row["name"] == name), right[0])
    for row in measured:
        whole = row["volume"]
        # Without reading and writing, where the volume is scaled: a baseline is not made slower than it is.
        row["volume_s"] = whole["median"] if whole else row["s_per_slice"] * slices
        row["volume_scaled"] = whole is None
        row["volumes_per_minute"] = 60 / row["volume_s"]
    for row in measured:
        row["times_faster"] = base["s_per_slice"] / row["s_per_slice"]
        # The baseline's slab was timed again in turns with the volumes.
        beside = base["slab_beside_volumes"] if row["volume"] and not base["volume"] else None
        later = beside["median"] / base["slab"]["median"] if beside else 1.0
        row["times_faster_volume"] = base["volume_s"] * later / row["volume_s"]
    return str(base["name"])


def finite(value: Any) -> Any:
    """The same with None for what is not a number, of which JSON has none."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
