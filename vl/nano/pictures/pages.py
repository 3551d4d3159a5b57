"""Printed text beyond single lines: pages of running text, receipts, signs and windows of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import COLOURS, RGB, SizeRange, draw_size, jitter, pick
from vl.nano.pictures.fonts import ALL, Face, Fonts, find_faces
from vl.nano.pictures.labels import draw_words_apart
from vl.nano.pictures.pen import Type
from vl.nano.pictures.placing import fit_lines
from vl.nano.pictures.prose import Prose
from vl.nano.pictures.questions import Asked, Questions, looked, missing, none_of, numbered, starred
from vl.nano.pictures.receipts import paint_receipt
from vl.nano.pictures.sheets import MIN_SIZE, Entry, Sheet, wideness
from vl.nano.pictures.windows import paint_window
from vl.nano.pictures.words import WordsFacts, caption_text

MAX_WORDS = 120
_LARGE = 1008  # px of the longer side from which a page may hold all its words, in type of 14 to 24 px
_MIN_WORDS, _MIN_EMS = 24, 26  # two columns want so many words, and a page so many ems wide
_MONOSPACED = 0.3  # of the windows, those in type as of a terminal
_LARGEST_SIGN = 240  # px per em
_ASPECT = 2.2
# Width and height of the least canvases, and how many lines of the smallest type, in tall faces, have to fit them.
_LEAST = {"page": (128, 48, 1.5), "receipt": (176, 150, 6.6), "sign": (64, 40, 1.0), "screen": (200, 150, 8.4)}


_Painter = Callable[[Sheet, Face, int], tuple[int, list[Entry]]]
"""Prints up to so many words in a face; returns the size of its type and what can be asked for."""


@dataclass(frozen=True)
class PageFacts(WordsFacts):
    """Ground truth of printed text of a kind: "page", "receipt", "sign" or "screen".

    `lines`: the rows from top to bottom, of two columns those of the left one first, and in each row the texts from
    left to right, with a space between (a price after its item, menus and buttons side by side, each line of a message
    in a chat a row of its own). `size`: that of the body. `entries`: parts, in reading order.
    """

    kind: str
    entries: tuple[Entry, ...] = ()


def draw_pages(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    fonts: Fonts = ALL,
    max_words: int = MAX_WORDS,
    kinds: Sequence[str] = ("page", "receipt", "sign", "screen"),
    two_columns: float = 0.35,
) -> tuple[Image.Image, PageFacts]:
    """Draws a picture of printed text, of one of the `kinds` that the canvas has room for; what is named twice in
    `kinds` is twice as likely.

    Of the pages with room for two columns, the share `two_columns` has them. All type is 14 px per em or larger. A
    canvas of 1008 px or more holds up to `max_words`, a smaller one fewer, in proportion to its area; receipts and
    windows have a few rows or more all the same. The least canvases are 128 x 48 px for a page, 176 x 150 for a
    receipt, 64 x 40 for a sign and 200 x 150 for a window: where a canvas is too small for any of the kinds, it is
    enlarged to that of one of them.
    """
    face = pick(rng, find_faces(fonts))
    width, height = draw_size(sizes, _ASPECT, rng)
    line, wider = Type(face, MIN_SIZE).height, wideness(face)
    least = {
        kind: (round(wider * wide), max(high, round(lines * line))) for kind, (wide, high, lines) in _LEAST.items()
    }
    fitting = [kind for kind in kinds if width >= least[kind][0] and height >= least[kind][1]]
    kind = pick(rng, fitting or kinds)
    if kind == "screen" and rng.random() < _MONOSPACED:
        face = pick(rng, [face for face in find_faces(fonts) if face.monospaced] or [face])
    width, height = max(width, least[kind][0]), max(height, least[kind][1])
    limit = max(1, min(max_words, round(1.1 * MAX_WORDS * (max(width, height) / _LARGE) ** 2)))
    sheet = Sheet(rng, width, height, fonts.part)
    painters: dict[str, _Painter] = {
        "page": partial(_paint_page, two_columns=two_columns),
        "receipt": paint_receipt,
        "sign": _paint_sign,
        "screen": paint_window,
    }
    size, entries = painters[kind](sheet, face, limit)
    lines, boxes = tuple(sheet.lines), tuple(sheet.boxes)
    return sheet.image, PageFacts(width, height, lines, face.name, size, boxes, kind, tuple(entries))


def _paint_page(sheet: Sheet, face: Face, limit: int, two_columns: float) -> tuple[int, list[Entry]]:
    rng, longer = sheet.rng, max(sheet.width, sheet.height)
    body = sheet.draw_type(face, 9, 3, 24 if longer >= _LARGE else min(40, longer // 14))
    pad = 2 + body.size // 3
    usable, room = float(sheet.width - 2 * pad), sheet.height - 2 * pad
    count, gutter = 1, body.size * rng.uniform(1.2, 2.5)
    if limit >= _MIN_WORDS and usable >= _MIN_EMS * body.size and rng.random() < two_columns:
        count, usable = 2, (usable - gutter) / 2
    parts = _draw_parts(sheet.prose, body, int(rng.integers(min(4, limit), limit + 1)), usable)
    widest = max(kind.width(word) for kind, words in parts for word in words)
    leading, gap = body.height * rng.uniform(0.0, 0.35), body.size * pick(rng, (0.0, 0.6, 1.2))
    lines = _set_lines(parts, max(widest, rng.uniform(0.25, 1.0) * usable), leading, gap)
    if _height(lines) > count * room:
        lines = _set_lines(parts, usable, leading, gap)
    columns = _part_lines(rng, lines, room, count)
    column, high = max(line.width for part in columns for line in part), max(map(_height, columns))
    wide = len(columns) * (column + gutter) - gutter
    left, top = sheet.place(wide, high, pad)
    behind: tuple[RGB, ...] = (sheet.backdrop.start, sheet.backdrop.end)
    if rng.random() < 0.35:
        box = (left - pad, top - pad, left + wide + pad, top + high + pad)
        behind = (sheet.paper(box, dark=rng.random() < 0.3),)
    align, ink = pick(rng, ("left", "left", "full", "centre")), sheet.draw_ink(*behind)
    for number, part in enumerate(columns):
        y, x = top, left + number * (column + gutter)
        for line in part:
            sheet.print_row(line.type, ink, y + line.above, *line.cells(x, column, align))
            y += line.above + line.type.height
    return body.size, []


def _part_lines(rng: Generator, lines: list[_Line], room: float, count: int) -> list[list[_Line]]:
    """The lines in one or two columns of at most `room` px each; the last lines, which find none, are left out.

    Of two columns the first is as long as the second, about, or as long as it can be.
    """
    if count == 1 or len(lines) < 4:
        return [_fit(lines, room)]
    share = pick(rng, (_height(lines) / 2, room))
    first = _fit(lines, min(room, share))
    return [first, _fit(lines[len(first) :], room)] if len(first) < len(lines) else [first]


def _fit(lines: list[_Line], room: float) -> list[_Line]:
    """As many of the lines as there is room for, one at least."""
    ends = accumulate(line.above + line.type.height for line in lines)
    return lines[: max(1, sum(end <= room for end in ends))]


def _height(lines: list[_Line]) -> float:
    return sum(line.above + line.type.height for line in lines)


class _Line(NamedTuple):
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


def _draw_parts(prose: Prose, body: Type, count: int, usable: float) -> list[tuple[Type, list[str]]]:
    """Heading, if any, and one or two paragraphs, with `count` words in all, none of which is wider than `usable`."""
    parts: list[tuple[Type, list[str]]] = []
    if count >= 10 and prose.chance(0.4):
        heading = prose.titled(5).split()
        kind = Type(body.face, round(body.size * prose.rng.uniform(1.0, 1.7)))
        parts.append((kind if all(kind.width(word) <= usable for word in heading) else body, heading))
        count -= len(heading)
    first = prose.whole(6, count - 5) if count >= 16 and prose.chance(0.4) else count
    upper = prose.chance(0.05)
    for length in filter(None, (first, count - first)):
        text = prose.paragraph(length)
        parts.append((body, [word.upper() for word in text] if upper else text))
    return [(kind, [prose.fit_word(kind, word, usable) for word in words]) for kind, words in parts]


def _set_lines(parts: list[tuple[Type, list[str]]], column: float, leading: float, gap: float) -> list[_Line]:
    """Sets parts in lines of at most `column` px; a part begins after a gap or, in a wide column, with an indent."""
    lines: list[_Line] = []
    for kind, words in parts:
        running = words[-1][-1] in ".!?"  # a heading is not indented
        indent = 1.5 * kind.size if running and not gap and column >= 16 * kind.size else 0.0
        rows = kind.wrap(words, column, indent)
        for number, row in enumerate(rows):
            first = number == 0
            above = leading + gap * (first and bool(lines))
            lines.append(_Line(row, kind, above, indent * first, number < len(rows) - 1))
    return lines


def _paint_sign(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    rng = sheet.rng
    wide, high = (max(low, side * rng.uniform(0.6, 1.0)) for low, side in ((64, sheet.width), (40, sheet.height)))
    left, top = sheet.place(wide, high)
    border = 1 + int(0.03 * min(wide, high) * rng.random())
    usable, room = wide - 4 * border - 6, high - 4 * border - 6
    words = sheet.prose.sign_words(int(rng.integers(1, min(8, limit) + 1)))
    words = [sheet.prose.fit_word(Type(face, MIN_SIZE), word, usable) for word in words]
    sample = Type(face, 64)

    def largest(lines: Sequence[str]) -> float:
        scale = min(usable / sample.widest(lines), room / (len(lines) * sample.height))
        size = min(_LARGEST_SIGN, 1 + int(scale * sample.size))
        while size >= MIN_SIZE and not Type(face, size).holds(lines, usable, room):
            size -= 1  # hinting makes small type a little wider or narrower than in proportion
        return size

    lines, fit = fit_lines(rng, words, MIN_SIZE, _split, largest)
    kind = Type(face, round(MIN_SIZE * (fit / MIN_SIZE) ** rng.uniform(0.6, 1.0)))
    colour, radius = jitter(pick(rng, tuple(COLOURS)), rng), 3 * (border + 3) * rng.random()
    ink = sheet.draw_ink(colour)
    sheet.panel((left, top, left + wide, top + high), colour, radius=radius)
    if rng.random() < 0.75:
        box = (left + border, top + border, left + wide - border, top + high - border)
        sheet.panel(box, colour, ink, width=border, radius=radius)
    align, pitch = 0.5 * (rng.random() < 0.8), min(rng.uniform(1.0, 1.4) * kind.height, room / len(lines))
    y = top + (high - pitch * len(lines) + pitch - kind.height) / 2
    for number, line in enumerate(lines):
        x = left + 2 * border + 3 + align * (usable - kind.width(line))
        sheet.print_row(kind, ink, y + number * pitch, (x, line))
    return kind.size, []


def _split(words: Sequence[str], rows: int) -> list[Sequence[str]]:
    """About as many words in each row."""
    return [words[a:b] for a, b in pairwise(round(i * len(words) / rows) for i in range(rows + 1))]


_Topic = tuple[str, Entry, str, str]
"""What to ask for, the part that it is asked of, the answer, and what is looked at for it."""

_ABSENT = 0.06  # of the questions on receipts, those on an item that is not there


def _amount(entry: Entry) -> float:
    return float(entry.value.lstrip("$£€"))


class _PageQuestions(Questions[PageFacts]):
    kind = "pages"

    def whole_or_part(self) -> Asked:
        facts = self.facts
        if self.chance(0.5):
            return self.say_any(dict.fromkeys(("read", f"read-{facts.kind}"), caption_text(facts)))
        if facts.kind == "receipt" and self.chance(_ABSENT):
            return self._absent()
        topic, entry, answer, thought = pick(self.rng, self._topics() if facts.entries else self._lines())
        return self.say(topic, answer, label=entry.label, value=entry.value, thought=thought)

    def _absent(self) -> Asked:
        """The price of something that is not on the receipt."""
        items = [f"{entry.label} {entry.value}" for entry in self.facts.entries if entry.role == "item"]
        words = {word.lower() for label in items for word in label.split()}
        drawn = draw_words_apart(self.rng, len(words) + 1, part=self.part)
        name = next(word.capitalize() for word in drawn if word not in words)
        return self.say("item", none_of(name), label=name, thought=looked(items, None, missing(name)))

    def _lines(self) -> list[_Topic]:
        lines = self.facts.lines
        answers = {"first": lines[0], "last": lines[-1]} | ({"lines": str(len(lines))} if len(lines) <= 9 else {})
        return [(topic, Entry("", "", ""), answer, "") for topic, answer in answers.items()]

    def _topics(self) -> list[_Topic]:
        entries = self.facts.entries
        topics = [
            (entry.role, entry, entry.value, self._up_to(entry))
            for entry in entries
            if entry.role not in ("button", "message")
        ]
        topics += [
            ("on", e, "yes" if e.value == "On" else "no", self._up_to(e)) for e in entries if e.value in ("On", "Off")
        ]
        by_role = {role: [entry for entry in entries if entry.role == role] for role in ("item", "button", "message")}
        if items := by_role["item"]:
            prices = sorted(items, key=_amount)
            alone = [e for e in items if sum(e.value == other.value for other in items) == 1]
            topics += [("whose", e, e.label, self._up_to(e)) for e in alone]
            topics.append(("items", items[0], str(len(items)), numbered([item.label for item in items])))
            rows, paid = [f"{item.label} {item.value}" for item in items], list(map(_amount, items))
            low, high = (starred(rows, paid, highest=highest) for highest in (False, True))
            topics += [("cheapest", e, e.label, low) for e in prices[:1] if e.value != prices[1].value]
            topics += [("dearest", e, e.label, high) for e in prices[-1:] if e.value != prices[-2].value]
        if buttons := by_role["button"]:
            values = [button.value for button in buttons]
            other, there = Entry("button", "", Prose(self.rng, self.part).label("button")), pick(self.rng, buttons)
            for entry in (there, other):
                yes = entry.value in values
                seen = looked(values, [values.index(entry.value)] if yes else None)
                topics.append(("button", entry, "yes" if yes else "no", seen))
            topics += [("buttons", other, str(len(buttons)), numbered(values)), ("leftmost", other, values[0], "")]
        if messages := by_role["message"]:
            for ordinal, message in (("first", messages[0]), ("last", messages[-1])):
                named = message._replace(label=ordinal)
                topics += [("message", named, message.value, ""), ("side", named, message.label, "")]
        return topics

    def _up_to(self, entry: Entry) -> str:
        """What is looked at until one is found: the entries of its sort, each with what stands beside it."""
        if entry.role not in ("item", "sum", "total", "setting"):
            return ""
        alike = [other for other in self.facts.entries if other.role == entry.role]
        return looked([f"{other.label} {other.value}" for other in alike], [alike.index(entry)])


def ask_page(rng: Generator, facts: PageFacts, part: str = "all") -> Asked:
    """Asks to read the whole text or, half of the time, for a part of it."""
    return _PageQuestions(rng, facts, part).ask()
