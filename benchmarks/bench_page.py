"""A benchmark for people: tables and plots in one file."""

import itertools
from collections.abc import Iterator
from html import escape
from typing import Any

from lesionrt.benchmarks import bench_table
from lesionrt.benchmarks.bench_table import DASH, short
from lesionrt.benchmarks.fit import PowerLaw
from lesionrt.benchmarks.rows import STAGES
from lesionrt.train.page import facts, page, table
from lesionrt.train.plots import Frame

BAR, NAMES, WIDTH = 22, 190, 620  # pixels: a bar's height, the width for names, and the whole
STEPS = 40  # straight pieces of a curve
SCALED = {"slices": "output slices", "chunk": "slices computed at a time", "threads": "threads", "volumes": "volumes"}


def bench_page(report: dict[str, Any]) -> str:
    """One HTML document."""
    return page("lesionrt bench", _body(report))


def _body(report: dict[str, Any]) -> Iterator[str]:
    yield "<h1>Whole volumes, side by side</h1>"
    for row in report["cases"]:
        if row["wrong"]:
            findings = escape("; ".join(row["findings"]))
            yield f'<p class="warning"><b>WRONG</b>: {escape(row["name"])}: {findings}. Its time counts for nothing.</p>'
    for note in report["notes"]:
        yield f'<p class="warning">{escape(note)}</p>'
    yield facts(_facts(report))
    yield "<h2>Cases</h2>"
    yield table(
        bench_table.HEAD, [("paper" if cells[-1] == "WRONG" else "", cells) for cells in bench_table.rows(report)]
    )
    for sentence in (*bench_table.explanation(report), *bench_table.not_compared(report)):
        yield f'<p class="dim">{escape(sentence)}</p>'
    measured = [row for row in report["cases"] if row["skipped"] is None]
    if measured:
        yield '<div class="plots">'
        yield _figure("Times faster than the baseline, per slice", bars(_named(measured, "times_faster")))
        yield _figure("Peak resident memory after the slices, MB", bars(_named(measured, "peak_mb")))
        yield _figure("Start to first slice, s", bars(_named(measured, "cold_s")))
        shares = [(_name(row), 100 * row["roofline"]["share"]) for row in measured if row["roofline"]]
        if shares:
            yield _figure("Of what the machine can do, %", bars(shares))
        yield "</div>"
        yield from _stages(measured)
        yield from _starts(measured)
    yield "<h2>The limit</h2>"
    yield from _limit(report, measured)
    if report["scaling"] is not None:
        yield from _scaling(report["scaling"])
    left_out = bench_table.skipped(report)
    if left_out:
        yield "<h2>Not measured</h2>"
        yield table(["Case", "What", "Why not"], [("", cells) for cells in left_out], text_columns=3)


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine, volume, model = report["machine"], report["volume"], report["model"]
    yield "date", report["date"]
    yield (
        "processor",
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['flags']) or 'no wide vectors'})",
    )
    yield "threads", str(report["threads"])
    yield "memory", f"{machine['memory_gb']} GB"
    yield "GPU", ", ".join(machine["gpus"]) or "none"
    yield "system", f"{machine['system']}, Python {machine['python']}"
    yield "libraries", ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    yield "model", f"{model['name']} {model['version']} (bundle {model['sha256'][:12]}…)"
    size = "×".join(map(str, volume["height_width"]))
    yield "checkpoint", report["checkpoint"] or "none"
    yield "volume", f"{volume['name']}: {volume['slices']} slices of {size} (sha256 {volume['sha256'][:12]}…)"
    yield "kind", f"{'quick' if report['quick'] else 'full'}, took {report['elapsed_s'] / 60:.1f} min"


def _stages(measured: list[dict[str, Any]]) -> Iterator[str]:
    whole = [row for row in measured if row["stages"]]
    if not whole:
        return
    yield "<h2>Stages of a whole volume, s</h2>"
    cells = [[_name(row), *(short(row["stages"].get(stage)) for stage in STAGES)] for row in whole]
    sums = [short(row["volume"]["median"]) for row in whole]
    spreads = [f"{short(row['volume']['least'])} … {short(row['volume']['most'])}" for row in whole]
    peaks = [short(row["peak_volume_mb"]) for row in whole]
    parities = [row["volume_parity"] for row in whole]
    dice = [DASH if parity is None else f"{parity['dice']:.4f}" for parity in parities]
    lines = zip(cells, sums, spreads, peaks, dice, strict=True)
    head = ["Case", *STAGES, "whole", "spread", "peak after whole volumes, MB", "Dice"]
    yield table(head, [("", [*one, *more]) for one, *more in lines])
    yield (
        '<p class="dim">Transfer is copies to a GPU and back, timed by themselves: compute holds them too. The peak is resident memory '
        "from the start to the end of the whole volumes. Dice is of the whole volume's mask.</p>"
    )


