"""A job's rows as one HTML page: statistics of all of them, and a gallery of some that can be searched."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from vl.files import write_file
from vl.jobs.errors import JobError
from vl.jobs.prompts import TAKEN
from vl.jobs.rowfile import Row
from vl.jobs.statistics import Histogram, Statistics
from vl.jobs.stored import Rewritten, Stored, stored_rows
from vl.jobs.thumbnails import thumbnails
from vl.pages import render_page

IMAGES = 1000
"""Images that a page shows, if nothing is said: some 10 MB."""

_LOOKS = 5  # at rows that a job takes away meanwhile
_LISTED = 20  # causes of errors, slow images, repeated captions
_LONGEST = 20_000  # characters of a text on the page


@dataclass(frozen=True)
class _Card:
    """A row as the page shows it."""

    place: int
    row: Row
    name: str
    picture: str
    texts: dict[str, str]
    values: dict[str, str]
    prompts: dict[str, str]
    slow: bool

    @property
    def kinds(self) -> str:
        """What it can be chosen by."""
        row = self.row
        found = {"error": bool(row["error"]), "caption": not row["error"], "cut": row.get("finish_reason") == "length"}
        found |= {"copy": row.get("seconds") == 0, "slow": self.slow}
        return " ".join(name for name, is_so in found.items() if is_so)

    @property
    def length(self) -> int:
        return sum(map(len, self.texts.values()))


def write_report(
    out: str | os.PathLike[str], path: str | os.PathLike[str], *, images: int = IMAGES, column: str | None = None
) -> Statistics:
    """Write a page about the rows of an output, which may still be written. It needs no network and no other file.

    Args:
        out: as of `caption_images`.
        path: of the page; replaced if it is there.
        images: shown at most; the statistics are of all rows.
        column: where tables among the sources have their images, as of `caption_images`.

    Raises:
        JobError: if the output cannot be read, or the page cannot be written.
    """
    name = os.fspath(out)
    if os.path.realpath(path) == os.path.realpath(name):
        raise JobError(f"{name} holds the rows: write the page into another file")
    try:
        found = _counted(out, images)
        with closing(found.repeated):
            page = _render(name, found, column)
            write_file(Path(path), page.encode("utf-8", "replace"))
    except OSError as error:
        raise JobError(f"cannot write {os.fspath(path)}: {error.strerror or error}: choose another place") from error
    except sqlite3.Error as error:
        raise JobError(f"texts cannot be counted in a temporary file ({error}): make room in its folder") from error
    return found


def _counted(out: str | os.PathLike[str], images: int) -> Statistics:
    """All rows as they were at one moment: where a job takes some away meanwhile, from the start again."""
    for _ in range(_LOOKS - 1):
        with suppress(Rewritten):
            return _once(out, images)
    return _once(out, images)


def _once(out: str | os.PathLike[str], images: int) -> Statistics:
    found = Statistics(images)
    try:
        for stored in stored_rows(out):
            found.add(stored)
    except BaseException:
        found.repeated.close()
        raise
    return found


def _render(name: str, found: Statistics, column: str | None) -> str:
    shown = found.shown()
    slow = {place for place, _ in found.slowest}
    pictures = thumbnails((stored for _, stored in shown), column)
    return render_page(
        "vl.jobs",
        "report",
        name=name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        found=found,
        counts=_counts(found),
        charts=_charts(found),
        causes=found.causes.most_common(_LISTED),
        repeated=[(text[:_LONGEST], number) for text, number in found.repeated.most_common(_LISTED)],
        slowest=[stored.row for _, stored in found.slowest[:_LISTED]],
        cards=[
            _card(place, stored, picture, place in slow)
            for (place, stored), picture in zip(shown, pictures, strict=True)
        ],
    )


def _card(place: int, stored: Stored, picture: str, slow: bool) -> _Card:
    row, prompt = stored.row, stored.row.get("prompt")
    texts = {name: text[:_LONGEST] for name, text in stored.texts.items()}
    values = {name: _told(value) for name, value in stored.values.items()}
    prompts = prompt if isinstance(prompt, dict) else {"": prompt or ""}
    name = PurePath(row["image"]).name or row["image"]
    return _Card(place + 1, dict.fromkeys(TAKEN) | row, name, picture, texts, values, prompts, slow)


def _told(value: Any) -> str:
    if value is None:
        return "–"
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:_LONGEST]


def _counts(found: Statistics) -> list[tuple[str, str]]:
    rows = max(found.rows, 1)
    return [
        ("rows", f"{found.rows:,}"),
        ("captions", f"{found.captions:,}"),
        ("errors", f"{found.errors:,} ({found.errors / rows:.1%})"),
        ("cut by the token limit", f"{found.cut:,} ({found.cut / rows:.1%})"),
        ("copies of the same file", f"{found.copies:,}"),
        ("prompt tokens", f"{found.prompt_tokens:,}"),
        ("image tokens", f"{found.image_tokens:,}"),
        ("tokens written", f"{found.completion_tokens:,}"),
        ("seconds in the engine", f"{found.seconds.sum:,.1f}"),
        ("model", ", ".join(found.models)),
    ]


@dataclass(frozen=True)
class _Chart:
    """A histogram: of each bar its share of the highest, and what it says."""

    title: str
    told: str
    bars: list[tuple[float, str]]
    least: str
    most: str


def _charts(found: Statistics) -> list[_Chart]:
    kinds = [
        ("caption length", "characters", found.characters),
        ("tokens written", "tokens", found.tokens),
        ("time of an image", "seconds", found.seconds),
    ]
    return [_chart(title, unit, histogram) for title, unit, histogram in kinds if histogram.number]


def _chart(title: str, unit: str, histogram: Histogram) -> _Chart:
    highest = max(histogram.counts)
    bars = [(number / highest, f"{least:,g} to {most:,g} {unit}: {number:,}") for least, most, number in histogram.bars]
    told = f"mean {histogram.mean:,.4g}, most {histogram.most:,.4g} {unit}"
    return _Chart(title, told, bars, "0", f"{histogram.bars[-1][1]:,g}")
