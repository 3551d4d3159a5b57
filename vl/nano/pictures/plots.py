"""The two ways in which a chart is drawn: by Pillow, and by matplotlib's Agg backend through its object API."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import RGB, Box
from vl.nano.pictures.chart_facts import ChartFacts, Look
from vl.nano.pictures.fonts import Face
from vl.nano.pictures.tables import Pen, character_boxes, readable

Boxes = tuple[tuple[str, Box], ...]


def paint_chart(facts: ChartFacts, look: Look) -> tuple[Image.Image, Boxes]:
    """Draws a chart by Pillow; returns it with the boxes of its characters."""
    image = Image.new("RGB", (facts.width, facts.height), look.tones.paper)
    pen = Pen(image, look.face)
    middle = facts.width / 2 if look.centred else look.margin
    line = look.margin + 0.6 * look.title_size
    pen.write(facts.title, look.title_size, middle, line, look.tones.ink, 0.5 if look.centred else 0.0)
    if look.legend:
        _paint_legend(pen, facts, look)
    if facts.kind == "pie chart":
        _paint_pie(image, pen, facts, look)
        return image, tuple(pen.boxes)
    _paint_axes(pen, facts, look)
    if facts.kind == "line chart":
        _paint_lines(image, pen, facts, look)
    else:
        _paint_bars(pen, facts, look)
    return image, tuple(pen.boxes)


def _paint_legend(pen: Pen, facts: ChartFacts, look: Look) -> None:
    left, top, right, bottom = look.legend_box
    size, ink = look.size, look.tones.ink
    if look.boxed:
        pen.draw.rectangle((left, top, right, bottom), outline=look.tones.rule)
    x, y, half = left + 0.6 * size, top + 0.75 * size, 0.42 * size
    for name, rgb in facts.legend:
        pen.draw.rectangle((round(x), round(y - half), round(x + 2 * half), round(y + half)), fill=rgb)
        pen.write(name, size, x + 1.3 * size, y, ink)
        if look.legend == "right":
            y += 1.5 * size
        else:
            x += look.wide([name]) + 2.6 * size


def _paint_axes(pen: Pen, facts: ChartFacts, look: Look) -> None:
    """The panel with its grid, axes and ticks, and what is printed along them."""
    size, tones, sideways = look.size, look.tones, facts.sideways
    left, top, right, bottom = (round(edge) for edge in look.panel)
    thin, nick = max(1, round(size / 14)), round(0.25 * size)
    pen.draw.rectangle((left, top, right, bottom), fill=look.fill)
    for value, text in facts.ticks:
        at = round(facts.along(value))
        if look.grid:
            pen.draw.line((at, top, at, bottom) if sideways else (left, at, right, at), fill=look.grid, width=thin)
        if sideways:
            pen.draw.line((at, bottom, at, bottom + nick), fill=tones.ink, width=thin)
            pen.write(text, size, at, bottom + 0.95 * size, tones.ink, 0.5)
        else:
            pen.draw.line((left - nick, at, left, at), fill=tones.ink, width=thin)
            pen.write(text, size, left - 0.45 * size, at, tones.ink, 1.0)
    if look.boxed:
        pen.draw.rectangle((left, top, right, bottom), outline=tones.ink, width=thin)
    else:
        pen.draw.line((left, top, left, bottom), fill=tones.ink, width=thin)
        pen.draw.line((left, bottom, right, bottom), fill=tones.ink, width=thin)
    for at, name in enumerate(facts.categories):
        if sideways:
            pen.write(name, size, left - 0.45 * size, facts.across(at), tones.ink, 1.0)
        else:
            pen.write(name, size, facts.across(at), bottom + 0.9 * size, tones.ink, 0.5)
    if facts.label and sideways:
        pen.write(facts.label, size, (left + right) / 2, bottom + 2.4 * size, tones.ink, 0.5)
    elif facts.label:
        pen.write(facts.label, size, look.margin, top - 0.75 * size, tones.ink)


def _paint_bars(pen: Pen, facts: ChartFacts, look: Look) -> None:
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
            pen.draw.rectangle(bar, fill=rgb, outline=look.tones.ink if look.edges else rgb)
            if facts.printed and facts.sideways:
                pen.write(facts.write(value), look.size, tip + 0.3 * look.size, middle, look.tones.ink)
            elif facts.printed:
                pen.write(facts.write(value), look.size, middle, tip - 0.7 * look.size, look.tones.ink, 0.5)


def _paint_lines(image: Image.Image, pen: Pen, facts: ChartFacts, look: Look) -> None:
    left, top, right, bottom = (round(edge) for edge in look.panel)
    scale = 3 if right - left < 500 else 2 if right - left < 800 else 1
    radius = scale * look.dot / 2
    for series in facts.series:
        points = [(facts.across(at), facts.along(value)) for at, value in enumerate(series.values)]
        mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
        draw = ImageDraw.Draw(mask)
        path = [((x - left) * scale, (y - top) * scale) for x, y in points]
        draw.line(path, fill=255, width=look.line * scale, joint="curve")
        for x, y in path if look.marker else ():
            spot = (x - radius, y - radius, x + radius, y + radius)
            (draw.ellipse if look.marker == "o" else draw.rectangle)(spot, fill=255)
        image.paste(series.rgb[0], (left, top), mask.reduce(scale))
        for at, (x, y) in enumerate(points) if facts.printed else ():
            away = look.clear if look.above(series.values, at) else -look.clear
            pen.write(facts.write(series.values[at]), look.size, x, y - away, look.tones.ink, 0.5)


def _paint_pie(image: Image.Image, pen: Pen, facts: ChartFacts, look: Look) -> None:
    left, top, right, _ = (round(edge) for edge in facts.plot)
    side, series = right - left, facts.series[0]
    scale = 3 if side < 400 else 2 if side < 800 else 1
    disc = Image.new("RGB", (side * scale, side * scale), look.tones.paper)
    mask = Image.new("L", disc.size)
    draw, edges = ImageDraw.Draw(disc), _angles(facts, look)
    whole = (0, 0, side * scale - 1, side * scale - 1)
    for rgb, begin, end in zip(series.rgb, edges, edges[1:], strict=False):
        draw.pieslice(
            whole, begin, end, fill=rgb, outline=look.tones.paper if look.edges else None, width=look.line * scale // 2
        )
    ImageDraw.Draw(mask).ellipse(whole, fill=255)
    inner = side * scale * (1 - look.hole) / 2
    if look.hole:
        ImageDraw.Draw(mask).ellipse((inner, inner, side * scale - inner, side * scale - inner), fill=0)
    image.paste(disc.reduce(scale), (left, top), mask.reduce(scale))
    for text, x, y, ink in _slice_values(facts, look):
        pen.write(text, look.size, x, y, ink, 0.5)
    for name, x, y, align in _names_beside(facts, look) if look.outside else ():
        pen.write(name, look.size, x, y, look.tones.ink, align)


def _angles(facts: ChartFacts, look: Look) -> np.ndarray:
    """[slices + 1] edges of slices in degrees clockwise from the right."""
    values = facts.series[0].values
    return look.start + 360 * np.concatenate(((0.0,), np.cumsum(values))) / sum(values)


def _names_beside(facts: ChartFacts, look: Look) -> list[tuple[str, float, float, float]]:
    """(name, x, y, alignment) of each slice's name beside it."""
    left, top, right, bottom = facts.plot
    x, y, reach = (left + right) / 2, (top + bottom) / 2, (right - left) / 2 + 0.65 * look.size
    edges = np.radians(_angles(facts, look))
    return [
        (name, x + reach * float(np.cos(a)), y + reach * float(np.sin(a)), float(np.cos(a) < 0))
        for name, a in zip(facts.categories, (edges[1:] + edges[:-1]) / 2, strict=True)
    ]


