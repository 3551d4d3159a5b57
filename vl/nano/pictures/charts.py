"""Bar, line and pie charts: contents and layout, drawn by `plots` with Pillow or matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import COLOURS, Box, SizeRange, Tones, blend, contrast, draw_size, jitter, pick
from vl.nano.pictures.chart_facts import KINDS, ChartFacts, Look, Series
from vl.nano.pictures.english import phrases
from vl.nano.pictures.fonts import ALL, Face, Fonts, find_faces
from vl.nano.pictures.labels import MIN_SIZE, draw_names, draw_title, draw_words_apart
from vl.nano.pictures.pen import Type, smallest_size
from vl.nano.pictures.plots import names_clash, paint_chart

_SHARES = (0.3, 0.2, 0.25, 0.25)
SMALLEST = (160, 120)  # width and height in px; below them a chart is not legible
_ASPECT = 1.9
_MIN_CONTRAST = 210.0
_TENTHS = 0.6
_ATTEMPTS = 12
# Distances of ticks; an axis has 3 to 8 of them. Values that are not printed lie on or halfway between them or, of most
# charts with a single series, on tenths.
_STEPS = (0.2, 0.5, 1, 1, 2, 2, 4, 5, 10, 10, 10, 20, 20, 50, 100, 100, 200, 500, 1000, 2000, 5000)


def draw_chart(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    fonts: Fonts = ALL,
    by_matplotlib: float = 0.15,
) -> tuple[Image.Image, ChartFacts]:
    """Draws a chart, the share `by_matplotlib` of them by matplotlib.

    Contents and type are drawn anew, fewer and smaller, until they fit the canvas. The smallest legible chart takes
    about 160 x 120 px, more with long names: canvases below that grow.
    """
    faces = find_faces(fonts)
    plotted = bool(rng.random() < by_matplotlib)
    kind = str(rng.choice(KINDS, p=_SHARES))
    width, height = draw_size(sizes, _ASPECT, rng)
    width, height = max(width, SMALLEST[0]), max(height, SMALLEST[1])
    while True:
        for attempt in range(_ATTEMPTS):
            ease = 1 - attempt / (_ATTEMPTS - 1)
            facts = _draw_contents(rng, kind, width, height, ease, fonts.part)
            look = _draw_look(rng, facts, pick(rng, faces), ease, plotted=plotted)
            # Most layouts have no room whatever their texts, which take longer to measure than all else.
            if not _lay_out(facts, look.thin):
                continue
            if (placed := _lay_out(facts, look)) and (filled := _fill(rng, *placed)):
                image, boxes = paint_chart(*filled, plotted=plotted)
                return image, replace(filled[0], boxes=boxes)
        side = round(1.15 * min(width, height))
        width, height = max(width, side), max(height, side)


def _draw_contents(rng: Generator, kind: str, width: int, height: int, ease: float, part: str) -> ChartFacts:
    """Everything but the values; `ease` from 1 to 0 makes for fewer things."""
    pie = kind == "pie chart"
    count = int(rng.integers(3, 4 + round((3 if pie else 5) * ease**0.5)))
    ordered = 0.1 if pie else 0.6 if kind == "line chart" else 0.4
    # Short names where many stand side by side: a letter is about 0.6 em wide.
    size = smallest_size(MIN_SIZE, width, height)
    letters = (0.85 * width / count - size) / (0.6 * size)
    longest = round(letters) if kind in ("bar chart", "line chart") else 9
    names, categories = draw_names(rng, count, ordered=ordered, longest=min(9, longest), part=part)
    several = 1 if pie or rng.random() < 0.6 else int(rng.integers(2, 4 if kind == "line chart" else 3))
    printed = bool(rng.random() < (0.75 if pie else 0.5)) and (kind != "line chart" or several == 1)
    unit = str(rng.choice(phrases()["units"])) if not pie or rng.random() < 0.4 else "%"
    step = float(rng.choice((5, 10, 20)) if unit == "%" else rng.choice(_STEPS))
    top = step * int(rng.integers(3, 9))
    if unit == "%":
        top = min(top, 100.0)
    if pie:
        top = 100.0 if unit == "%" else float(rng.choice((50, 100, 120, 200, 400, 500, 1000, 2000)))
    measured = draw_words_apart(rng, 1, part=part)[0].capitalize()
    label = f"{measured} ({unit})" if len(unit) > 1 else measured if rng.random() < 0.3 else ""
    words = [word.capitalize() for word in draw_words_apart(rng, count + several, part=part)]
    called = [word for word in words if word not in categories][:several] if several > 1 else [""]
    return ChartFacts(
        width=width,
        height=height,
        kind=kind,
        title=draw_title(rng, names, part) if rng.random() < 0.8 else "",
        label="" if pie else label,
        names=names,
        categories=categories,
        series=tuple(Series(name, (), (), ()) for name in called),
        unit="" if pie and len(unit) > 1 else unit,
        decimals=0 if pie or step >= 5 else 1 if step < 1 or rng.random() < 0.4 else 0,
        grouped=bool(rng.random() < 0.6),
        printed=printed,
        top=top,
        step=step,
        plot=(0, 0, 0, 0),
        boxes=(),
    )


def _draw_look(rng: Generator, facts: ChartFacts, face: Face, ease: float, *, plotted: bool) -> Look:
    smallest = smallest_size(MIN_SIZE, facts.width, facts.height)
    largest = max(smallest, round(0.075 * min(facts.width, facts.height)))
    size = round(smallest * (largest / smallest) ** (rng.uniform(0, 1) * ease**2))
    tones = Tones.draw(rng)
    pie = facts.kind == "pie chart"
    outside = pie and bool(rng.random() < 0.5)
    gridded = 0.5 if facts.printed else 0.85
    needs_legend = len(facts.series) > 1 or (pie and not outside)
    return Look(
        type=Type(face, size),
        title_type=Type(face, round(size * rng.uniform(1.0, 1.0 + 0.5 * ease))),
        tones=tones,
        fill=tones.paper if pie or rng.random() < 0.5 else tones.shade,
        grid=blend(tones.paper, tones.ink, rng.uniform(0.15, 0.4)) if rng.random() < gridded else None,
        boxed=bool(rng.random() < 0.4),
        centred=bool(rng.random() < 0.7),
        legend=str(rng.choice(("right", "top", "bottom"))) if needs_legend else "",
        turned=plotted and not facts.sideways and bool(rng.random() < 0.7),
        thick=float(rng.uniform(0.5, 0.9)),
        line=max(2, round(size * float(rng.uniform(0.12, 0.3)))),
        marker=str(rng.choice(("", "o", "o", "s"))),
        edges=bool(rng.random() < 0.2),
        start=float(rng.uniform(0, 360)),
        hole=float(rng.uniform(0.35, 0.55)) if rng.random() < 0.25 else 0.0,
        outside=outside,
    )


def _lay_out(facts: ChartFacts, look: Look) -> tuple[ChartFacts, Look] | None:
    """Places title, legend and plot; None where something does not fit."""
    size, margin = look.size, look.margin
    left, right, top, bottom = margin, facts.width - margin, margin, facts.height - margin
    if facts.title:
        if look.title_type.width(facts.title) > right - left:
            return None
        top += 1.5 * look.title_type.size
    if look.legend:
        named = facts.categories if facts.kind == "pie chart" else [series.name for series in facts.series]
        widths = [look.type.width(name) + 2.6 * size for name in named]
        upright = look.legend == "right"
        wide, high = (max(widths), 1.5 * size * len(named)) if upright else (sum(widths), 1.5 * size)
        if wide > (right - left) * (0.45 if upright else 1) or high > bottom - top:
            return None
        x = right - wide if upright else (left + right - wide) / 2
        y = (top + bottom - high) / 2 if upright else top if look.legend == "top" else bottom - high
        look = replace(look, legend_box=(x, y, x + wide, y + high))
        right -= wide if upright else 0
        top += 2 * size if look.legend == "top" else 0
        bottom -= 2 * size if look.legend == "bottom" else 0
    inside = (left, top, right, bottom)
    return (_place_circle if facts.kind == "pie chart" else _place_axes)(facts, look, inside)


def _place_axes(facts: ChartFacts, look: Look, inside: Box) -> tuple[ChartFacts, Look] | None:
    size, (left, top, right, bottom) = look.size, inside
    ticks = [text for _, text in facts.ticks]
    name, tick = look.type.widest(facts.categories), look.type.widest(ticks)
    value = look.type.width(facts.write(facts.top)) if facts.printed else 0.0
    count, several = len(facts.categories), len(facts.series)
    sideways = facts.sideways
    left += (name if sideways else tick) + 0.7 * size
    bottom -= 1.6 * size
    if facts.label:
        left += 1.5 * size if look.turned else 0
        top += 0 if look.turned or sideways else 1.5 * size
        bottom -= 1.5 * size if sideways else 0
    if sideways:
        panel = (left, top, right, bottom)
        right -= max(value + 0.6 * size, tick / 2) + 0.2 * size
        along, slot = right - left, (bottom - top) / count
        fits = slot * look.thick / several >= (1.15 * size if facts.printed or several > 1 else 0.7 * size)
        fits = fits and slot >= 1.2 * size and along > max((len(ticks) - 1) * 1.3 * tick, 0.3 * facts.width)
    else:
        panel = (left, top, right, bottom)
        top += (1.8 if facts.printed else 0.6) * size
        along, slot = bottom - top, (right - left) / count
        apart = slot * look.thick / several if several > 1 and facts.kind == "bar chart" else slot
        fits = slot >= name + 0.5 * size and apart >= max(1.15 * value, 0.5 * size) and top < bottom
        fits = fits and along > max((len(ticks) - 1) * 1.35 * size, 0.3 * facts.height)
    room = panel[2] - panel[0] if sideways else along if look.turned else facts.width - 2 * look.margin
    if not fits or (facts.label and look.type.width(facts.label) > room):
        return None
    return replace(facts, plot=(left, top, right, bottom)), replace(look, panel=panel)


def _place_circle(facts: ChartFacts, look: Look, inside: Box) -> tuple[ChartFacts, Look] | None:
    size, (left, top, right, bottom) = look.size, inside
    beside = (look.type.widest(facts.categories) + 0.8 * size, 1.3 * size) if look.outside else (0.0, 0.0)
    radius = min((right - left) / 2 - beside[0], (bottom - top) / 2 - beside[1])
    if radius < 2.7 * size or radius < 0.18 * min(facts.width, facts.height):
        return None
    x, y = (left + right) / 2, (top + bottom) / 2
    value = look.type.width(facts.write(facts.top * 0.88))
    hole = look.hole if (1 - look.hole) * radius > 1.2 * value else 0.0
    reach = (1 + hole) / 2 if hole else min(0.68, 0.93 - value / 2 / radius)
    look = replace(look, hole=hole, reach=max(0.4, reach))
    box = (x - radius, y - radius, x + radius, y + radius)
    return replace(facts, plot=box), replace(look, panel=box)


def _fill(rng: Generator, facts: ChartFacts, look: Look) -> tuple[ChartFacts, Look] | None:
    """Draws values and colours; None where a pie's slices are too narrow for what is printed on them."""
    count, pie = len(facts.categories), facts.kind == "pie chart"
    table = _draw_shares(rng, facts, look)[None] if pie else _draw_values(rng, facts)
    if not table.any():
        return None
    motley = pie or (len(facts.series) == 1 and facts.kind != "line chart" and bool(rng.random() < 0.5))
    drawn = ((str(name), jitter(str(name), rng)) for name in rng.permutation(list(COLOURS)))
    palette = [pair for pair in drawn if contrast(pair[1], look.fill) > _MIN_CONTRAST]
    series = []
    for i, values in enumerate(table.tolist()):
        pairs = [palette[j] if motley else palette[i] for j in range(count)] if count <= len(palette) else []
        if not pairs:
            return None
        colours, rgb = zip(*pairs, strict=True)
        series.append(replace(facts.series[i], values=tuple(values), colours=colours, rgb=rgb))
    facts = replace(facts, series=tuple(series))
    for _ in range(8 if look.outside else 1):
        if not (look.outside and names_clash(facts, look)):
            return facts, look
        look = replace(look, start=float(rng.uniform(0, 360)))
    return None


