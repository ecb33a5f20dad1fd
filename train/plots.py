"""Plots of lesion volumes as SVG, to stand inside a page."""

import math
from collections.abc import Sequence
from html import escape

from lesionrt.runtime.metrics import agreement

WIDTH, HEIGHT = 480, 340  # pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 112, 14, 46  # margins; the right one holds the names of lines
Point = tuple[str, float, float]  # name, x, y


def scatter(names: Sequence[str], reference: Sequence[float], predicted: Sequence[float]) -> str:
    """Predicted over reference volume, with the line of equality."""
    most = max(*reference, *predicted, 1e-3)
    frame = Frame((0.0, most), (0.0, most))
    line = frame.line((0.0, 0.0), (frame.x[1], frame.x[1]), "equal", "equality")
    points = list(zip(names, reference, predicted, strict=True))
    return frame.svg("reference, ml", "prediction, ml", [line], points)


def bland_altman(names: Sequence[str], reference: Sequence[float], predicted: Sequence[float]) -> str:
    """Difference over mean volume, with the mean difference and the limits of agreement."""
    points = [
        (name, (one + other) / 2, other - one) for name, one, other in zip(names, reference, predicted, strict=True)
    ]
    limits = agreement(reference, predicted)
    shown = {"mean": limits.bias, "+1.96 SD": limits.upper, "−1.96 SD": limits.lower}
    levels = {name: level for name, level in shown.items() if math.isfinite(level)}
    ys = [0.0, *(y for *_, y in points), *levels.values()]
    frame = Frame((0.0, max(*(x for _, x, _ in points), 1e-3)), (min(ys), max(ys)))
    lines = [frame.line((0.0, 0.0), (frame.x[1], 0.0), "zero", "")]
    lines += [
        frame.line((0.0, level), (frame.x[1], level), "mean" if name == "mean" else "limit", f"{name}: {level:.2f}")
        for name, level in levels.items()
    ]
    return frame.svg("mean of reference and prediction, ml", "prediction − reference, ml", lines, points)


class Frame:
    """Axes whose ends are round numbers."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_ticks, self.y_ticks = ticks(*x), ticks(*y)
        self.x, self.y = (self.x_ticks[0], self.x_ticks[-1]), (self.y_ticks[0], self.y_ticks[-1])

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, start: tuple[float, float], stop: tuple[float, float], kind: str, name: str) -> str:
        """A straight line, `kind` its class in the page's style, `name` written at its end."""
        (x1, y1), (x2, y2) = self.at(*start), self.at(*stop)
        drawn = f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        return drawn + (f'<text class="name" x="{x2 + 5:.1f}" y="{y2 + 4:.1f}">{escape(name)}</text>' if name else "")

    def svg(self, x_name: str, y_name: str, lines: Sequence[str], points: Sequence[Point]) -> str:
        """The picture: axes, lines and points."""
        left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
        parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_name)}">']
        for tick in self.x_ticks:
            x, _ = self.at(tick, self.y[0])
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
        for tick in self.y_ticks:
            _, y = self.at(self.x[0], tick)
            parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts += lines
        for name, px, py in points:
            x, y = self.at(px, py)
            title = f"<title>{escape(name)}: {px:.2f}, {py:.2f}</title>"
            parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>')
        middle = (top + bottom) / 2
        parts.append(f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
        turned = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
        parts.append(f'<text x="14" y="{middle}" {turned}>{escape(y_name)}</text></svg>')
        return "".join(parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`.

    >>> ticks(0.0, 73.0)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    >>> ticks(-1.5, 4.0)
    [-2.0, 0.0, 2.0, 4.0]
    """
    span = max(high - low, 1e-6)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 9) for number in range(first, max(last, first + 1) + 1)]
