"""Windows of a program: a title and perhaps a menu above a message, settings or a chat."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from numpy.random import Generator

from vl.nano.pictures import prose
from vl.nano.pictures.canvas import RGB, Box, hsv, pick
from vl.nano.pictures.fonts import Face
from vl.nano.pictures.pen import Type
from vl.nano.pictures.sheets import Entry, Sheet


class _Window(NamedTuple):
    """Where a window's contents may lie, in what type and which colours."""

    box: Box
    type: Type
    pad: int
    body: RGB
    ink: RGB
    accent: RGB

    @property
    def room(self) -> float:
        return self.box[2] - self.box[0]


def paint_window(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    """Prints a window of up to `limit` words; returns the size of its type and what can be asked for."""
    rng, kind = sheet.rng, sheet.draw_type(face, 14, 10, 28)
    wide = max(14 * kind.size, rng.uniform(0.5, 1.0) * sheet.width)
    high = max(10 * kind.size, 8.2 * kind.height, rng.uniform(0.5, 1.0) * sheet.height)
    left, top = sheet.place(wide, high)
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
        sheet.print_row(kind, window.ink, y, *_side_by_side(rng, window, 5, "menu", 0.0))
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
    sheet.print_row(kind, ink, top, (x, text))
    return Entry("title", "", text)


def _side_by_side(rng: Generator, window: _Window, most: int, kind: str, align: float) -> list[tuple[float, str]]:
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
    sheet.print_row(kind, ink, top + window.pad / 2, *cells)
    return [Entry("button", "", label) for _, label in cells]


def _fill_dialog(sheet: Sheet, window: _Window, limit: int) -> list[Entry]:
    rng, kind, (left, top, _, bottom) = sheet.rng, window.type, window.box
    most = int((bottom - top - kind.height - 2 * window.pad) // kind.height)
    words = prose.paragraph(rng, int(rng.integers(2, max(3, min(limit, 40)) + 1)))
    for number, row in enumerate(prose.set_rows(rng, kind, words, window.room)[:most]):
        sheet.print_row(kind, window.ink, top + number * kind.height, (left, row))
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
        sheet.print_pair(kind, window.ink, y + (pitch - kind.height) / 2, (left, right), label, value)
        entries.append(Entry("setting", label, value))
    return entries + (_add_buttons(sheet, window) if closing else [])


def _fill_chat(sheet: Sheet, window: _Window, limit: int) -> list[Entry]:
    rng, kind, pad, (left, y, right, bottom) = sheet.rng, window.type, window.pad, window.box
    fills = (window.accent, hsv(rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.1, 1.0)))
    inks = [sheet.draw_ink(fill) for fill in fills]
    entries: list[Entry] = []
    while limit > 0 and (most := int((bottom - y - 2 * pad) // kind.height)) > 0:
        words = prose.sentence(rng, int(rng.integers(1, min(12, 1 + limit // 2) + 1)))
        rows, side = prose.set_rows(rng, kind, words, 0.72 * window.room)[:most], int(rng.integers(2))
        wide, high = kind.widest(rows), kind.height * len(rows)
        x = (left + pad, right - pad - wide)[side]
        sheet.panel((x - pad, y, x + wide + pad, y + high + 2 * pad), fills[side], radius=pad)
        for number, row in enumerate(rows):
            sheet.print_row(kind, inks[side], y + pad + number * kind.height, (x, row))
        entries.append(Entry("message", ("left", "right")[side], " ".join(rows)))
        y, limit = y + high + 3 * pad, limit - len(words)
    return entries
