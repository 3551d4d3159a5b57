"""Printed text beyond single lines: pages of running text, receipts, signs and windows of a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vl.nano.pictures import prose
from vl.nano.pictures.canvas import COLOURS, RGB, Box, SizeRange, draw_size, hsv, jitter, pick
from vl.nano.pictures.fonts import Face, Fonts, find_faces
from vl.nano.pictures.prose import MIN_SIZE, Entry, Line, Sheet, Slip, Type
from vl.nano.pictures.questions import Asked, say, say_any

MAX_WORDS = 120
_LARGE = 1008  # px of the longer side from which a page may hold all its words, in type of 14 to 24 px
_LARGEST_SIGN = 240  # px per em
_ASPECT = 2.2
# Width and height of the least canvases, and how many lines of the smallest type, in tall faces, have to fit them.
_LEAST = {"page": (128, 48, 1.5), "receipt": (176, 150, 6.6), "sign": (64, 40, 1.0), "screen": (200, 150, 8.4)}


@dataclass(frozen=True)
class PageFacts:
    """Ground truth of printed text.

    `kind`: "page", "receipt", "sign" or "screen". `lines`: the rows from top to bottom, and in each row the texts from
    left to right, with a space between (a price after its item, menus and buttons side by side, each line of a message
    in a chat a row of its own); `text` joins them with spaces. `size`: px per em of the body. `boxes`: every character
    but the spaces, in reading order, with the room that it takes in its line. `entries`: parts, in reading order.
    """

    width: int
    height: int
    kind: str
    text: str
    lines: tuple[str, ...]
    face: str
    size: int
    boxes: tuple[tuple[str, Box], ...]
    entries: tuple[Entry, ...] = ()


def draw_pages(
    rng: np.random.Generator,
    sizes: Sequence[SizeRange],
    *,
    fonts: str | Path | Fonts | None = None,
    max_words: int = MAX_WORDS,
    kinds: Sequence[str] = ("page", "receipt", "sign", "screen"),
) -> tuple[Image.Image, PageFacts]:
    """Draws a picture of printed text, of one of the `kinds` that the canvas has room for; what is named twice in
    `kinds` is twice as likely.

    All type is 14 px per em or larger. A canvas of 1008 px or more holds up to `max_words`, a smaller one fewer, in
    proportion to its area; receipts and windows have a few rows or more all the same. The least canvases are 128 x 48
    px for a page, 176 x 150 for a receipt, 64 x 40 for a sign and 200 x 150 for a window: where a canvas is too small
    for any of the kinds, it is enlarged to that of one of them.
    """
    face = pick(rng, find_faces(fonts))
    width, height = draw_size(sizes, _ASPECT, rng)
    line = Type(face, MIN_SIZE).height
    least = {kind: (wide, max(high, round(lines * line))) for kind, (wide, high, lines) in _LEAST.items()}
    fitting = [kind for kind in kinds if width >= least[kind][0] and height >= least[kind][1]]
    kind = pick(rng, fitting or kinds)
    width, height = max(width, least[kind][0]), max(height, least[kind][1])
    limit = max(1, min(max_words, round(1.1 * MAX_WORDS * (max(width, height) / _LARGE) ** 2)))
    sheet = Sheet(rng, width, height)
    paint = {"page": _paint_page, "receipt": _paint_receipt, "sign": _paint_sign, "screen": _paint_screen}[kind]
    size, entries = paint(sheet, face, limit)
    text, lines, boxes = " ".join(sheet.lines), tuple(sheet.lines), tuple(sheet.boxes)
    return sheet.image, PageFacts(width, height, kind, text, lines, face.name, size, boxes, tuple(entries))


def caption_page(facts: PageFacts) -> str:
    """The canonical answer to a request to read, such as 'The text reads "Hello there, world!".'."""
    return f'The text reads "{facts.text}".'


def _paint_page(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    rng, longer = sheet.rng, max(sheet.width, sheet.height)
    body = sheet.draw_type(face, 9, 3, 24 if longer >= _LARGE else min(40, longer // 14))
    pad = 2 + body.size // 3
    usable, room = sheet.width - 2 * pad, sheet.height - 2 * pad
    parts = prose.draw_parts(rng, body, int(rng.integers(min(4, limit), limit + 1)), usable)
    widest = max(kind.width(word) for kind, words in parts for word in words)
    leading, gap = body.height * rng.uniform(0.0, 0.35), body.size * pick(rng, (0.0, 0.6, 1.2))
    lines = prose.set_lines(parts, max(widest, rng.uniform(0.25, 1.0) * usable), leading, gap)
    if _height(lines) > room:
        lines = prose.set_lines(parts, usable, leading, gap)
    while len(lines) > 1 and _height(lines) > room:
        lines.pop()
    column, high = max(line.width for line in lines), _height(lines)
    left, top = pad + rng.random() * (usable - column), pad + rng.random() * (room - high)
    behind: tuple[RGB, ...] = (sheet.backdrop.start, sheet.backdrop.end)
    if rng.random() < 0.35:
        behind = (sheet.paper((left - pad, top - pad, left + column + pad, top + high + pad)),)
    align, ink = pick(rng, ("left", "left", "full", "centre")), sheet.draw_ink(*behind)
    for line in lines:
        baseline = top + line.above + line.type.ascent
        sheet.print_row(line.type, ink, baseline, *line.cells(left, column, align))
        top += line.above + line.type.height
    return body.size, []


def _height(lines: list[Line]) -> float:
    return sum(line.above + line.type.height for line in lines)


def _paint_receipt(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    rng, kind = sheet.rng, sheet.draw_type(face, 14, 10, 32)
    pad, pitch = 4 + kind.size // 2, kind.height * rng.uniform(1.05, 1.4)
    slip = Slip(rng, kind, sheet.width - 2 * pad)
    spare = int((sheet.height - 2 * pad) // pitch) - 1  # beside the shop's name
    items, sums = slip.entries(spare, max(3, (limit - 24) // 4))  # with what else there is, `limit` words
    spare -= len(items) + len(sums)
    heads = int(rng.integers(min(2, spare) + 1))
    rows = [slip.row(lambda rng: prose.titled(rng, 3)), *(slip.row(prose.address) for _ in range(heads))]
    ruled = {len(rows), len(rows) + len(items)} if rng.random() < 0.7 else set()
    rows += [(entry.label, entry.value) for entry in (*items, *sums)]
    if spare > heads and rng.random() < 0.5:
        rows.append(slip.row(prose.thanks))
    need = max(slip.width(*row) for row in rows)
    wide, high = rng.uniform(need, min(slip.room, 1.8 * need)), pitch * len(rows)
    left, top = pad + rng.random() * (slip.room - wide), pad + rng.random() * (sheet.height - 2 * pad - high)
    ink = sheet.draw_ink(sheet.paper((left - pad, top - pad, left + wide + pad, top + high + pad)))
    for number, row in enumerate(rows):
        y = top + number * pitch
        if number in ruled:
            sheet.draw.line((left, y, left + wide, y), fill=ink, width=1 + kind.size // 24)
        _print_pair(sheet, kind, ink, (left, y + (pitch - kind.height) / 2, left + wide), *row)
    return kind.size, [*items, *sums]


def _print_pair(sheet: Sheet, kind: Type, ink: RGB, place: tuple[float, float, float], label: str, value: str) -> None:
    """Prints a label on the left and its value on the right of (left, top, right); without a value, in the middle."""
    left, top, right = place
    cells = [(left, label), (right - kind.width(value), value)]
    if not value:
        cells = [((left + right - kind.width(label)) / 2, label)]
    sheet.print_row(kind, ink, top + kind.ascent, *cells)


def _paint_sign(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    rng = sheet.rng
    wide, high = (max(low, side * rng.uniform(0.6, 1.0)) for low, side in ((64, sheet.width), (40, sheet.height)))
    left, top = rng.random() * (sheet.width - wide), rng.random() * (sheet.height - high)
    border = 1 + int(0.03 * min(wide, high) * rng.random())
    usable, room = wide - 4 * border - 6, high - 4 * border - 6
    words = prose.sign_words(rng, int(rng.integers(1, min(8, limit) + 1)))
    words = [Type(face, MIN_SIZE).fitted(rng, word, usable) for word in words]
    lines, largest = _enlarge(rng, face, words, usable, room)
    kind = Type(face, round(MIN_SIZE * (largest / MIN_SIZE) ** rng.uniform(0.6, 1.0)))
    colour, radius = jitter(pick(rng, tuple(COLOURS)), rng), 3 * (border + 3) * rng.random()
    ink = sheet.draw_ink(colour)
    sheet.panel((left, top, left + wide, top + high), colour, radius=radius)
    if rng.random() < 0.75:
        box = (left + border, top + border, left + wide - border, top + high - border)
        sheet.panel(box, colour, ink, width=border, radius=radius)
    align, pitch = 0.5 * (rng.random() < 0.8), min(rng.uniform(1.0, 1.4) * kind.height, room / len(lines))
    y = top + (high - pitch * len(lines) + pitch - kind.height) / 2 + kind.ascent
    for number, line in enumerate(lines):
        x = left + 2 * border + 3 + align * (usable - kind.width(line))
        sheet.print_row(kind, ink, y + number * pitch, (x, line))
    return kind.size, []


def _enlarge(rng: np.random.Generator, face: Face, words: list[str], wide: float, high: float) -> tuple[list[str], int]:
    """Lines of about as many words each, their number drawn from those possible, and the largest size that fits.

    Words are left out from the end until there is one; a single word stays, at the least size.
    """
    sample = Type(face, 64)
    for count in range(len(words), 0, -1):
        fitting = []
        for rows in range(1, count + 1):
            ends = [round(i * count / rows) for i in range(rows + 1)]
            lines = [" ".join(words[start:end]) for start, end in pairwise(ends)]
            scale = min(wide / max(map(sample.width, lines)), high / (rows * sample.height))
            size = min(_LARGEST_SIGN, 1 + int(scale * sample.size))
            while size >= MIN_SIZE and not Type(face, size).holds(lines, wide, high):
                size -= 1  # hinting makes small type a little wider or narrower than in proportion
            if size >= MIN_SIZE:
                fitting.append((lines, size))
        if fitting:
            return pick(rng, fitting)
    return words[:1], MIN_SIZE


class _Window(NamedTuple):
    """A program's window: where its contents may lie, in what type and which colours."""

    box: Box
    type: Type
    pad: int
    body: RGB
    ink: RGB
    accent: RGB

    @property
    def room(self) -> float:
        return self.box[2] - self.box[0]


