"""What a chart shows, and the form that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vl.nano.pictures.canvas import RGB, Box, Boxes, Tones
from vl.nano.pictures.labels import write_number
from vl.nano.pictures.pen import ThinType, Type

KINDS = ("bar chart", "horizontal bar chart", "line chart", "pie chart")


@dataclass(frozen=True)
class Series:
    """One row of data: a value for each category, with the name and the RGB value of the colour of each.

    Only bars of a single series and slices have colours that differ.
    """

    name: str
    values: tuple[float, ...]
    colours: tuple[str, ...]
    rgb: tuple[RGB, ...]


@dataclass(frozen=True)
class ChartFacts:
    """Ground truth of a chart.

    `kind` is one of KINDS; `title`, `label` (of the value axis) and the name of a single series may be "". `names` is
    what the categories are ("month", ..., "" for words). `unit` is "%", "$", a word that `label` shows, or "".
    `printed`: values are printed beside their marks, with `decimals`. Axes run from 0 to `top` in steps of `step`
    along `plot`, the rectangle in pixels between these two ends (of pies: around the whole circle, with `top` the sum
    of values). `boxes`: every character but the spaces, with the room that it takes in its line.
    """

    width: int
    height: int
    kind: str
    title: str
    label: str
    names: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    unit: str
    decimals: int
    grouped: bool
    printed: bool
    top: float
    step: float
    plot: Box
    boxes: Boxes

    def write(self, value: float) -> str:
        """A value as the chart prints it, or with as few digits as it takes where it does not."""
        fewest = next(d for d in range(4) if abs(round(value, d) - value) < 1e-6)
        decimals = self.decimals if self.printed else fewest
        return write_number(value, decimals, self.unit, grouped=self.grouped)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Values and labels of the ticks, all with the same number of decimals."""
        decimals = 1 if self.step < 1 else 0
        values = (self.step * i for i in range(round(self.top / self.step) + 1))
        return tuple((v, write_number(v, decimals, self.unit, grouped=self.grouped)) for v in values)

    @property
    def legend(self) -> tuple[tuple[str, RGB], ...]:
        """What a legend names: the series, or the slices of a pie, each with its colour."""
        if self.kind == "pie chart":
            return tuple(zip(self.categories, self.series[0].rgb, strict=True))
        return tuple((series.name, series.rgb[0]) for series in self.series)

    @property
    def mark(self) -> str:
        """What shows a value, in a word; of line charts, what shows a series."""
        return {"pie chart": "slice", "line chart": "line"}.get(self.kind, "bar")

    @property
    def motley(self) -> bool:
        """Whether each bar or slice has its own colour."""
        return len(set(self.series[0].colours)) == len(self.categories)

    @property
    def exact(self) -> bool:
        """Whether values can be read exactly: printed, or off an axis."""
        return self.printed or self.kind != "pie chart"

    @property
    def sideways(self) -> bool:
        """Whether the value axis is the horizontal one."""
        return self.kind == "horizontal bar chart"

    def along(self, value: float) -> float:
        """Where a value lies on its axis: x or y in pixels."""
        left, top, right, bottom = self.plot
        share = value / self.top
        return left + share * (right - left) if self.sideways else bottom - share * (bottom - top)

    def across(self, category: int) -> float:
        """The middle of a category's room on the other axis: y or x in pixels."""
        low, high = (self.plot[1], self.plot[3]) if self.sideways else (self.plot[0], self.plot[2])
        return low + (category + 0.5) * (high - low) / len(self.categories)


@dataclass(frozen=True)
class Look:
    """The form of a chart, lengths in pixels.

    `grid`: its colour. `boxed`: frames have four sides. `centred`: the title is. `legend`: "", "right", "top" or
    "bottom". `turned`: the value axis' label runs upwards. `thick`: bars' share of their room. `line`: width of lines.
    `marker`: "", "o" or "s". `edges`: bars and slices have some. `start`: a pie's first edge in degrees clockwise from
    the right. `hole`: the share of its radius left out. `reach`: the radius at which its values are printed, as a
    share. `outside`: slices are named beside them. `panel`: `plot` and the room above values.
    """

    type: Type
    title_type: Type
    tones: Tones
    fill: RGB
    grid: RGB | None
    boxed: bool
    centred: bool
    legend: str
    turned: bool
    thick: float
    line: int
    marker: str
    edges: bool
    start: float = 0.0
    hole: float = 0.0
    reach: float = 0.0
    outside: bool = False
    panel: Box = (0, 0, 0, 0)
    legend_box: Box = (0, 0, 0, 0)

    @property
    def size(self) -> int:
        return self.type.size

    @property
    def thin(self) -> Look:
        """The same with texts that take no room along their lines."""
        own, title = (ThinType(kind.face, kind.size) for kind in (self.type, self.title_type))
        return replace(self, type=own, title_type=title)

    @property
    def margin(self) -> float:
        return 2 + 0.6 * self.size

    def above(self, values: Sequence[float], at: int) -> bool:
        """Whether a point's value is printed above it, away from the lines that leave it."""
        around = [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]
        return values[at] >= sum(around) / len(around)

    @property
    def dot(self) -> float:
        """The width of a marker."""
        return 2.4 * self.line

    @property
    def clear(self) -> float:
        """How far from a point of a line the middle of its printed value is."""
        return 0.65 * self.size + (0.5 * self.dot if self.marker else 0.5 * self.line)
