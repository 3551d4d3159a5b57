"""Type and the pen: lines of text are measured, broken and printed, and each character's place is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from PIL import Image, ImageDraw, ImageFont

from vl.nano.pictures.canvas import RGB, Box, NamedBox
from vl.nano.pictures.fonts import Face, advances, open_face

_MIN_SHARE = 0.012  # of the longer side: the largest canvases are shrunk before they are seen
_CAPITALS, _DESCENDERS = 0.75, 0.2  # how far letters reach above and below the baseline, in ems
_MIDDLE = 0.35  # from the baseline up to the middle of digits and capitals, in ems


@dataclass(frozen=True)
class Type:
    """A face at a size in pixels per em. Widths are sums of the letters' advances in pixels, kerning aside: measuring
    whole lines takes longer than drawing them."""

    face: Face
    size: int

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        return open_face(self.face, self.size)

    @property
    def height(self) -> int:
        """From the top of the tallest letter to the bottom of the lowest, in pixels."""
        return sum(self.font.getmetrics())

    @property
    def ascent(self) -> int:
        """From the top of a line to its baseline, in pixels."""
        return self.font.getmetrics()[0]

    def width(self, text: str) -> float:
        return sum(map(advances(self.face, self.size).__getitem__, text))

    def widest(self, texts: Sequence[str]) -> float:
        return max(map(self.width, texts))

    def holds(self, lines: Sequence[str], width: float, height: float) -> bool:
        """Whether the lines, set without extra space between them, take no more room than that in pixels."""
        return len(lines) * self.height <= height and self.widest(lines) <= width

    def wrap(self, words: Sequence[str], width: float, indent: float = 0.0) -> list[list[str]]:
        """Breaks words into lines of at most `width`, the first one after `indent`; a wider word stands alone."""
        lines: list[list[str]] = []
        space, taken = self.width(" "), 0.0
        for word in words:
            wide = self.width(word)
            if lines and taken + space + wide <= width:
                lines[-1].append(word)
                taken += space + wide
            else:
                taken = wide if lines else wide + indent
                lines.append([word])
        return lines

    def letters(self, text: str, left: float, baseline: float, stretch: float = 1.0) -> list[NamedBox]:
        """Where each character but the spaces comes to lie in a line, `stretch` times as wide as its advance."""
        upper, lower = baseline - _CAPITALS * self.size, baseline + _DESCENDERS * self.size
        widths = map(advances(self.face, self.size).__getitem__, text)
        edges = pairwise(accumulate((stretch * width for width in widths), initial=left))
        return [(c, (x0, upper, x1, lower)) for c, (x0, x1) in zip(text, edges, strict=True) if c != " "]


class ThinType(Type):
    """A type whose letters take no room, and are not measured: what does not fit in it does not fit in any."""

    def width(self, text: str) -> float:
        return 0.0


def smallest_size(least: int, width: int, height: int) -> int:
    """The smallest legible type on a canvas, in pixels per em: at least `least`."""
    return max(least, round(_MIN_SHARE * max(width, height)))


class Pen:
    """Draws on a picture; `boxes` collects where each printed character but the spaces comes to lie."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.boxes: list[NamedBox] = []

    def print(self, text: str, kind: Type, ink: RGB, left: float, baseline: float) -> None:
        """Prints a line that begins at `left` on its baseline."""
        self.draw.text((left, baseline), text, fill=ink, font=kind.font, anchor="ls")
        self.boxes += kind.letters(text, left, baseline)

    def write(self, text: str, kind: Type, ink: RGB, x: float, y: float, align: float = 0.0) -> None:
        """Prints a line whose capitals are centred on `y`; it begins (`align` 0), is centred (0.5) or ends at `x`."""
        self.print(text, kind, ink, x - align * kind.width(text), y + _MIDDLE * kind.size)

    def panel(self, box: Box, fill: RGB, outline: RGB | None = None, *, width: int = 1, radius: float = 0.0) -> None:
        """Fills a rectangle, round at the corners, that ends before its right and bottom edges."""
        left, top, right, bottom = (round(edge) for edge in box)
        self.draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius, fill, outline, width)