def _paint_screen(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    rng, kind = sheet.rng, sheet.draw_type(face, 14, 10, 28)
    wide = max(14 * kind.size, rng.uniform(0.5, 1.0) * sheet.width)
    high = max(10 * kind.size, 8.2 * kind.height, rng.uniform(0.5, 1.0) * sheet.height)
    left, top = rng.random() * (sheet.width - wide), rng.random() * (sheet.height - high)
    tone = (rng.uniform(0, 0.12), rng.uniform(0.88, 1.0)) if rng.random() < 0.6 else (rng.random(), rng.uniform(0, 0.3))
    body = hsv(rng.uniform(0, 360), *tone)
    accent = hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95))
    pad = 2 + kind.size // 4
    sheet.panel((left, top, left + wide, top + high), body, accent)
    box = (left + 2 * pad, top + pad, left + wide - 2 * pad, top + high - pad)
    window = _Window(box, kind, pad, body, sheet.draw_ink(body), accent)
    bar = kind.height + 2 * pad
    sheet.panel((left, top, left + wide, top + bar), accent)
    entries, y = [_add_title(sheet, window)], top + bar + pad
    if high > bar + 7 * kind.height + 4 * pad and rng.random() < 0.4:
        sheet.print_row(kind, window.ink, y + kind.ascent, *_side_by_side(rng, window, 5, "menu", 0.0))
        y += kind.height + pad
        sheet.draw.line((left, y - pad / 2, left + wide, y - pad / 2), fill=accent)
    fill = pick(rng, (_fill_dialog, _fill_settings, _fill_chat))
    limit = max(1, limit - 11)  # the most words of titles, menus and buttons
    return kind.size, entries + fill(sheet, window._replace(box=(box[0], y, *box[2:])), limit)


