"""How a chart is drawn: what goes where, for a pen that is Pillow's or matplotlib's."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
from PIL import Image

from vl.nano.pictures.canvas import Boxes, readable
from vl.nano.pictures.chart_facts import ChartFacts, Look
from vl.nano.pictures.chart_pens import Painter, Plotter, usual_settings


def paint_chart(facts: ChartFacts, look: Look, *, plotted: bool = False) -> tuple[Image.Image, Boxes]:
    """Draws a chart, by matplotlib where it is `plotted`; returns it with the boxes of its characters."""
    with usual_settings() if plotted else nullcontext():
        pen = (Plotter if plotted else Painter)(facts.width, facts.height, look.tones.paper)
        x, align = (facts.width / 2, 0.5) if look.centred else (look.margin, 0.0)
        pen.write(facts.title, look.title_type, look.tones.ink, x, look.margin + 0.6 * look.title_type.size, align)
        if look.legend:
            _paint_legend(pen, facts, look)
        if facts.kind == "pie chart":
            _paint_pie(pen, facts, look)
        else:
            _paint_axes(pen, facts, look)
            (_paint_lines if facts.kind == "line chart" else _paint_bars)(pen, facts, look)
        return pen.finish()


def _paint_legend(pen: Painter | Plotter, facts: ChartFacts, look: Look) -> None:
    left, top, right, bottom = look.legend_box
    size = look.size
    if look.boxed:
        pen.rectangle((left, top, right, bottom), None, look.tones.rule)
    x, y = left + 0.6 * size, top + 0.75 * size
    for name, rgb in facts.legend:
        pen.swatch(x, y, rgb, look, line=facts.kind == "line chart")
        pen.write(name, look.type, look.tones.ink, x + 1.3 * size, y)
        if look.legend == "right":
            y += 1.5 * size
        else:
            x += look.type.width(name) + 2.6 * size


def _paint_axes(pen: Painter | Plotter, facts: ChartFacts, look: Look) -> None:
    """The panel with its grid, axes and ticks, and what is printed along them."""
    size, kind, ink, sideways = look.size, look.type, look.tones.ink, facts.sideways
    left, top, right, bottom = (round(edge) for edge in look.panel)
    thin, nick = max(1, round(size / 14)), round(0.25 * size)
    pen.rectangle((left, top, right, bottom), look.fill)
    for value, text in facts.ticks:
        at = round(facts.along(value))
        if look.grid:
            ends = (at, top, at, bottom) if sideways else (left, at, right, at)
            pen.line(ends, look.grid, thin, dashed=look.edges)
        if sideways:
            pen.line((at, bottom, at, bottom + nick), ink, thin)
            pen.write(text, kind, ink, at, bottom + 0.95 * size, 0.5)
        else:
            pen.line((left - nick, at, left, at), ink, thin)
            pen.write(text, kind, ink, left - 0.45 * size, at, 1.0)
    if look.boxed:
        pen.rectangle((left, top, right, bottom), None, ink, thin)
    else:
        pen.line((left, top, left, bottom), ink, thin)
        pen.line((left, bottom, right, bottom), ink, thin)
    for at, name in enumerate(facts.categories):
        middle = facts.across(at)
        if isinstance(pen, Plotter):  # as matplotlib's axes do
            pen.line(
                (left - nick, middle, left, middle) if sideways else (middle, bottom, middle, bottom + nick), ink, thin
            )
        if sideways:
            pen.write(name, kind, ink, left - 0.45 * size, middle, 1.0)
        else:
            pen.write(name, kind, ink, middle, bottom + 0.9 * size, 0.5)
    if facts.label and sideways:
        pen.write(facts.label, kind, ink, (left + right) / 2, bottom + 2.4 * size, 0.5)
    elif facts.label and look.turned:
        assert isinstance(pen, Plotter)
        pen.write(facts.label, kind, ink, look.margin + 0.6 * size, (top + bottom) / 2, 0.5, turned=True)
    elif facts.label:
        pen.write(facts.label, kind, ink, look.margin, top - 0.75 * size)


def _paint_bars(pen: Painter | Plotter, facts: ChartFacts, look: Look) -> None:
    count, several = len(facts.categories), len(facts.series)
    low, high = (facts.plot[1], facts.plot[3]) if facts.sideways else (facts.plot[0], facts.plot[2])
    breadth = (high - low) / count * look.thick / several
    foot = round(facts.along(0))
    for number, series in enumerate(facts.series):
        for at, (value, rgb) in enumerate(zip(series.values, series.rgb, strict=True)):
            middle = facts.across(at) + (number - (several - 1) / 2) * breadth
            begin, end = round(middle - breadth / 2), round(middle + breadth / 2) - 1
            tip = round(facts.along(value))
            bar = (foot, begin, tip, end) if facts.sideways else (begin, tip, end, foot)
            pen.rectangle(bar, rgb, look.tones.ink if look.edges else rgb)
            if facts.printed:
                x, y = (tip + 0.3 * look.size, middle) if facts.sideways else (middle, tip - 0.7 * look.size)
                pen.write(facts.write(value), look.type, look.tones.ink, x, y, 0.0 if facts.sideways else 0.5)


def _paint_lines(pen: Painter | Plotter, facts: ChartFacts, look: Look) -> None:
    for series in facts.series:
        points = [(facts.across(at), facts.along(value)) for at, value in enumerate(series.values)]
        pen.curve(points, series.rgb[0], look)
        for at, (x, y) in enumerate(points) if facts.printed else ():
            away = look.clear if look.above(series.values, at) else -look.clear
            pen.write(facts.write(series.values[at]), look.type, look.tones.ink, x, y - away, 0.5)


def _paint_pie(pen: Painter | Plotter, facts: ChartFacts, look: Look) -> None:
    series = facts.series[0]
    pen.pie(facts.plot, _angles(facts, look).tolist(), series.rgb, look)
    places = _around(facts, look, _radius(facts) * look.reach) if facts.printed else ()
    for (x, y), value, rgb in zip(places, series.values, series.rgb, strict=False):
        pen.write(facts.write(value), look.type, readable(rgb), x, y, 0.5)
    for name, x, y, align in _names_beside(facts, look) if look.outside else ():
        pen.write(name, look.type, look.tones.ink, x, y, align)


def _radius(facts: ChartFacts) -> float:
    return (facts.plot[2] - facts.plot[0]) / 2


def _angles(facts: ChartFacts, look: Look) -> np.ndarray:
    """[slices + 1] edges of slices in degrees clockwise from the right."""
    values = facts.series[0].values
    return look.start + 360 * np.concatenate(((0.0,), np.cumsum(values))) / sum(values)


def _around(facts: ChartFacts, look: Look, reach: float) -> list[tuple[float, float]]:
    """x and y of each slice's middle, `reach` px from the centre."""
    (left, top, right, bottom), edges = facts.plot, np.radians(_angles(facts, look))
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [((left + right) / 2 + reach * np.cos(a), (top + bottom) / 2 + reach * np.sin(a)) for a in middles]


def _names_beside(facts: ChartFacts, look: Look) -> list[tuple[str, float, float, float]]:
    """(name, x, y, alignment) of each slice's name beside it."""
    places = _around(facts, look, _radius(facts) + 0.65 * look.size)
    middle = (facts.plot[0] + facts.plot[2]) / 2
    return [(name, x, y, float(x < middle)) for name, (x, y) in zip(facts.categories, places, strict=True)]


def names_clash(facts: ChartFacts, look: Look) -> bool:
    """Whether the names beside two slices come too close to each other."""
    spans = []
    for name, x, y, align in _names_beside(facts, look):
        wide = look.type.width(name)
        spans.append((x - align * wide, x + (1 - align) * wide, y))
    return any(
        abs(a[2] - b[2]) < 1.15 * look.size and a[0] < b[1] + 0.5 * look.size and b[0] < a[1] + 0.5 * look.size
        for i, a in enumerate(spans)
        for b in spans[:i]
    )
