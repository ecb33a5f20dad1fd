"""The cases as a table of texts: one for the screen, the page and the README."""

from typing import Any

DASH = "–"
RESTORED = "restored from the bundle"  # a report's checkpoint where none was given
HEAD = (
    *(
        "Case",
        "s / slice",
        "spread",
        "times faster",
        "s / volume",
        "faster, volume",
        "volumes / min",
        "cold start, s",
        "peak, MB",
    ),
    *("99.9th pct.", "Dice", "of limit", "verdict"),
)


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each case that was measured, in the order of :data:`HEAD`."""
    return [_cells(row, report["baseline"]) for row in report["cases"] if row["skipped"] is None]


def skipped(report: dict[str, Any]) -> list[list[str]]:
    """Name, title and reason of each case that was not."""
    return [[row["name"], row["title"], row["skipped"]] for row in report["cases"] if row["skipped"] is not None]


def not_compared(report: dict[str, Any]) -> list[str]:
    """A sentence for each case that was timed without a look at its probabilities."""
    named = [(row["name"], row["not_compared"]) for row in report["cases"] if row["not_compared"] is not None]
    return [f"{name} was not compared: {reason}" for name, reason in named]


def explanation(report: dict[str, Any]) -> list[str]:
    """What the columns mean, in sentences."""
    slab, volume = report["slab_slices"], report["volume"]
    size = "x".join(map(str, volume["height_width"]))
    whence = ["The cases in PyTorch and the plain window export use the checkpoint that was restored from the bundle."]
    return [
        *(whence if report["checkpoint"] == RESTORED else []),
        f"Seconds per slice are of the network alone, measured on {slab} slices of {size}, the median of "
        f"up to {report['repeats']} interleaved rounds after a warm-up; spread is least to most. They are a whole volume's: in one pass "
        f"the two slices more that it encodes count as {volume['slices'] + 2} to {volume['slices']}, not as {slab + 2} to {slab}, "
        "or once a chunk where no state is kept between chunks. "
        f"Times faster is against {report['baseline'] or 'nothing'}, on the same slices in the same run.",
        f"Seconds per volume are from file to files, {volume['slices']} slices; ~ marks what was not measured on the "
        f"whole volume but scaled from the {slab} slices, without reading and writing. Faster, volume: the same ratio for whole volumes, against the baseline as it was when they were timed.",
        "Cold start is from the process's start to the first output slice, the volume read and prepared. "
        f"Peak is the process's resident memory, after whole volumes where they were computed, else after the {slab} slices.",
        f"99.9th percentile of the difference and Dice of the masks are of the {slab} slices, against {report['reference']}; whole volumes "
        f"are compared with {report['volume_reference'] or 'nothing'}. WRONG is a case that differs by more than its precision may.",
        "Of limit: the shortest time that the machine's measured matrix rate and memory bandwidth allow for the case's own "
        "work, over the time that it took. Every convolution counts in full, though ONNX Runtime's graph for x86 takes half the "
        "multiplications for many.",
    ]


def _cells(row: dict[str, Any], baseline: str | None) -> list[str]:
    slab, parity, roof = row["slab"], row["parity"], row["roofline"]
    count = row["slab"]["median"] / row["s_per_slice"]
    return [
        f"{row['name']} (baseline)" if row["name"] == baseline else row["name"],
        short(row["s_per_slice"]),
        f"{short(slab['least'] / count)} … {short(slab['most'] / count)}",
        f"{row['times_faster']:.2f}",
        ("~" if row["volume_scaled"] else "") + short(row["volume_s"]),
        f"{row['times_faster_volume']:.2f}",
        short(row["volumes_per_minute"]),
        short(row["cold_s"]),
        f"{row['peak_volume_mb'] or row['peak_mb']:.0f}",
        DASH if parity is None or parity["percentile_difference"] is None else f"{parity['percentile_difference']:.1e}",
        DASH if parity is None else f"{parity['dice']:.4f}",
        DASH if roof is None else f"{roof['share']:.0%}",
        "WRONG" if row["wrong"] else "not compared" if parity is None else "ok",
    ]


def short(value: float | None) -> str:
    """Three significant digits.

    >>> short(0.01234), short(12.34), short(1234.5), short(None)
    ('0.0123', '12.3', '1234', '–')
    """
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def readme_table(report: dict[str, Any]) -> str:
    """A few columns in Markdown, with the machine."""
    machine = report["machine"]
    where = ", ".join((f"{machine['cores']} cores of {machine['cpu']}", *machine["gpus"]))
    lines = [
        f"{report['volume']['name']}, {report['volume']['slices']} slices of "
        f"{'x'.join(map(str, report['volume']['height_width']))}; {where}; {report['threads']} threads; "
        f"{report['date'][:10]}; per slice, and Dice, on {report['slab_slices']} slices, `~` scaled from them:",
        "",
        "| case | s / slice | times faster | s / volume | times faster | peak, MB | Dice | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cells in rows(report):
        case, per_slice, _, faster, volume, whole, _, _, peak, _, dice, _, verdict = cells
        lines.append(f"| {case} | {per_slice} | {faster} | {volume} | {whole} | {peak} | {dice} | {verdict} |")
    return "\n".join(lines) + "\n"
