"""The text on printed pages: what it says, how it breaks into lines, and where its letters come to lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vl.nano.pictures.canvas import RGB, Background, Box, hsv, pick
from vl.nano.pictures.fonts import Face, advance, line_width, open_face
from vl.nano.pictures.words import word_list

MIN_SIZE = 14  # px per em: the smallest type
_CAPITALS, _DESCENDERS = 0.75, 0.2  # how far letters reach above and below the baseline, in ems
_MIN_RATIO = 4.5  # of brightness: equally bright hues are hard to read, however far apart

# Capitals are slots: W a word, C a capitalised one, U one in upper case, N a number, Y a year, H a time, P a price.
# Function words are few, so that hardly any word can be guessed from the words around it.
_PHRASES = (
    *("W", "W", "W W", "W W", "W W W"),
    *("the W", "every W W", "W and W", "W of W", "W or W", "to W", "not W", "W with W", "from W to W", "its W"),
    *("C", "C C", "C's W", "U", "N W", "N", "N% of W", "in Y", "at H", "$P for W", "W no. N", "W, W and W"),
    *("W-W", "(W W)", "(W)", "'W W'", "W: W", "W; W", "W & W", "W/W"),
)
_ENDINGS = (".", ".", ".", ".", ".", "!", "?", "...")
_COMMA = 0.14  # how often a comma parts two phrases
_STREETS = ("Street", "Road", "Avenue", "Lane", "Square")
_THANKS = ("Thank you!", "Please come again", "Have a nice day", "Keep this slip", "No refunds", "See you soon!")
_TOTALS = ("TOTAL", "Total", "Total due", "Amount due", "TO PAY")
_EXTRAS = ("Tax", "TAX", "VAT", "Service", "Tip", "Delivery")
_BETWEEN, _AFTER = ("Subtotal", "Sum"), ("Cash", "Change")
_SUMS = {word.lower() for label in (*_TOTALS, *_EXTRAS, *_BETWEEN, *_AFTER) for word in label.split()}
_MENUS = ("File", "Edit", "View", "Insert", "Format", "Tools", "Window", "Help", "Go", "History")
_BUTTONS = ("OK", "Cancel", "Save", "Retry", "Close", "Apply", "Yes", "No", "Next", "Back", "Help", "Delete", "Skip")


class Entry(NamedTuple):
    """A part of a picture that can be asked for: its role, what it is called and what it says.

    Roles: "item", "sum" and "total" of a receipt, whose values are amounts; "title", "button", "setting" and "message"
    of a window.
    """

    role: str
    label: str
    value: str


def fitted(rng: np.random.Generator, draw: Callable[[], str], fits: Callable[[str], bool]) -> str:
    """Draws texts until one fits; after eight, single short words in the case of the last."""
    for _ in range(8):
        if fits(text := draw()):
            return text
    short = [word for word in word_list() if len(word) <= 4]
    words = (short[int(i)] for i in rng.permutation(len(short)))
    cased = (word.upper() if text.isupper() else word.capitalize() if text[0].isupper() else word for word in words)
    return next(filter(fits, cased))


def number(rng: np.random.Generator) -> str:
    """A number of up to five digits, some of them with thousands separated or with decimals."""
    whole = int(rng.integers(10 ** int(rng.integers(1, 6))))
    style = rng.random()
    if style < 0.2:
        return f"{whole % 1000}.{int(rng.integers(1, 100)):02d}"
    return f"{whole:,}" if style < 0.4 else str(whole)


def clock(rng: np.random.Generator) -> str:
    """A time such as "9:05"."""
    return f"{int(rng.integers(24))}:{int(rng.integers(60)):02d}"


def price(rng: np.random.Generator) -> int:
    """An amount in cents: about as often below one, ten and a hundred units of money."""
    return int(np.exp(rng.uniform(np.log(30), np.log(19999))))


def titled(rng: np.random.Generator, most: int) -> str:
    """One to `most` words as in a heading."""
    words = [pick(rng, word_list()) for _ in range(int(rng.integers(1, most + 1)))]
    text = " ".join(words)
    return pick(rng, (text.upper(), text.capitalize(), " ".join(word.capitalize() for word in words)))


def name(rng: np.random.Generator, kind: Type, room: float, used: set[str]) -> str:
    """What an entry is called, in `room` px: one to three words, none of them in `used`, to which they are added."""

    def fits(text: str) -> bool:
        return kind.width(text) <= room and used.isdisjoint(text.lower().split())

    text = fitted(rng, lambda: titled(rng, 3), fits)
    used.update(text.lower().split())
    return text


def sentence(rng: np.random.Generator, count: int) -> list[str]:
    """A sentence of `count` words with their punctuation: phrases of slots filled at random."""
    words: list[str] = []
    while len(words) < count:
        if words and rng.random() < _COMMA and words[-1][-1].isalnum():
            words[-1] += ","
        pattern = pick(rng, _PHRASES)
        if len(words) + pattern.count(" ") + 1 > count:
            pattern = "W"
        words += re.sub("[A-Z]", lambda slot: _slot(rng, slot[0]), pattern).split()
    words[0] = re.sub("[A-Za-z]", lambda letter: letter[0].upper(), words[0], count=1)
    words[-1] += pick(rng, _ENDINGS)
    return words


def paragraph(rng: np.random.Generator, count: int) -> list[str]:
    """`count` words with their punctuation in whole sentences."""
    words: list[str] = []
    while left := count - len(words):
        length = int(rng.integers(3, 15))
        words += sentence(rng, length if left >= length + 3 else left)
    return words


def address(rng: np.random.Generator) -> str:
    """What stands below a shop's name: a street, a date with or without time, or a slip's number."""
    style = rng.random()
    if style < 0.3:
        return f"{int(rng.integers(1, 400))} {pick(rng, word_list()).capitalize()} {pick(rng, _STREETS)}"
    date = f"{int(rng.integers(1, 13)):02d}/{int(rng.integers(1, 29)):02d}/{int(rng.integers(1990, 2031))}"
    if style < 0.7:
        return date if style < 0.5 else f"{date} {clock(rng)}"
    return f"{pick(rng, ('No.', 'Order', 'Table', 'Receipt', 'Tel.'))} {int(rng.integers(1, 10**7))}"


def thanks(rng: np.random.Generator) -> str:
    """The last line of a receipt."""
    return pick(rng, _THANKS) if rng.random() < 0.5 else " ".join(sentence(rng, int(rng.integers(2, 5))))


def sign_words(rng: np.random.Generator, count: int) -> list[str]:
    """`count` words of a sign, most of them in upper case, some of them numbers or times."""
    words = [pick(rng, word_list()) for _ in range(count)]
    if count > 1 and rng.random() < 0.4:
        words[int(rng.integers(1, count))] = clock(rng) if rng.random() < 0.3 else number(rng)
    if count > 1 and rng.random() < 0.2:
        words[0] = pick(rng, ("no", "please", "to", "all", "only", "room", "exit", "open"))
    if rng.random() < 0.15:
        words[-1] += "!"
    return [word.upper() for word in words] if rng.random() < 0.8 else [word.capitalize() for word in words]


def window_title(rng: np.random.Generator) -> str:
    """A window's title: a few words, a file's name, or both a document and a program."""
    style, word = rng.random(), pick(rng, word_list())
    if style < 0.2:
        return f"{word}.{pick(rng, ('txt', 'doc', 'png', 'csv', 'html'))}"
    return f"{word} - {pick(rng, word_list()).capitalize()}" if style < 0.4 else titled(rng, 3)


def label(rng: np.random.Generator, kind: str) -> str:
    """An entry of a menu bar, or the label of a "button"."""
    usual = _BUTTONS if kind == "button" else _MENUS
    return pick(rng, usual) if rng.random() < 0.55 else pick(rng, word_list()).capitalize()


def setting(rng: np.random.Generator) -> str:
    """A setting's value: on or off, a number, a share, a time or a word."""
    usual = ("On", "Off", clock(rng), f"{int(rng.integers(101))}%", number(rng))
    return pick(rng, usual) if rng.random() < 0.65 else pick(rng, word_list()).capitalize()


