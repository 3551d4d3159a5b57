"""Receipts: items and sums that add up, between a shop's name and thanks."""

from __future__ import annotations

from collections.abc import Callable

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.english import phrases
from vl.nano.pictures.fonts import Face
from vl.nano.pictures.pen import Type
from vl.nano.pictures.prose import Prose
from vl.nano.pictures.sheets import Entry, Sheet

_SUMS = ("total", "extra", "between", "paid", "change")


def paint_receipt(sheet: Sheet, face: Face, limit: int) -> tuple[int, list[Entry]]:
    """Prints a receipt of up to `limit` words; returns the size of its type and what can be asked for."""
    rng, prose, kind = sheet.rng, sheet.prose, sheet.draw_type(face, 14, 10, 32)
    pad, pitch = 4 + kind.size // 2, kind.height * rng.uniform(1.05, 1.4)
    slip = _Slip(prose, kind, sheet.width - 2 * pad)
    spare = int((sheet.height - 2 * pad) // pitch) - 1  # beside the shop's name
    items, sums = slip.entries(spare, max(3, (limit - 24) // 4))  # with what else there is, `limit` words
    spare -= len(items) + len(sums)
    heads = int(rng.integers(min(2, spare) + 1))
    rows = [slip.row(lambda: prose.titled(3)), *(slip.row(prose.address) for _ in range(heads))]
    ruled = {len(rows), len(rows) + len(items)} if rng.random() < 0.7 else set()
    rows += [(entry.label, entry.value) for entry in (*items, *sums)]
    if spare > heads and rng.random() < 0.5:
        rows.append(slip.row(prose.thanks))
    need = max(slip.width(*row) for row in rows)
    wide, high = rng.uniform(need, min(slip.room, 1.8 * need)), pitch * len(rows)
    left, top = sheet.place(wide, high, pad)
    ink = sheet.draw_ink(sheet.paper((left - pad, top - pad, left + wide + pad, top + high + pad)))
    for number, row in enumerate(rows):
        y = top + number * pitch
        if number in ruled:
            sheet.draw.line((left, y, left + wide, y), fill=ink, width=1 + kind.size // 24)
        sheet.print_pair(kind, ink, y + (pitch - kind.height) / 2, (left, left + wide), *row)
    return kind.size, [*items, *sums]


class _Slip:
    """The rows of a receipt in one type, none of them wider than `room` px."""

    def __init__(self, prose: Prose, kind: Type, room: float) -> None:
        self.prose, self.rng, self.type, self.room = prose, prose.rng, kind, room
        self.sign = pick(self.rng, ("", "", "", "$", "$", "£", "€"))
        # No word stands in two labels, so that each price can be asked for.
        self.used = {word.lower() for name in _SUMS for label in phrases()[name] for word in label.split()}

    def width(self, label: str, value: str = "") -> float:
        """The least room that a row takes."""
        return self.type.width(label + value) + 1.5 * self.type.size * bool(value)

    def row(self, draw: Callable[[], str]) -> tuple[str, str]:
        """A row without an amount that fits."""
        return self.prose.fitted(draw, lambda text: self.width(text) <= self.room), ""

    def entry(self, role: str, cents: int, usual: str = "") -> Entry:
        """An amount under one of the `usual` labels that fit or else the shortest; without, under a name of its own."""
        value = f"{self.sign}{cents / 100:.2f}"
        if not usual:
            room = self.room - self.width("", value)
            return Entry(role, self.prose.name(self.type, room, self.used), value)
        labels = phrases()[usual]
        fitting = [label for label in labels if self.width(label, value) <= self.room]
        return Entry(role, pick(self.rng, fitting or [min(labels, key=len)]), value)

    def entries(self, rows: int, most: int) -> tuple[list[Entry], list[Entry]]:
        """Two to `most` items, and the sums: in all up to `rows` of them, and three at least."""
        rng = self.rng
        prices = [self.prose.price() for _ in range(int(rng.integers(2, max(2, min(rows - 1, most)) + 1)))]
        spare, total = rows - 1 - len(prices), sum(prices)
        items, sums = [self.entry("item", cents) for cents in prices], []
        if spare >= 2 and rng.random() < 0.5:
            extra = 1 + round(total * rng.uniform(0.03, 0.2))
            sums = [self.entry("sum", total, "between"), self.entry("sum", extra, "extra")]
            total, spare = total + extra, spare - 2
        sums.append(self.entry("total", total, "total"))
        if spare >= 2 and rng.random() < 0.4:
            paid = (total // 500 + 1) * 500
            sums += [self.entry("sum", paid, "paid"), self.entry("sum", paid - total, "change")]
        return items, sums
