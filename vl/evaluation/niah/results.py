"""What came of the prompts: rows, and their means by length and depth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A prompt with the model's answer and its score from 0 to 1, or with the error that cost it.

    `length` and `depth` say which cell of the grid it counts for, None for a record that could not be read so far;
    `tokens` is what the prompt really has, `reasoning` what the model thought before the answer, which is not scored.
    """

    id: str
    length: int | None = None
    depth: float | None = None
    question: str = ""
    reference: str = ""
    tokens: int | None = None
    reasoning: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    score: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Result:
    """All rows of a test.

    Attributes:
        settings: what the answers depend on beside the prompts: model, kind of prompts and so on.
        depths: in percent; the rows of the table, those without a prompt among them.
    """

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    depths: tuple[float, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the prompts, rising."""
        return tuple(sorted({row.length for row in self.rows if row.length is not None}))

    @property
    def errors(self) -> list[Row]:
        return [row for row in self.rows if row.error is not None]

    def score(self, length: int | None = None, depth: float | None = None) -> float | None:
        """The mean of a cell, of a length, of a depth, or of all; None where nothing was scored."""
        scores = [
            row.score
            for row in self.rows
            if row.score is not None and length in (None, row.length) and depth in (None, row.depth)
        ]
        return sum(scores) / len(scores) if scores else None

    def cells(self) -> list[list[float | None]]:
        """The means: a list for each depth, of each length."""
        return [[self.score(length, depth) for length in self.lengths] for depth in self.depths]

    def to_json(self) -> dict[str, Any]:
        """Everything: the means by cell and by length, the errors and the rows."""
        return self.summary() | {"rows": [row.to_json() for row in self.rows]}

    def summary(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            **self.settings,
            "count": sum(row.score is not None for row in self.rows),
            "score": self.score(),
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "by_length": [self.score(length) for length in self.lengths],
            "cells": self.cells(),
            "errors": [{"id": row.id, "error": row.error} for row in self.errors],
        }


def short(length: int) -> str:
    """A length as it is written in commands and charts: 1024 is 1K, 2**20 is 1M."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if length >= unit and length % unit == 0:
            return f"{length // unit}{name}"
    return str(length)
