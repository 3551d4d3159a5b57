"""What a job's rows say in all, counted as they pass by: memory does not grow with them."""

from __future__ import annotations

import heapq
import re
import sqlite3
from collections import Counter
from hashlib import blake2b
from typing import Generic, TypeVar

from vl.jobs.stored import Stored

T = TypeVar("T")

_CAUSES = 1000  # that are counted apart
_STEPS = 24
_BATCH = 1000  # captions that are counted at once


class Histogram:
    """Counts of numbers from 0 in equal steps, which double when one lies beyond the last."""

    def __init__(self, step: float) -> None:
        self.step, self.counts = step, [0] * _STEPS
        self.number, self.sum, self.most = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        while value >= self.step * _STEPS:
            self.counts = [*map(sum, zip(self.counts[::2], self.counts[1::2], strict=True)), *[0] * (_STEPS // 2)]
            self.step *= 2
        self.counts[int(value / self.step)] += 1
        self.number, self.sum, self.most = self.number + 1, self.sum + value, max(self.most, value)

    @property
    def mean(self) -> float:
        return self.sum / self.number if self.number else 0.0

    @property
    def bars(self) -> list[tuple[float, float, int]]:
        """Steps with their counts, up to the last that has any."""
        used = max((i for i, number in enumerate(self.counts) if number), default=-1) + 1
        return [(i * self.step, (i + 1) * self.step, self.counts[i]) for i in range(used)]


class Spread(Generic[T]):
    """Some of a sequence of any length, evenly spread over it and in its order: the same in every run."""

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self._kept: list[T] = []

    def add(self, item: T) -> None:
        if self._seen % self._every == 0:
            self._kept.append(item)
            if len(self._kept) > 2 * self._most:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._seen += 1

    @property
    def items(self) -> list[T]:
        """At most twice as many as were asked for."""
        return list(self._kept)


def evenly(items: list[T], most: int) -> list[T]:
    """At most so many of them, in order."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


class Repeated:
    """How often each text comes, counted on disk; one that comes once is not kept."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")
        self._db.execute("CREATE TABLE texts (id BLOB PRIMARY KEY, number INTEGER, text TEXT) WITHOUT ROWID")
        self._waiting: list[tuple[bytes, str]] = []

    def add(self, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self._waiting.append((blake2b(content, digest_size=16).digest(), content.decode()))
        if len(self._waiting) >= _BATCH:
            self._count()

    def most_common(self, most: int) -> list[tuple[str, int]]:
        """Those that come several times."""
        self._count()
        query = "SELECT text, number FROM texts WHERE number > 1 ORDER BY number DESC, id LIMIT ?"
        return list(self._db.execute(query, (most,)))

    def close(self) -> None:
        self._db.close()

    def _count(self) -> None:
        again = "ON CONFLICT (id) DO UPDATE SET number = number + 1, text = ?2"
        self._db.executemany(f"INSERT INTO texts VALUES (?1, 1, NULL) {again}", self._waiting)
        self._waiting.clear()


class Statistics:
    """Counts of all rows, and which of them a page shows.

    Args:
        images: shown at most: errors (a fifth of them, or what captions leave), the slowest (a twentieth), and others
            spread over all.
    """

    def __init__(self, images: int) -> None:
        self.rows = self.errors = self.cut = self.copies = 0
        self.prompt_tokens = self.image_tokens = self.completion_tokens = 0
        self.characters, self.tokens, self.seconds = Histogram(8), Histogram(8), Histogram(1 / 32)
        self.causes: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.repeated = Repeated()
        self._images = images
        self._captions: Spread[tuple[int, Stored]] = Spread(images)
        self._failed: Spread[tuple[int, Stored]] = Spread(images)
        self._slowest: list[tuple[float, int, Stored]] = []

    def add(self, stored: Stored) -> None:
        row, place = stored.row, self.rows
        self.rows += 1
        self._count(self.models, str(row.get("model")))
        for name in ("prompt_tokens", "image_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + (row.get(name) or 0))
        self.cut += row.get("finish_reason") == "length"
        if stored.failed:
            self.errors += 1
            self._count(self.causes, cause_of(row["image"], str(row["error"])))
            self._failed.add((place, stored))
            return
        self._captions.add((place, stored))
        for text in stored.texts.values():
            self.characters.add(len(text))
        if row.get("completion_tokens") is not None:
            self.tokens.add(row["completion_tokens"])
        if row.get("seconds") == 0:
            self.copies += 1
            return
        for text in {*stored.texts.values()}:
            self.repeated.add(text)
        if row.get("seconds") is not None:
            self.seconds.add(row["seconds"])
            heapq.heappush(self._slowest, (row["seconds"], -place, stored))
            if len(self._slowest) > self.slow:
                heapq.heappop(self._slowest)

    @property
    def captions(self) -> int:
        return self.rows - self.errors

    @property
    def slow(self) -> int:
        """How many of the slowest are shown at most."""
        return min(50, -(-self._images // 20))

    @property
    def slowest(self) -> list[tuple[int, Stored]]:
        return [(-place, stored) for _, place, stored in sorted(self._slowest, reverse=True)]

    def shown(self) -> list[tuple[int, Stored]]:
        """Rows with their places among all, in that order."""
        room = max(self._images // 5, self._images - self.captions)
        chosen = [*self.slowest, *evenly(self._failed.items, min(room, self._images - len(self.slowest)))]
        places = {place for place, _ in chosen}
        rest = [found for found in self._captions.items if found[0] not in places]
        return sorted([*chosen, *evenly(rest, self._images - len(chosen))], key=lambda found: found[0])

    def _count(self, counter: Counter[str], name: str) -> None:
        counter[name if name in counter or len(counter) < _CAUSES else "others"] += 1


def cause_of(image: str, error: str) -> str:
    """What an error says without what is its image's alone: names and numbers."""
    told = error.removeprefix(f"{image}: ").replace(image, "…")
    return re.sub(r"0x[0-9a-f]+|\d+", "N", told)[:300]