def _slot(rng: np.random.Generator, kind: str) -> str:
    if kind in "WCU":
        word = pick(rng, word_list())
        return word if kind == "W" else word.upper() if kind == "U" else word.capitalize()
    others = {"Y": str(int(rng.integers(1500, 2100))), "P": f"{price(rng) / 100:.2f}", "H": clock(rng)}
    return others.get(kind) or number(rng)


_USUAL_LINE = 1.2  # ems


@dataclass(frozen=True)
class Type:
    """A face at a size in pixels per em. Widths are sums of the letters' advances, kerning aside, in pixels."""

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

    def edges(self, text: str) -> list[float]:
        """Where each character starts, and where the last one ends, from the start of the text."""
        return list(accumulate((advance(self.font, letter) for letter in text), initial=0.0))

    def width(self, text: str) -> float:
        return line_width(self.font, text)

    def fitted(self, rng: np.random.Generator, word: str, width: float) -> str:
        """The word, or a shorter one where it is wider than `width`."""
        return fitted(rng, lambda: word, lambda text: self.width(text) <= width)

    def rows(self, rng: np.random.Generator, words: Sequence[str], width: float) -> list[str]:
        """The words in lines of at most `width` px, too wide ones for others."""
        return [" ".join(line) for line in self.wrap([self.fitted(rng, word, width) for word in words], width)]

    def holds(self, lines: Sequence[str], width: float, height: float) -> bool:
        """Whether the lines, set without extra space between them, take no more room than that in pixels."""
        return len(lines) * self.height <= height and all(self.width(line) <= width for line in lines)

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


