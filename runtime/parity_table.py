"""Comparisons side by side, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = ("backend", "precision", "largest", "99.9 %", "mask Dice", "flipped", "lesions", "verdict")


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a comparison under one heading.

    Parameters
    ----------
    rows
        As :func:`lesionrt.runtime.verify.compare_backend` gives them.
    """
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    result = row["comparison"]
    return (
        f"{row['backend']}, {row['graph']}" if row.get("graph") else row["backend"],
        row["precision"],
        f"{result['max_difference']:.2g}",
        f"{result['percentile_difference']:.2g}",
        f"{result['dice']:.5f}",
        f"{result['flipped_voxels']} of {result['reference_voxels']}",
        f"{result['candidate_lesions']} of {result['reference_lesions']}",
        "OUT OF TOLERANCE" if row["findings"] else "ok",
    )