def names_clash(facts: ChartFacts, look: Look) -> bool:
    """Whether the names beside two slices come too close to each other."""
    spans = []
    for name, x, y, align in _names_beside(facts, look):
        wide = look.wide([name])
        spans.append((x - align * wide, x + (1 - align) * wide, y))
    return any(
        abs(a[2] - b[2]) < 1.15 * look.size and a[0] < b[1] + 0.5 * look.size and b[0] < a[1] + 0.5 * look.size
        for i, a in enumerate(spans)
        for b in spans[:i]
    )


def _slice_values(facts: ChartFacts, look: Look) -> list[tuple[str, float, float, RGB]]:
    """(text, x, y, ink) of what is printed on the slices."""
    if not facts.printed:
        return []
    series, (left, top, right, bottom) = facts.series[0], facts.plot
    edges = np.radians(_angles(facts, look))
    reach = look.reach * (right - left) / 2
    middles = (edges[1:] + edges[:-1]) / 2
    return [
        (
            facts.write(value),
            (left + right) / 2 + reach * float(np.cos(a)),
            (top + bottom) / 2 + reach * float(np.sin(a)),
            readable(rgb),
        )
        for value, rgb, a in zip(series.values, series.rgb, middles, strict=True)
    ]


def plot_chart(facts: ChartFacts, look: Look) -> tuple[Image.Image, Boxes]:
    """Draws a chart by matplotlib; returns it with the boxes of its characters."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_defaults()):
        # At 72 dots per inch points are pixels. The hundredth keeps rounding from losing the last pixel.
        size = ((facts.width + 0.01) / 72, (facts.height + 0.01) / 72)
        figure = Figure(figsize=size, dpi=72, facecolor=_unit(look.tones.paper))
        canvas = FigureCanvasAgg(figure)
        left, top, right, bottom = look.panel
        w, h = facts.width, facts.height
        axes = figure.add_axes(
            (left / w, 1 - bottom / h, (right - left) / w, (bottom - top) / h), facecolor=_unit(look.fill)
        )
        font = {"fontproperties": _font(look.face, look.size), "color": _unit(look.tones.ink)}
        if facts.kind == "pie chart":
            _plot_pie(axes, facts, look, font)
        else:
            _plot_axes(axes, facts, look, font)
            (_plot_lines if facts.kind == "line chart" else _plot_bars)(axes, facts, look, font)
        _plot_title_and_legend(figure, facts, look, font)
        canvas.draw()
        boxes = _text_boxes(figure, canvas.get_renderer(), facts.height, look.face)
        image = Image.frombuffer("RGBA", (w, h), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
        canvas.renderer = None  # figure and canvas hold each other: until they are collected, the pixels would stay
    return image, boxes


def _defaults() -> Any:
    """matplotlib's own settings of what shapes a chart, where the user's differ."""
    import matplotlib as mpl

    parts = ("axes", "text", "font", "lines", "patch", "xtick", "ytick", "grid", "legend", "figure", "path", "agg")
    default = ((key, value) for key, value in mpl.rcParamsDefault.items() if key.split(".")[0] in parts)
    return {key: value for key, value in default if mpl.rcParams[key] != value}


@lru_cache(maxsize=1024)
def _font(face: Face, size: int) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=face.path, size=size)


def _unit(colour: RGB) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _plot_title_and_legend(figure: Any, facts: ChartFacts, look: Look, font: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    w, h = facts.width, facts.height
    if facts.title:
        at = (0.5, "center") if look.centred else (look.margin / w, "left")
        bold = {**font, "fontproperties": _font(look.face, look.title_size)}
        y = 1 - (look.margin + 0.6 * look.title_size) / h
        figure.text(at[0], y, facts.title, ha=at[1], va="center_baseline", **bold)
    if not look.legend:
        return
    left, top, right, bottom = look.legend_box
    line: dict[str, Any] = {"linewidth": look.line, "marker": look.marker or None, "markersize": look.dot}
    handles = [
        Line2D([], [], color=_unit(rgb), **line) if facts.kind == "line chart" else Patch(facecolor=_unit(rgb))
        for _, rgb in facts.legend
    ]
    figure.legend(
        handles,
        [name for name, _ in facts.legend],
        loc="center",
        bbox_to_anchor=((left + right) / 2 / w, 1 - (top + bottom) / 2 / h),
        ncols=1 if look.legend == "right" else len(handles),
        prop=font["fontproperties"],
        labelcolor=font["color"],
        frameon=look.boxed,
        facecolor=_unit(look.tones.paper),
        edgecolor=_unit(look.tones.rule),
        handlelength=1.2,
        handleheight=0.8,
        handletextpad=0.4,
        columnspacing=0.9,
        borderpad=0.15,
        borderaxespad=0,
        labelspacing=0.3,
    )


def _plot_axes(axes: Any, facts: ChartFacts, look: Look, font: dict[str, Any]) -> None:
    ink, count = _unit(look.tones.ink), len(facts.categories)
    value_axis, name_axis = (axes.xaxis, axes.yaxis) if facts.sideways else (axes.yaxis, axes.xaxis)
    values, texts = zip(*facts.ticks, strict=True)
    value_axis.set_ticks(values, texts, **font)
    name_axis.set_ticks(range(count), facts.categories, **font)
    left, top, right, bottom = look.panel
    room = (
        (right - left) / (facts.plot[2] - facts.plot[0])
        if facts.sideways
        else (bottom - top) / (facts.plot[3] - facts.plot[1])
    )
    ends, slots = (0, facts.top * room), (-0.5, count - 0.5)
    axes.set(xlim=ends if facts.sideways else slots, ylim=slots[::-1] if facts.sideways else ends)
    thin = max(0.8, look.size / 14)
    axes.tick_params(length=0.25 * look.size, width=thin, pad=0.2 * look.size, color=ink)
    for spine in axes.spines.values():
        spine.set(color=ink, linewidth=thin)
    if not look.boxed:
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if look.grid:
        value_axis.grid(color=_unit(look.grid), linewidth=thin, linestyle="--" if look.edges else "-")
    if facts.label and look.turned:
        x = look.margin + 0.6 * look.size
        y = (top + bottom) / 2
        axes.figure.text(
            x / facts.width, 1 - y / facts.height, facts.label, rotation=90, ha="center", va="center", **font
        )
    elif facts.label and facts.sideways:
        axes.set_xlabel(facts.label, labelpad=0.2 * look.size, **font)
    elif facts.label:
        y = top - 0.75 * look.size
        axes.figure.text(look.margin / facts.width, 1 - y / facts.height, facts.label, va="center_baseline", **font)


def _plot_bars(axes: Any, facts: ChartFacts, look: Look, font: dict[str, Any]) -> None:
    several = len(facts.series)
    breadth = look.thick / several
    for number, series in enumerate(facts.series):
        at = np.arange(len(facts.categories)) + (number - (several - 1) / 2) * breadth
        edge = {"edgecolor": _unit(look.tones.ink), "linewidth": max(1, look.size / 14)} if look.edges else {}
        colours = [_unit(rgb) for rgb in series.rgb]
        bars = (axes.barh if facts.sideways else axes.bar)(at, series.values, breadth, color=colours, **edge)
        if facts.printed:
            axes.bar_label(bars, [facts.write(v) for v in series.values], padding=0.2 * look.size, **font)


def _plot_lines(axes: Any, facts: ChartFacts, look: Look, font: dict[str, Any]) -> None:
    scale = facts.top / (facts.plot[3] - facts.plot[1])
    for series in facts.series:
        marker = {"marker": look.marker, "markersize": look.dot} if look.marker else {}
        axes.plot(series.values, color=_unit(series.rgb[0]), linewidth=look.line, clip_on=False, **marker)
        for at, value in enumerate(series.values) if facts.printed else ():
            away = look.clear if look.above(series.values, at) else -look.clear
            axes.text(at, value + away * scale, facts.write(value), ha="center", va="center_baseline", **font)


def _plot_pie(axes: Any, facts: ChartFacts, look: Look, font: dict[str, Any]) -> None:
    series = facts.series[0]
    wedge: dict[str, Any] = {"width": 1 - look.hole}
    if look.edges:
        wedge |= {"edgecolor": _unit(look.tones.paper), "linewidth": look.line / 2}
    radius = (facts.plot[2] - facts.plot[0]) / 2
    axes.pie(
        series.values,
        colors=[_unit(rgb) for rgb in series.rgb],
        startangle=-look.start,
        counterclock=False,
        labels=facts.categories if look.outside else None,
        labeldistance=1 + 0.65 * look.size / radius,
        wedgeprops=wedge,
        textprops=font,
    )
    axes.set(xlim=(-1, 1), ylim=(-1, 1))
    for text, x, y, ink in _slice_values(facts, look):
        at = (x / facts.width, 1 - y / facts.height)
        axes.figure.text(*at, text, ha="center", va="center_baseline", **{**font, "color": _unit(ink)})


def _text_boxes(figure: Any, renderer: Any, height: int, face: Face) -> Boxes:
    """The boxes of all visible text; text turned by 90 degrees reads upwards."""
    from matplotlib.text import Text

    boxes: list[tuple[str, Box]] = []
    depths: dict[int, float] = {}  # by size: how far the extents of text reach below its baseline
    for text in figure.findobj(Text):
        words, size = text.get_text(), round(text.get_fontsize())
        if not (text.get_visible() and words):
            continue
        if size not in depths:
            probe = figure.text(0, 0, "lp", va="baseline", fontproperties=text.get_fontproperties())
            depths[size] = -float(probe.get_window_extent(renderer).y0)
        left, low, right, high = (float(edge) for edge in text.get_window_extent(renderer).extents)
        if text.get_rotation() == 90:
            line = character_boxes(words, face, size, low, high, right - depths[size])
            boxes += [(c, (y0, height - x1, y1, height - x0)) for c, (x0, y0, x1, y1) in line]
        else:
            boxes += character_boxes(words, face, size, left, right, height - low - depths[size])
    return tuple(boxes)