def _starts(measured: list[dict[str, Any]]) -> Iterator[str]:
    yield "<h2>From the process's start to the first slice, s</h2>"
    head = ["Case", "read", "prepare", "load", "first slice", "whole", "second start", "peak on the GPU, MB"]
    lines = []
    for row in measured:
        start = [row["start_s"][part] for part in ("read", "prepare", "load")]
        values = [*start, row["first_s"], row["cold_s"], row["cold_again_s"], row["device_mb"]]
        lines.append(("", [_name(row), *map(short, values)]))
    yield table(head, lines)
    yield (
        '<p class="dim">The first start finds no caches of compiled kernels, the second those that the first one left. '
        "The volume is read and prepared while the network loads; Python and its imports come first.</p>"
    )


def _limit(report: dict[str, Any], measured: list[dict[str, Any]]) -> Iterator[str]:
    for device, rates in report["rates"].items():
        parts = [f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates["flops_per_s"].items()]
        text = f"{device}, measured with {rates['by']}: matrix products {', '.join(parts)}; memory {rates['bytes_per_s'] / 1e9:.1f} GB/s"
        yield f"<p>{escape(text)}.</p>"
        for precision, computed in rates.get("computed_in", {}).items():
            yield f"<p>On the {device} ONNX Runtime computes {precision} largely in {computed}: its limit is that of {computed}.</p>"
    if report["work"] is None:
        yield "<p>The graph's operations were not counted: that needs onnx and a float32 graph.</p>"
        return
    encode, decode = (report["work"][part]["flops"] / 1e9 for part in ("encode", "decode"))
    yield f"<p>The graph costs {encode:.3g} GFLOP to encode a slice and {decode:.3g} to decode one (convolutions and matrix products).</p>"
    head = ["Case", "GFLOP", "GB", "achieved, GFLOP/s", "possible, GFLOP/s", "bound by", "share"]
    lines = []
    for row in measured:
        roof = row["roofline"]
        if roof:
            values = [short(roof[name]) for name in ("gflop", "gbyte", "achieved_gflops", "possible_gflops")]
            lines.append(("", [_name(row), *values, roof["bound_by"], f"{roof['share']:.0%}"]))
        else:
            lines.append(("", [_name(row), *[DASH] * 6]))
    yield table(head, lines)


def _scaling(scaling: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>Scaling of {escape(scaling['case'])}</h2>"
    yield (
        f'<p class="dim">Each point has a process of its own and is the median of {scaling["repeats"]} rounds in turns; '
        f"{scaling['steady_slices']} output slices where another thing changes. Several volumes are one run of <code>lesionrt segment</code>, in the precision that it takes by itself, its start "
        "counted in.</p>"
        '<div class="plots">'
    )
    for what, name in SCALED.items():
        for measure, title in (("seconds", "seconds"), ("peak_mb", "peak memory, MB")):
            points = [(float(row[what]), float(row[measure])) for row in scaling[what]["rows"] if measure in row]
            fit = scaling[what][f"{measure}_fit"]
            if points:
                law = None if fit is None else PowerLaw(**fit)
                said = (
                    ""
                    if law is None or len(points) < 3
                    else f": {law.factor:.3g} · n^{law.exponent:.2f} (R² {law.r2:.3f})"
                )
                yield _figure(f"{scaling[what]['case']}: {title} over {name}{said}", curve(name, title, points, law))
    yield "</div>"


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _name(row: dict[str, Any]) -> str:
    return f"{row['name']} WRONG" if row["wrong"] else str(row["name"])


def _named(measured: list[dict[str, Any]], key: str) -> list[tuple[str, float]]:
    return [(_name(row), row[key]) for row in measured if row[key] is not None]


def bars(values: list[tuple[str, float]]) -> str:
    """Horizontal bars from 0, each with its name and value."""
    most = max([value for _, value in values], default=0) or 1
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {BAR * len(values) + 4}" role="img">']
    for index, (name, value) in enumerate(values):
        y, length = BAR * index, max(1.0, (WIDTH - NAMES - 70) * value / most)
        parts.append(f'<text x="{NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="point" x="{NAMES}" y="{y + 3}" width="{length:.1f}" height="{BAR - 6}"/>')
        parts.append(f'<text x="{NAMES + length + 6:.1f}" y="{y + 15}">{short(value)}</text>')
    return "".join(parts) + "</svg>"


def curve(x_name: str, y_name: str, points: list[tuple[float, float]], law: PowerLaw | None) -> str:
    """Measured points and the power law through them."""
    ends = min(x for x, _ in points), max(x for x, _ in points)
    steps = [ends[0] + (ends[1] - ends[0]) * step / STEPS for step in range(STEPS + 1)]
    fitted = [] if law is None else [(x, law.at(x)) for x in steps]
    frame = Frame((0.0, ends[1]), (0.0, max(y for _, y in (*points, *fitted))))
    lines = [frame.line(one, other, "mean", "") for one, other in itertools.pairwise(fitted)]
    return frame.svg(x_name, y_name, lines, [(f"{x:g}", x, y) for x, y in points])