def _add_title(sheet: Sheet, window: _Window) -> Entry:
    """Prints the title, beside three buttons that hold nothing."""
    rng, kind, (left, top, right, _) = sheet.rng, window.type, window.box
    ink, size, first = sheet.draw_ink(window.accent), 0.6 * kind.size, rng.random() < 0.5
    room = window.room - 5 * size
    text = prose.fitted(rng, lambda: prose.window_title(rng), lambda text: kind.width(text) <= room)
    for number in range(3):
        x = (left if first else right - 3.8 * size) + 1.4 * size * number
        y = top + (kind.height - size) / 2
        sheet.panel((x, y, x + size, y + size), window.accent, ink, radius=0.5 * size * first)
    x = left + 5 * size * first + (rng.random() < 0.4) * (room - kind.width(text)) / 2
    sheet.print_row(kind, ink, top + kind.ascent, (x, text))
    return Entry("title", "", text)


def _side_by_side(
    rng: np.random.Generator, window: _Window, most: int, kind: str, align: float
) -> list[tuple[float, str]]:
    """One to `most` different labels and their left edges, two ems apart; the first one always fits."""
    labels: list[str] = []
    free, gap = window.room, 2.0 * window.type.size
    for _ in range(int(rng.integers(1, most + 1))):
        label = prose.label(rng, kind)
        if label not in labels and (wide := window.type.width(label) + gap) <= free:
            labels.append(label)
            free -= wide
    edges = accumulate((window.type.width(label) + gap for label in labels), initial=gap / 2 + align * free)
    return [(window.box[0] + x, label) for label, x in zip(labels, edges, strict=False)]


