"""What pages share: one HTML file with everything in it, which asks nothing of any server."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

from lesionrt.runtime.metrics import Summary

STYLE = """
:root { --ink: #1c2026; --dim: #5c6570; --line: #d9dee4; --paper: #fff7e3; --mean: #eef3f9; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 6px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0; max-width: 860px; } .dim { color: var(--dim); font-size: 13.5px; }
.warning { background: #fdecea; border-left: 4px solid #c0392b; padding: 8px 12px; max-width: 860px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.3; border-bottom: 2px solid #aab4bf; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.mean td { background: var(--mean); font-weight: 600; } tr.sd td { background: var(--mean); } tr.paper td { background: var(--paper); color: #55461d; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 10px 0; font-size: 13.5px; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 18px; } figure { margin: 0 0 22px; } figure img { max-width: 100%; }
figcaption { font-size: 13.5px; margin: 0 0 4px; } .plots figure { flex: 1 1 420px; max-width: 560px; }
svg.plot { width: 100%; height: auto; font-size: 12px; fill: var(--ink); }
svg .grid { stroke: #e8ecf0; } svg .tick, svg .name { fill: var(--dim); font-size: 11px; }
svg .equal, svg .zero { stroke: #8c96a1; } svg .mean { stroke: var(--accent); stroke-width: 1.6; }
svg .limit { stroke: var(--accent); stroke-dasharray: 5 4; }
svg .point { fill: var(--accent); fill-opacity: .75; stroke: #fff; }
.red { color: #d22f2f; font-weight: 600; } .green { color: #1d8a3c; font-weight: 600; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
NOT_A_DEVICE = "lesionrt is a research tool, not a medical device."


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; what UTF-8 cannot hold, as in the name of a folder, is written as its code."""
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], text_columns: int = 1) -> str:
    """Rows of (kind, cells); a row's kind is ``""``, ``"mean"``, ``"sd"`` or ``"paper"``."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag} class='{'text' if column < text_columns else 'number'}'>{escape(value)}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "\n".join(f"<tr class='{kind or 'scan'}'>{cells('td', values)}</tr>" for kind, values in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they stand for."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def image(png: bytes, description: str) -> str:
    """A picture that is part of the page."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def number(value: float, digits: int = 4) -> str:
    """A value with a fixed number of decimals; a dash where there is nothing to measure.

    >>> number(0.5), number(math.nan), number(-0.00001)
    ('0.5000', '–', '0.0000')
    """
    if math.isnan(value):
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def mean_of(summary: Summary, scans: int, digits: int = 4) -> str:
    """A mean, with the number of values where it is not that of the scans.

    >>> mean_of(Summary(0.5, 0.1, 3), 3, 2), mean_of(Summary(0.5, math.nan, 1), 2, 2), mean_of(Summary(math.nan, math.nan, 0), 2)
    ('0.50', '0.50 (n = 1)', '–')
    """
    text = number(summary.mean, digits)
    return text if summary.n in (0, scans) else f"{text} (n = {summary.n})"


def deviation_of(summary: Summary, digits: int = 4) -> str:
    """A standard deviation.

    >>> deviation_of(Summary(0.5, 0.1, 3), 2), deviation_of(Summary(0.5, math.nan, 1), 2)
    ('± 0.10', '–')
    """
    return "–" if math.isnan(summary.sd) else f"± {number(summary.sd, digits)}"