def _draw_values(rng: Generator, facts: ChartFacts) -> np.ndarray:
    """[series, categories]; the axis is made use of, and points of two lines never coincide."""
    shape = (len(facts.series), len(facts.categories))
    if facts.printed:
        low = 0.3 if facts.kind == "line chart" else 0.08
        values = rng.uniform(low, 1.0, size=shape) * facts.top
        values[0, int(rng.integers(shape[1]))] = rng.uniform(0.85, 1.0) * facts.top
        return np.maximum(values.round(facts.decimals), 10.0**-facts.decimals)
    parts = 10 if shape[0] == 1 and rng.random() < _TENTHS else 2
    levels = parts * round(facts.top / facts.step)
    steps = np.stack([rng.permutation(levels)[: shape[0]] + 1 for _ in range(shape[1])], axis=1)
    highest = levels - parts // 2
    if steps.max() < highest:
        steps.flat[int(steps.argmax())] = int(rng.integers(highest, levels + 1))
    return (steps * facts.step / parts).round(3)


def _draw_shares(rng: Generator, facts: ChartFacts, look: Look) -> np.ndarray:
    """[categories] whole numbers that add up to `top`; zeros where slices could not hold what is printed."""
    radius = (facts.plot[2] - facts.plot[0]) / 2
    value = look.type.width(facts.write(facts.top * 0.88)) if facts.printed else look.size
    least = max(0.05, 1.2 * value / (2 * np.pi * look.reach * radius))
    count = len(facts.categories)
    if count * least > 0.9:
        return np.zeros(count)
    shares = least + (1 - count * least) * rng.dirichlet(np.full(count, 1.2))
    values = np.floor(shares * facts.top)
    values[int(values.argmax())] += facts.top - values.sum()
    return values