def _add_buttons(sheet: Sheet, window: _Window) -> list[Entry]:
    """Prints a row of buttons at the bottom, as high as a line and a pad."""
    rng, kind, bottom = sheet.rng, window.type, window.box[3]
    fill, radius = pick(rng, (window.accent, window.body)), 0.5 * kind.size * rng.random()
    top, ink = bottom - kind.height - window.pad, sheet.draw_ink(fill)
    cells = _side_by_side(rng, window, 3, "button", 0.5 * int(rng.integers(3)))
    for x, label in cells:
        box = (x - 0.7 * kind.size, top, x + kind.width(label) + 0.7 * kind.size, bottom)
        sheet.panel(box, fill, window.ink, radius=radius)
    sheet.print_row(kind, ink, top + window.pad / 2 + kind.ascent, *cells)
    return [Entry("button", "", label) for _, label in cells]


def _fill_dialog(sheet: Sheet, window: _Window, limit: int) -> list[Entry]:
    rng, kind, (left, top, _, bottom) = sheet.rng, window.type, window.box
    most = int((bottom - top - kind.height - 2 * window.pad) // kind.height)
    words = prose.paragraph(rng, int(rng.integers(2, max(3, min(limit, 40)) + 1)))
    for row in kind.rows(rng, words, window.room)[:most]:
        sheet.print_row(kind, window.ink, top + kind.ascent, (left, row))
        top += kind.height
    return _add_buttons(sheet, window)


def _fill_settings(sheet: Sheet, window: _Window, limit: int) -> list[Entry]:
    rng, kind, (left, top, right, bottom) = sheet.rng, window.type, window.box
    pitch = kind.height * rng.uniform(1.1, 1.8)
    most, ruled, used = int((bottom - top) // pitch), rng.random() < 0.5, set[str]()
    closing = most > 4 and rng.random() < 0.5
    entries: list[Entry] = []
    for number in range(int(rng.integers(2, min(most - 2 * closing, max(3, limit // 4), 16) + 1))):
        value, y = prose.setting(rng), top + number * pitch
        label = prose.name(rng, kind, window.room - kind.width(value) - kind.size, used)
        if ruled and number:
            sheet.draw.line((left, y, right, y), fill=window.accent)
        _print_pair(sheet, kind, window.ink, (left, y + (pitch - kind.height) / 2, right), label, value)
        entries.append(Entry("setting", label, value))
    return entries + (_add_buttons(sheet, window) if closing else [])


def _fill_chat(sheet: Sheet, window: _Window, limit: int) -> list[Entry]:
    rng, kind, pad, (left, y, right, bottom) = sheet.rng, window.type, window.pad, window.box
    fills = (window.accent, hsv(rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.1, 1.0)))
    inks = [sheet.draw_ink(fill) for fill in fills]
    entries: list[Entry] = []
    while limit > 0 and (most := int((bottom - y - 2 * pad) // kind.height)) > 0:
        words = prose.sentence(rng, int(rng.integers(1, min(12, 1 + limit // 2) + 1)))
        rows, side = kind.rows(rng, words, 0.72 * window.room)[:most], int(rng.integers(2))
        wide, high = max(map(kind.width, rows)), kind.height * len(rows)
        x = (left + pad, right - pad - wide)[side]
        sheet.panel((x - pad, y, x + wide + pad, y + high + 2 * pad), fills[side], radius=pad)
        for number, row in enumerate(rows):
            sheet.print_row(kind, inks[side], y + pad + number * kind.height + kind.ascent, (x, row))
        entries.append(Entry("message", ("left", "right")[side], " ".join(rows)))
        y, limit = y + high + 3 * pad, limit - len(words)
    return entries


def ask_page(rng: np.random.Generator, facts: PageFacts) -> Asked:
    """Asks to read the whole text or, half of the time, for a part of it."""
    if rng.random() < 0.5:
        return say_any(rng, dict.fromkeys(("pages.read", f"pages.read-{facts.kind}"), caption_page(facts)))
    topic, entry, answer = pick(rng, _line_topics(facts) if not facts.entries else _topics(rng, facts.entries))
    return say(rng, f"pages.{topic}", answer, label=entry.label, value=entry.value)


_Topic = tuple[str, Entry, str]
"""What to ask for, the part that it is asked of, and the answer."""


def _line_topics(facts: PageFacts) -> list[_Topic]:
    answers = {"first": facts.lines[0], "last": facts.lines[-1], "lines": str(len(facts.lines))}
    if len(facts.lines) > 9:
        del answers["lines"]
    return [(topic, Entry("", "", ""), answer) for topic, answer in answers.items()]


def _topics(rng: np.random.Generator, entries: Sequence[Entry]) -> list[_Topic]:
    topics = [(entry.role, entry, entry.value) for entry in entries if entry.role not in ("button", "message")]
    topics += [("on", e, "yes" if e.value == "On" else "no") for e in entries if e.value in ("On", "Off")]
    by_role = {role: [entry for entry in entries if entry.role == role] for role in ("item", "button", "message")}
    if items := by_role["item"]:
        prices = sorted(items, key=lambda item: float(item.value.lstrip("$")))
        topics += [("whose", e, e.label) for e in items if sum(e.value == other.value for other in items) == 1]
        topics.append(("items", items[0], str(len(items))))
        topics += [("cheapest", e, e.label) for e in prices[:1] if e.value != prices[1].value]
        topics += [("dearest", e, e.label) for e in prices[-1:] if e.value != prices[-2].value]
    if buttons := by_role["button"]:
        other = Entry("button", "", prose.label(rng, "button"))
        topics += [("button", e, "yes" if e in buttons else "no") for e in (*buttons[:1], other)]
        topics += [("buttons", other, str(len(buttons))), ("leftmost", other, buttons[0].value)]
    if messages := by_role["message"]:
        for ordinal, message in (("first", messages[0]), ("last", messages[-1])):
            named = message._replace(label=ordinal)
            topics += [("message", named, message.value), ("side", named, message.label)]
    return topics
