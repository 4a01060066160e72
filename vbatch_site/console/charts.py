"""Plots as SVG text: no script, swapped with the page, readable in a test. Pure: no Django."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 640, 120  # of the view box; the page scales it
_LEFT, _BOTTOM, _TOP = 40, 16, 8


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment of a plot."""

    at: float
    label: str


def nice_ceiling(value: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below the value."""
    if value <= 0:
        return 1.0
    power = 10 ** floor(log10(value))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999999))


def short(value: float) -> str:
    """Return a number as an axis has room for: 950, 1.2k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def sparkline(values: Sequence[float], label: str, width: int = 120, height: int = 28) -> str:
    """Return a line without axes; the label says what a person who can't see it should know."""
    top = max(values, default=0) or 1
    if len(values) < 2:
        points = f"0,{height - 1} {width},{height - 1}"
    else:
        step = width / (len(values) - 1)
        points = " ".join(f"{i * step:.1f},{height - 1 - (v / top) * (height - 3):.1f}" for i, v in enumerate(values))
    return (
        f'<svg class="vb-spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><polygon points="0,{height} {points} {width},{height}"/>'
        f'<polyline points="{points}"/></svg>'
    )


def throughput(
    series: Sequence[tuple[float, float]],
    *,
    start: float,
    end: float,
    label: str,
    unit: str,
    marks: Sequence[Mark] = (),
    ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return an area plot of (unix time, value), with marks for moments that explain its shape."""
    top = nice_ceiling(max((value for _, value in series), default=0))
    span = max(end - start, 1e-9)
    inner_width, inner_height = WIDTH - _LEFT, HEIGHT - _BOTTOM - _TOP

    def x(at: float) -> float:
        return _LEFT + min(max((at - start) / span, 0), 1) * inner_width

    def y(value: float) -> float:
        return _TOP + (1 - value / top) * inner_height

    parts = [f'<svg class="vb-plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for fraction in (0.0, 0.5, 1.0):
        at = y(top * fraction)
        parts.append(f'<line class="vb-plot-grid" x1="{_LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = short(top * fraction)
        parts.append(f'<text class="vb-plot-text" x="{_LEFT - 6}" y="{at + 3:.1f}" text-anchor="end">{text}</text>')
    for place, (moment, text) in enumerate(ticks):
        anchor = "end" if x(moment) > WIDTH - 30 else "start" if x(moment) < _LEFT + 12 else "middle"
        parts.append(
            f'<text class="vb-plot-text{" vb-plot-odd" if place % 2 else ""}" x="{x(moment):.1f}" y="{HEIGHT - 3}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )
    if series:
        line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in series)
        first, last, floor_y = x(series[0][0]), x(series[-1][0]), y(0)
        parts.append(
            f'<polygon class="vb-plot-area" points="{first:.1f},{floor_y:.1f} {line} {last:.1f},{floor_y:.1f}"/>'
        )
        parts.append(f'<polyline class="vb-plot-line" points="{line}"/>')
    for mark in marks:
        if start <= mark.at <= end:
            parts.append(
                f'<g class="vb-plot-mark"><title>{escape(mark.label)}</title>'
                f'<line x1="{x(mark.at):.1f}" x2="{x(mark.at):.1f}" y1="{_TOP}" y2="{y(0):.1f}"/></g>'
            )
    parts.append(f"<title>{escape(label)} ({escape(unit)})</title></svg>")
    return "".join(parts)


def clock_ticks(start: float, end: float, count: int = 4) -> list[tuple[float, str]]:
    """Return moments with their distance from the end, such as -10 min, spread over a plot."""
    span = end - start
    found = []
    for i in range(count + 1):
        at = start + span * i / count
        back = end - at
        found.append((at, "now" if back < 1 else f"\u2212{roughly(back, span)}"))
    return found


def roughly(seconds: float, scale: float) -> str:
    """Return a length of time as exactly as lengths of some scale are worth: no seconds in what takes ten minutes."""
    for least, step in ((36_000, 1800), (600, 60)):
        if scale >= least:
            return duration(max(round(seconds / step), 1) * step)
    return duration(seconds)


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: 45 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    whole = ceil(seconds - 0.5)
    if whole < 60:
        return f"{whole} s"
    for size, unit, small, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
