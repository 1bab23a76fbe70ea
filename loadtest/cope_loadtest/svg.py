"""Plots as SVG: lines with intervals, and stacked bars. Colours are classes, which `STYLE` fills."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH = 640
_HEIGHT = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 12, 44
_ROW = 26
_LEGEND_ROW = 20
_CHARACTER = 6.9  # pixels of the label font, on average
COLOURS = 7  # the last is grey
PALETTE = """
:root { color-scheme: light dark; --bg: #fcfcfb; --ink: #1c1c1a; --soft: #62625d; --rule: #e2e2dd; --card: #ffffff;
  --c0: #0068a8; --c1: #d97706; --c2: #00866b; --c3: #b0478c; --c4: #6a5acd; --c5: #8a6d3b; --c6: #9a9a94;
  --bad: #b3261e; --good: #00704f; }
@media (prefers-color-scheme: dark) { :root { --bg: #161615; --ink: #ecece8; --soft: #a3a39c; --rule: #343431;
  --card: #1f1f1d; --c0: #4fb0ea; --c1: #f0a23c; --c2: #35c6a3; --c3: #e08cc2; --c4: #a79cf5; --c5: #cdb07a;
  --bad: #ff8a80; --good: #5fd4ac; } }
"""
STYLE = """
text { fill: var(--soft); font: 11.5px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
text.axis, text.legend { font-size: 12px; } .grid { stroke: var(--rule); } .line { fill: none; stroke-width: 2; }
.whisker { stroke-width: 1.6; } .dot { stroke: var(--card); stroke-width: 1.5; }
.mark { stroke: var(--ink); stroke-width: 2; }
""" + "".join(f".s{k} {{ stroke: var(--c{k}); }} .f{k} {{ fill: var(--c{k}); }}\n" for k in range(COLOURS))


@dataclass(frozen=True, slots=True)
class Dot:
    """A value and its interval.

    Attributes:
        x: position; of a category chart, the category's index.
        y, low, high: value and interval.
    """

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """Values that belong together.

    Attributes:
        name: for the legend.
        dots: in order of x.
        dashed: draw its line dashed.
        colour: which of `COLOURS`; None takes the next.
        loose: dots that no line leads to (the first of them and those after it).
    """

    name: str
    dots: Sequence[Dot]
    dashed: bool = False
    colour: int | None = None
    loose: int | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A stacked bar.

    Attributes:
        label: what it is.
        parts: (name, value), from left to right.
        mark: a value to compare with, and its name.
    """

    label: str
    parts: Sequence[tuple[str, float]]
    mark: tuple[str, float] | None = None


@dataclass(slots=True)
class _Axis:
    low: float
    high: float
    begin: float
    end: float
    ticks: list[float] = field(default_factory=list)

    def at(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    categories: Sequence[str] | None = None,
    line_at: tuple[float, str] | None = None,
) -> str:
    """Lines through dots with intervals.

    Args:
        series: at least one, with at least one dot.
        x_label, y_label: names of the axes, with units.
        categories: names of the positions 0, 1, ...; without them x is a number from 0.
        line_at: an x to be marked by a vertical line, and its name.
    """
    highest = max(dot.high for one in series for dot in one.dots)
    y = _axis(highest, _HEIGHT - _BOTTOM, _TOP)
    if categories is None:
        x = _axis(max(dot.x for one in series for dot in one.dots), _LEFT, _WIDTH - _RIGHT)
        names = [(tick, _number(tick)) for tick in x.ticks]
    else:
        x = _Axis(-0.5, len(categories) - 0.5, _LEFT, _WIDTH - _RIGHT)
        names = [(float(k), name) for k, name in enumerate(categories)]
    out = [_grid(y, y_label)]
    for tick, name in names:
        out.append(_text(x.at(tick), _HEIGHT - _BOTTOM + 16, name, "middle"))
    out.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle", "axis"))
    if line_at is not None:
        at = x.at(line_at[0])
        out.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        out.append(_text(at + 4, _TOP + 10, line_at[1], "start"))
    shift = 0.0 if categories is None else min(18.0, 120.0 / max(len(series), 1))
    for k, one in enumerate(series):
        aside = (k - (len(series) - 1) / 2) * shift
        out.append(_line(one, k, x, y, aside, x_label if categories is None else "", categories))
    entries = [(one.name, _colour(one, k), one.dashed) for k, one in enumerate(series)]
    return _svg(out, _HEIGHT, y_label, entries)


def _line(
    one: Series, position: int, x: _Axis, y: _Axis, aside: float, unit: str, categories: Sequence[str] | None
) -> str:
    colour = _colour(one, position)
    joined = one.dots if one.loose is None else one.dots[: one.loose]
    out = []
    if len(joined) > 1:
        path = " ".join(f"{x.at(dot.x) + aside:.1f},{y.at(dot.y):.1f}" for dot in joined)
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        out.append(f'<polyline class="line s{colour}" points="{path}"{dash}/>')
    for dot in one.dots:
        at = x.at(dot.x) + aside
        where = categories[round(dot.x)] if categories is not None else f"{_number(dot.x)} {unit}"
        told = f"{one.name}, {where}: {_number(dot.y)} ({_number(dot.low)} to {_number(dot.high)})"
        out.append(
            f'<g><title>{escape(told)}</title><line class="whisker s{colour}" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{y.at(dot.low):.1f}" y2="{y.at(dot.high):.1f}"/>'
            f'<circle class="dot f{colour}" cx="{at:.1f}" cy="{y.at(dot.y):.1f}" r="4"/></g>'
        )
    return "".join(out)


def bar_chart(bars: Sequence[Bar], *, x_label: str) -> str:
    """Stacked bars, one below the other.

    Args:
        bars: at least one; parts of one name have one colour in all of them.
        x_label: what the lengths are, with the unit.
    """
    names: list[str] = []
    for bar in bars:
        names += [name for name, _ in bar.parts if name not in names]
    longest = max(
        max(sum(value for _, value in bar.parts), bar.mark[1] if bar.mark is not None else 0.0) for bar in bars
    )
    left = min(300.0, max(len(bar.label) for bar in bars) * _CHARACTER + 12)
    height = _TOP + len(bars) * _ROW + _BOTTOM
    x = _axis(longest, left, _WIDTH - _RIGHT - 40)
    out = []
    for tick in x.ticks:
        out.append(
            f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        )
        out.append(_text(x.at(tick), height - _BOTTOM + 16, _number(tick), "middle"))
    out.append(_text((left + _WIDTH - _RIGHT) / 2, height - 8, x_label, "middle", "axis"))
    for row, bar in enumerate(bars):
        top = _TOP + row * _ROW + 4
        out.append(_text(left - 8, top + 13, _shortened(bar.label, left), "end"))
        begin = 0.0
        for name, value in bar.parts:
            width = max(x.at(begin + value) - x.at(begin) - 1, 0)  # a pixel of background between neighbours
            out.append(
                f'<rect class="f{names.index(name) % COLOURS}" x="{x.at(begin):.1f}" y="{top}" width="{width:.1f}" '
                f'height="{_ROW - 8}"><title>{escape(f"{bar.label}, {name}: {_number(value)}")}</title></rect>'
            )
            begin += value
        end = x.at(begin)
        if bar.mark is not None and -2 < x.at(bar.mark[1]) - end < 50:
            end = x.at(bar.mark[1])  # the figure would lie under the mark
        out.append(_text(end + 5, top + 13, _number(begin), "start"))
        if bar.mark is not None:
            at = x.at(bar.mark[1])
            told = f"{bar.label}, {bar.mark[0]}: {_number(bar.mark[1])}"
            out.append(
                f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3}" y2="{top + _ROW - 5}">'
                f"<title>{escape(told)}</title></line>"
            )
    entries = [(name, k % COLOURS, False) for k, name in enumerate(names)]
    marks = {bar.mark[0] for bar in bars if bar.mark is not None}
    return _svg(out, height, x_label, entries, sorted(marks))


def alone(svg: str, title: str) -> str:
    """A plot of this module as a file of its own, with its style, a background and a title."""
    head, body = svg.split(">", 1)
    _, _, width, height = head.split('viewBox="')[1].split('"')[0].split(" ")
    tall = int(height) + 40
    head = head.replace(f'viewBox="0 0 {width} {height}"', f'viewBox="-12 -32 {int(width) + 24} {tall}"')
    box = f'x="-12" y="-32" width="{int(width) + 24}" height="{tall}"'
    name = f'<text x="0" y="-12" style="font-size: 15px; fill: var(--ink)">{escape(title)}</text>'
    return f'{head}><style>{PALETTE}{STYLE}</style><rect {box} style="fill: var(--card)"/>{name}{body}\n'


def _axis(highest: float, begin: float, end: float) -> _Axis:
    """From 0 to a round number above the highest value, with about five ticks."""
    highest = highest if highest > 0 else 1.0
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    count = math.ceil(highest / step * 0.999)
    return _Axis(0.0, count * step, begin, end, [k * step for k in range(count + 1)])


def _grid(y: _Axis, label: str) -> str:
    out = []
    for tick in y.ticks:
        at = y.at(tick)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(_text(_LEFT - 8, at + 4, _number(tick), "end"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    out.append(
        f'<text class="axis" text-anchor="middle" transform="translate(14 {middle:.0f}) rotate(-90)">'
        f"{escape(label)}</text>"
    )
    return "".join(out)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(entries: Sequence[tuple[str, int, bool]], marks: Sequence[str], top: float) -> tuple[str, float]:
    """The legend as rows from `top` on, and their height; none for a single entry."""
    if len(entries) < 2 and not marks:
        return "", 0.0
    out, x, y = [], 8.0, top
    for name, colour, dashed in [*entries, *((name, -1, False) for name in marks)]:
        width = 26 + len(name) * _CHARACTER + 14
        if x + width > _WIDTH and x > 8:
            x, y = 8.0, y + _LEGEND_ROW
        if colour < 0:
            out.append(f'<line class="mark" x1="{x + 9:.1f}" x2="{x + 9:.1f}" y1="{y - 10:.1f}" y2="{y + 2:.1f}"/>')
        elif dashed:
            out.append(
                f'<line class="line s{colour}" x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}" '
                'stroke-dasharray="5 4"/>'
            )
        else:
            out.append(f'<rect class="f{colour}" x="{x:.1f}" y="{y - 9:.1f}" width="18" height="10" rx="2"/>')
        out.append(_text(x + 24, y, name, "start", "legend"))
        x += width
    return "".join(out), y - top + _LEGEND_ROW + 4


def _svg(
    parts: Sequence[str], height: float, label: str, entries: Sequence[tuple[str, int, bool]], marks: Sequence[str] = ()
) -> str:
    legend, more = _legend(entries, marks, height + 16)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + more:.0f}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}{legend}</svg>'
    )


def _colour(one: Series, position: int) -> int:
    return (position if one.colour is None else one.colour) % COLOURS


def _shortened(label: str, width: float) -> str:
    most = int((width - 12) / _CHARACTER)
    return label if len(label) <= most else label[: max(most - 1, 1)] + "…"


def _number(value: float) -> str:
    """At most three significant digits, without exponents."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 9)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