def _ratio(a: RGB, b: RGB) -> float:
    """How much brighter the one colour is than the other: 1 to 21 (the contrast ratio of WCAG 2)."""
    dark, light = sorted(float(np.dot((0.2126, 0.7152, 0.0722), (np.array(c) / 255) ** 2.2)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)


class Sheet:
    """A picture in the making: `lines` are the rows printed so far, `boxes` the room that each character takes."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng = rng
        self.backdrop = Background.draw(rng)
        self.image: Image.Image = self.backdrop.paint(width, height, rng)
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = width, height
        self.lines: list[str] = []
        self.boxes: list[tuple[str, Box]] = []

    def print_row(self, kind: Type, ink: RGB, baseline: float, *cells: tuple[float, str]) -> None:
        """Prints a row of (left edge, text), from left to right."""
        upper, lower = baseline - _CAPITALS * kind.size, baseline + _DESCENDERS * kind.size
        for left, text in cells:
            self.draw.text((left, baseline), text, fill=ink, font=kind.font, anchor="ls")
            rooms = pairwise(left + edge for edge in kind.edges(text))
            self.boxes += [(c, (x0, upper, x1, lower)) for c, (x0, x1) in zip(text, rooms, strict=True) if c != " "]
        self.lines.append(" ".join(text for _, text in cells))

    def draw_type(self, face: Face, across: int, down: int, largest: int) -> Type:
        """The face at a size of which `across` ems fit the width and `down` ems the height, and `largest` at most.

        Faces with tall lines have more ems fit the height.
        """
        tall = max(1.0, Type(face, MIN_SIZE).height / (_USUAL_LINE * MIN_SIZE))
        high = max(MIN_SIZE, min(largest, self.width // across, int(self.height / (tall * down))))
        return Type(face, round(MIN_SIZE * (high / MIN_SIZE) ** self.rng.random()))

    def draw_ink(self, *behind: RGB) -> RGB:
        """A colour that stands out from all of those behind it: random, or else the better of black and white."""

        def least(colour: RGB) -> float:
            return min(_ratio(colour, other) for other in behind)

        tries = 4 * (self.rng.random() < 0.6)
        drawn = (hsv(360 * self.rng.random(), self.rng.random(), self.rng.random()) for _ in range(tries))
        return next((c for c in drawn if least(c) >= _MIN_RATIO), max(((0, 0, 0), (255, 255, 255)), key=least))

    def panel(self, box: Box, fill: RGB, outline: RGB | None = None, *, width: int = 1, radius: float = 0.0) -> None:
        left, top, right, bottom = (round(edge) for edge in box)
        self.draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius, fill, outline, width)

    def paper(self, box: Box) -> RGB:
        """Lays a plain light sheet there; returns its colour."""
        colour = hsv(self.rng.uniform(0, 360), self.rng.uniform(0, 0.15), self.rng.uniform(0.85, 1.0))
        self.panel(box, colour)
        return colour


class Line(NamedTuple):
    """A line of a page with the room above and before its letters, in pixels; `full` lines can be justified."""

    words: list[str]
    type: Type
    above: float
    indent: float
    full: bool

    @property
    def width(self) -> float:
        return self.indent + self.type.width(" ".join(self.words))

    def cells(self, left: float, column: float, align: str) -> list[tuple[float, str]]:
        """What to print where in a column of text; words apart when justified ("full"), unless that leaves holes."""
        gap = (column - self.width) / max(1, len(self.words) - 1)
        if align == "full" and self.full and gap < self.type.size:
            steps = (self.type.width(word + " ") + gap for word in self.words)
            return list(zip(accumulate(steps, initial=left + self.indent), self.words, strict=False))
        shift = (column - self.width + self.indent) / 2 if align == "centre" else self.indent
        return [(left + shift, " ".join(self.words))]


def draw_parts(rng: np.random.Generator, body: Type, count: int, usable: float) -> list[tuple[Type, list[str]]]:
    """Heading, if any, and one or two paragraphs, with `count` words in all, none of which is wider than `usable`."""
    parts: list[tuple[Type, list[str]]] = []
    if count >= 10 and rng.random() < 0.4:
        heading = titled(rng, 5).split()
        kind = Type(body.face, round(body.size * rng.uniform(1.0, 1.7)))
        parts.append((kind if all(kind.width(word) <= usable for word in heading) else body, heading))
        count -= len(heading)
    first = int(rng.integers(6, count - 5)) if count >= 16 and rng.random() < 0.4 else count
    upper = rng.random() < 0.05
    for length in filter(None, (first, count - first)):
        text = paragraph(rng, length)
        parts.append((body, [word.upper() for word in text] if upper else text))
    return [(kind, [kind.fitted(rng, word, usable) for word in words]) for kind, words in parts]


def set_lines(parts: list[tuple[Type, list[str]]], column: float, leading: float, gap: float) -> list[Line]:
    """Sets parts in lines of at most `column` px; a part begins after a gap or, in a wide column, with an indent."""
    lines: list[Line] = []
    for kind, words in parts:
        running = words[-1][-1] in ".!?"  # a heading is not indented
        indent = 1.5 * kind.size if running and not gap and column >= 16 * kind.size else 0.0
        rows = kind.wrap(words, column, indent)
        for number, row in enumerate(rows):
            first = number == 0
            above = leading + gap * (first and bool(lines))
            lines.append(Line(row, kind, above, indent * first, number < len(rows) - 1))
    return lines


class Slip:
    """The rows of a receipt in one type, none of them wider than `room` px."""

    def __init__(self, rng: np.random.Generator, kind: Type, room: float) -> None:
        self.rng, self.type, self.room = rng, kind, room
        self.sign = pick(rng, ("", "", "$"))
        self.used = set(_SUMS)  # no word stands in two labels, so that each price can be asked for

    def width(self, label: str, value: str = "") -> float:
        """The least room that a row takes."""
        return self.type.width(label + value) + 1.5 * self.type.size * bool(value)

    def row(self, draw: Callable[[np.random.Generator], str]) -> tuple[str, str]:
        """A row without an amount that fits."""
        return fitted(self.rng, lambda: draw(self.rng), lambda text: self.width(text) <= self.room), ""

    def entry(self, role: str, labels: Sequence[str], cents: int) -> Entry:
        """An amount under one of the labels that fit or else the shortest; without any, under a name of its own."""
        value = f"{self.sign}{cents / 100:.2f}"
        if not labels:
            return Entry(role, name(self.rng, self.type, self.room - self.width("", value), self.used), value)
        fitting = [label for label in labels if self.width(label, value) <= self.room]
        return Entry(role, pick(self.rng, fitting or [min(labels, key=len)]), value)

    def entries(self, rows: int, most: int) -> tuple[list[Entry], list[Entry]]:
        """Two to `most` items, and the sums: in all up to `rows` of them, and three at least."""
        rng = self.rng
        prices = [price(rng) for _ in range(int(rng.integers(2, max(2, min(rows - 1, most)) + 1)))]
        spare, total = rows - 1 - len(prices), sum(prices)
        items, sums = [self.entry("item", (), cents) for cents in prices], []
        if spare >= 2 and rng.random() < 0.5:
            extra = 1 + round(total * rng.uniform(0.03, 0.2))
            sums = [self.entry("sum", _BETWEEN, total), self.entry("sum", _EXTRAS, extra)]
            total, spare = total + extra, spare - 2
        sums.append(self.entry("total", _TOTALS, total))
        if spare >= 2 and rng.random() < 0.4:
            paid = (total // 500 + 1) * 500
            sums += [self.entry("sum", _AFTER[:1], paid), self.entry("sum", _AFTER[1:], paid - total)]
        return items, sums
