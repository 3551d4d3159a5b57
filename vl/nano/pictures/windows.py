"""Windows of a program: a title and perhaps a menu above a message, settings or a chat."""

from __future__ import annotations

from itertools import accumulate

from vl.nano.pictures.canvas import hsv, pick
from vl.nano.pictures.fonts import Face
from vl.nano.pictures.sheets import Entry, Sheet


def paint_window(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    """Prints a window of up to `limit` words; returns the size of its type and what can be asked for."""
    window = _Window(sheet, face)
    fills = (window.fill_dialog, window.fill_settings, window.fill_chat)
    fill = window.fill_listing if face.monospaced and sheet.rng.random() < 0.7 else pick(sheet.rng, fills)
    return window.type.size, [window.title, *fill(max(1, limit - 11))]  # the most words of titles, menus and buttons


class _Window:
    """A window with its title and menu: `left`, `top`, `right` and `bottom` are where its contents may lie."""

    def __init__(self, sheet: Sheet, face: Face) -> None:
        self.sheet, self.rng, self.prose = sheet, sheet.rng, sheet.prose
        self.type = sheet.draw_type(face, 14, 10, 28)
        rng, line, size = self.rng, self.type.height, self.type.size
        wide = max(14 * size, rng.uniform(0.5, 1.0) * sheet.width)
        high = max(10 * size, 8.2 * line, rng.uniform(0.5, 1.0) * sheet.height)
        left, top = sheet.place(wide, high)
        light = rng.random() < 0.6
        tone = (rng.uniform(0, 0.12), rng.uniform(0.88, 1.0)) if light else (rng.random(), rng.uniform(0, 0.3))
        self.body = hsv(rng.uniform(0, 360), *tone)
        self.accent = hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95))
        self.pad = pad = 2 + size // 4
        sheet.panel((left, top, left + wide, top + high), self.body, self.accent)
        self.left, self.right, self.bottom = left + 2 * pad, left + wide - 2 * pad, top + high - pad
        self.room = self.right - self.left
        self.ink = sheet.draw_ink(self.body)
        bar = line + 2 * pad
        sheet.panel((left, top, left + wide, top + bar), self.accent)
        self.title = self.add_title(top + pad)
        self.top = top + bar + pad
        if high > bar + 7 * line + 4 * pad and rng.random() < 0.4:
            sheet.print_row(self.type, self.ink, self.top, *self.side_by_side(5, "menu", 0.0))
            self.top += line + pad
            sheet.draw.line((left, self.top - pad / 2, left + wide, self.top - pad / 2), fill=self.accent)

    def add_title(self, top: float) -> Entry:
        """Prints the title, beside three buttons that hold nothing."""
        rng, sheet, kind = self.rng, self.sheet, self.type
        ink, size, first = sheet.draw_ink(self.accent), 0.6 * kind.size, rng.random() < 0.5
        room = self.room - 5 * size
        text = self.prose.fitted(self.prose.window_title, lambda text: kind.width(text) <= room)
        for number in range(3):
            x = (self.left if first else self.right - 3.8 * size) + 1.4 * size * number
            y = top + (kind.height - size) / 2
            sheet.panel((x, y, x + size, y + size), self.accent, ink, radius=0.5 * size * first)
        x = self.left + 5 * size * first + (rng.random() < 0.4) * (room - kind.width(text)) / 2
        sheet.print_row(kind, ink, top, (x, text))
        return Entry("title", "", text)

    def side_by_side(self, most: int, kind: str, align: float) -> list[tuple[float, str]]:
        """One to `most` different labels and their left edges, two ems apart; the first one always fits."""
        labels: list[str] = []
        free, gap = self.room, 2.0 * self.type.size
        for _ in range(int(self.rng.integers(1, most + 1))):
            label = self.prose.label(kind)
            if label not in labels and (wide := self.type.width(label) + gap) <= free:
                labels.append(label)
                free -= wide
        edges = accumulate((self.type.width(label) + gap for label in labels), initial=gap / 2 + align * free)
        return [(self.left + x, label) for label, x in zip(labels, edges, strict=False)]

    def add_buttons(self) -> list[Entry]:
        """Prints a row of buttons at the bottom, as high as a line and a pad."""
        sheet, kind = self.sheet, self.type
        fill, radius = pick(self.rng, (self.accent, self.body)), 0.5 * kind.size * self.rng.random()
        top, ink = self.bottom - kind.height - self.pad, sheet.draw_ink(fill)
        cells = self.side_by_side(3, "button", 0.5 * int(self.rng.integers(3)))
        for x, label in cells:
            box = (x - 0.7 * kind.size, top, x + kind.width(label) + 0.7 * kind.size, self.bottom)
            sheet.panel(box, fill, self.ink, radius=radius)
        sheet.print_row(kind, ink, top + self.pad / 2, *cells)
        return [Entry("button", "", label) for _, label in cells]

    def fill_dialog(self, limit: int) -> list[Entry]:
        line = self.type.height
        most = int((self.bottom - self.top - line - 2 * self.pad) // line)
        words = self.prose.paragraph(int(self.rng.integers(2, max(3, min(limit, 90)) + 1)))
        for number, row in enumerate(self.prose.set_rows(self.type, words, self.room)[:most]):
            self.sheet.print_row(self.type, self.ink, self.top + number * line, (self.left, row))
        return self.add_buttons()

    def fill_settings(self, limit: int) -> list[Entry]:
        rng, kind, ends = self.rng, self.type, (self.left, self.right)
        pitch = kind.height * rng.uniform(1.1, 1.8)
        most, ruled, used = int((self.bottom - self.top) // pitch), rng.random() < 0.5, set[str]()
        closing = most > 4 and rng.random() < 0.5
        entries: list[Entry] = []
        for number in range(int(rng.integers(2, min(most - 2 * closing, max(3, limit // 4), 16) + 1))):
            value, y = self.prose.setting(), self.top + number * pitch
            label = self.prose.name(kind, self.room - kind.width(value) - kind.size, used)
            if ruled and number:
                self.sheet.draw.line((self.left, y, self.right, y), fill=self.accent)
            self.sheet.print_pair(kind, self.ink, y + (pitch - kind.height) / 2, ends, label, value)
            entries.append(Entry("setting", label, value))
        return entries + (self.add_buttons() if closing else [])

    def fill_listing(self, limit: int) -> list[Entry]:
        """Lines of programs, markup and commands, each as far indented as it happens to be."""
        kind, y, depth = self.type, self.top, 0
        while limit > 0 and y + kind.height <= self.bottom:
            left = self.left + min(2 * depth * kind.width("0"), self.room / 2)
            line = self._fitted_line(self.right - left)
            self.sheet.print_row(kind, self.ink, y, (left, line))
            y, limit, depth = y + kind.height, limit - len(line.split()), self.prose.whole(min(4, depth + 2))
        return []

    def _fitted_line(self, room: float) -> str:
        return self.prose.fitted(lambda: self.prose.usual("program"), lambda text: self.type.width(text) <= room)

    def fill_chat(self, limit: int) -> list[Entry]:
        rng, kind, pad, y = self.rng, self.type, self.pad, self.top
        fills = (self.accent, hsv(rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.1, 1.0)))
        inks = [self.sheet.draw_ink(fill) for fill in fills]
        entries: list[Entry] = []
        while limit > 0 and (most := int((self.bottom - y - 2 * pad) // kind.height)) > 0:
            words = self.prose.sentence(int(rng.integers(1, min(12, 1 + limit // 2) + 1)))
            rows, side = self.prose.set_rows(kind, words, 0.72 * self.room)[:most], int(rng.integers(2))
            wide, high = kind.widest(rows), kind.height * len(rows)
            x = (self.left + pad, self.right - pad - wide)[side]
            self.sheet.panel((x - pad, y, x + wide + pad, y + high + 2 * pad), fills[side], radius=pad)
            for number, row in enumerate(rows):
                self.sheet.print_row(kind, inks[side], y + pad + number * kind.height, (x, row))
            entries.append(Entry("message", ("left", "right")[side], " ".join(rows)))
            y, limit = y + high + 3 * pad, limit - len(words)
        return entries
