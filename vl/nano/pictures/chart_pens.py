"""The two pens that charts are drawn with, Pillow's and matplotlib's, with the same methods. Lengths are in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import RGB, Box, Boxes, NamedBox
from vl.nano.pictures.chart_facts import Look
from vl.nano.pictures.pen import Pen, Type

Point = tuple[float, float]


class Painter(Pen):
    """Pillow's: edges of curves and slices are drawn enlarged and averaged down."""

    def __init__(self, width: int, height: int, paper: RGB) -> None:
        super().__init__(Image.new("RGB", (width, height), paper))

    def finish(self) -> tuple[Image.Image, Boxes]:
        """The picture, and where each character is."""
        return self.image, tuple(self.boxes)

    def rectangle(self, box: Box, fill: RGB | None, outline: RGB | None = None, width: int = 1) -> None:
        """A rectangle that includes its right and bottom edges."""
        self.draw.rectangle(box, fill, outline, width)

    def line(self, ends: Box, ink: RGB, width: int, *, dashed: bool = False) -> None:
        """A line from (x, y) to (x, y); only matplotlib's may be `dashed`."""
        self.draw.line(ends, fill=ink, width=width)

    def swatch(self, x: float, y: float, rgb: RGB, look: Look, *, line: bool) -> None:
        """What a legend shows of a colour at (left, middle): a square; by matplotlib, of a `line` a piece."""
        half = 0.42 * look.size
        self.rectangle((round(x), round(y - half), round(x + 2 * half), round(y + half)), rgb)

    def curve(self, points: Sequence[Point], rgb: RGB, look: Look) -> None:
        """A line through points, with markers if it has some."""
        left, top, right, bottom = (round(edge) for edge in look.panel)
        scale = 3 if right - left < 500 else 2 if right - left < 800 else 1
        radius = scale * look.dot / 2
        mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
        draw = ImageDraw.Draw(mask)
        path = [((x - left) * scale, (y - top) * scale) for x, y in points]
        draw.line(path, fill=255, width=look.line * scale, joint="curve")
        for x, y in path if look.marker else ():
            spot = (x - radius, y - radius, x + radius, y + radius)
            (draw.ellipse if look.marker == "o" else draw.rectangle)(spot, fill=255)
        self.image.paste(rgb, (left, top), mask.reduce(scale))

    def pie(self, box: Box, edges: Sequence[float], colours: Sequence[RGB], look: Look) -> None:
        """Slices between `edges`, in degrees clockwise from the right, of the circle in a box."""
        left, top, right, _ = (round(edge) for edge in box)
        scale = 3 if right - left < 400 else 2 if right - left < 800 else 1
        side = (right - left) * scale
        disc, mask = Image.new("RGB", (side, side), look.tones.paper), Image.new("L", (side, side))
        whole, outline = (0, 0, side - 1, side - 1), look.tones.paper if look.edges else None
        for rgb, begin, end in zip(colours, edges, edges[1:], strict=False):
            ImageDraw.Draw(disc).pieslice(whole, begin, end, rgb, outline, look.line * scale // 2)
        ImageDraw.Draw(mask).ellipse(whole, fill=255)
        inner = side * (1 - look.hole) / 2
        if look.hole:
            ImageDraw.Draw(mask).ellipse((inner, inner, side - inner, side - inner), fill=0)
        self.image.paste(disc.reduce(scale), (left, top), mask.reduce(scale))


class Plotter:
    """matplotlib's: its artists on a figure without axes, drawn by its Agg backend."""

    def __init__(self, width: int, height: int, paper: RGB) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        # At 72 dots per inch points are pixels. The hundredth keeps rounding from losing the last pixel.
        size = ((width + 0.01) / 72, (height + 0.01) / 72)
        self.figure = Figure(figsize=size, dpi=72, facecolor=_unit(paper))
        self.canvas = FigureCanvasAgg(self.figure)
        self.size = (width, height)
        self.upright = Affine2D().scale(1, -1).translate(0, height)  # from y that points down
        self.types: list[Type] = []  # of the texts

    def finish(self) -> tuple[Image.Image, Boxes]:
        self.canvas.draw()
        boxes = self._boxes()
        image = Image.frombuffer("RGBA", self.size, self.canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
        # Figure and canvas hold each other: until they are collected, the pixels would stay.
        self.canvas.renderer = None
        return image, boxes

    def write(
        self, text: str, kind: Type, ink: RGB, x: float, y: float, align: float = 0.0, *, turned: bool = False
    ) -> None:
        """Prints a line as `Pen` does, or `turned` so that it reads upwards, centred."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(fname=kind.face.path, size=kind.size)
        artist = self.figure.text(x, y, text, fontproperties=font, color=_unit(ink), rotation=90 * turned)
        artist.set(transform=self.upright, zorder=self._next(), va="center" if turned else "center_baseline")
        artist.set_horizontalalignment(("left", "center", "right")[round(2 * align)])
        self.types.append(kind)

    def rectangle(self, box: Box, fill: RGB | None, outline: RGB | None = None, width: int = 1) -> None:
        from matplotlib.patches import Rectangle

        left, top, right, bottom = box
        edge = outline if outline != fill else None
        grown = 0 if edge else 1  # the last pixels belong to it, as those under an edge do
        patch = Rectangle((left, top), right - left + grown, bottom - top + grown, linewidth=width)
        patch.set(facecolor=_unit(fill) if fill else "none", edgecolor=_unit(edge) if edge else "none")
        self._add(patch)

    def line(self, ends: Box, ink: RGB, width: int, *, dashed: bool = False) -> None:
        from matplotlib.lines import Line2D

        xs, ys = ends[::2], ends[1::2]
        self._add(Line2D(xs, ys, color=_unit(ink), linewidth=width, linestyle="--" if dashed else "-"))

    def swatch(self, x: float, y: float, rgb: RGB, look: Look, *, line: bool) -> None:
        half, right = 0.4 * look.size, x + look.size
        if line:
            self.line((x, y, right, y), rgb, look.line)
            self.curve([((x + right) / 2, y)], rgb, look)
        else:
            self.rectangle((x, y - half, right, y + half), rgb)

    def curve(self, points: Sequence[Point], rgb: RGB, look: Look) -> None:
        from matplotlib.lines import Line2D

        xs, ys = zip(*points, strict=True)
        line = Line2D(xs, ys, color=_unit(rgb), linewidth=look.line, marker=look.marker or None, markersize=look.dot)
        self._add(line)

    def pie(self, box: Box, edges: Sequence[float], colours: Sequence[RGB], look: Look) -> None:
        from matplotlib.patches import Wedge

        left, top, right, bottom = box
        centre, radius = ((left + right) / 2, (top + bottom) / 2), (right - left) / 2
        line = {"edgecolor": _unit(look.tones.paper), "linewidth": look.line / 2} if look.edges else {"linewidth": 0}
        for rgb, begin, end in zip(colours, edges, edges[1:], strict=False):
            self._add(Wedge(centre, radius, begin, end, width=radius * (1 - look.hole), facecolor=_unit(rgb), **line))

    def _add(self, artist: Any) -> None:
        artist.set(transform=self.upright, zorder=self._next())
        self.figure.add_artist(artist)

    def _next(self) -> int:
        """What is added later lies above."""
        return len(self.figure.get_children())

    def _boxes(self) -> Boxes:
        """Where each character but the spaces is, by the extents that matplotlib gives texts."""
        boxes: list[NamedBox] = []
        renderer, height = self.canvas.get_renderer(), self.size[1]
        depths: dict[Type, float] = {}  # how far the extents of text reach below its baseline
        for text, kind in zip(list(self.figure.texts), self.types, strict=True):
            words = text.get_text()
            if not words:
                continue
            if kind not in depths:
                probe = self.figure.text(0, 0, "lp", va="baseline", fontproperties=text.get_fontproperties())
                depths[kind] = -float(probe.get_window_extent(renderer).y0)
            depth = depths[kind]
            left, low, right, high = (float(edge) for edge in text.get_window_extent(renderer).extents)
            if text.get_rotation() == 90:
                line = kind.letters(words, low, right - depth, (high - low) / kind.width(words))
                boxes += [(c, (y0, height - x1, y1, height - x0)) for c, (x0, y0, x1, y1) in line]
            else:
                boxes += kind.letters(words, left, height - low - depth, (right - left) / kind.width(words))
        return tuple(boxes)


def usual_settings() -> Any:
    """A context of matplotlib's own settings of what shapes a chart, whatever the user's are."""
    import matplotlib as mpl

    parts = ("axes", "text", "font", "lines", "patch", "xtick", "ytick", "grid", "legend", "figure", "path", "agg")
    default = ((key, value) for key, value in mpl.rcParamsDefault.items() if key.split(".")[0] in parts)
    return mpl.rc_context({key: value for key, value in default if mpl.rcParams[key] != value})


def _unit(colour: RGB) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
