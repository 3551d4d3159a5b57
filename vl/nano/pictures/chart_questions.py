"""Questions about charts and tables, with the answers that their facts give, and their canonical captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.chart_facts import ChartFacts
from vl.nano.pictures.labels import draw_words_apart
from vl.nano.pictures.questions import Asked, Questions, listed
from vl.nano.pictures.tables import TableFacts

GAP = 0.05  # by how much values differ that a question compares: of the axis, the pie, or a column's largest value
_EASY = 100  # differences are asked of whole numbers up to this
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

_Facts = TypeVar("_Facts", ChartFacts, TableFacts)


def describe_chart(facts: ChartFacts) -> str:
    """The canonical caption, such as 'A bar chart titled "Sales by month": Jan 12, Feb 30 and Mar 7.'."""
    start = f"A {facts.kind}" + (f' titled "{facts.title}"' if facts.title else "")
    if len(facts.series) > 1 and facts.printed:
        return f"{start}: {'; '.join(f'{s.name}: {_with_values(facts, s.values)}' for s in facts.series)}."
    named = f" of {listed([s.name for s in facts.series])}" if len(facts.series) > 1 else ""
    return f"{start}{named}: {_with_values(facts, facts.series[0].values)}."


def describe_table(facts: TableFacts) -> str:
    """The canonical caption: the title, then the names of columns and rows."""
    start = "A table" + (f' titled "{facts.title}"' if facts.title else "")
    columns, rows = listed(facts.header), listed([row[0] for row in facts.rows])
    return f"{start} with {len(facts.header)} columns, {columns}, and {len(facts.rows)} rows, {rows}."


def _with_values(facts: ChartFacts, values: Sequence[float]) -> str:
    pairs = zip(facts.categories, values, strict=True)
    return listed([f"{name} {facts.write(value)}" if facts.printed else name for name, value in pairs])


class _ValueQuestions(Questions[_Facts]):
    """What charts and tables are asked alike."""

    def title(self) -> Asked | None:
        return self.say("title", self.facts.title) if self.facts.title else None

    def name(self, answers: dict[str, str], **slots: str) -> Asked:
        """Asks for a name. Years are names: within 5% of each other, they are still different ones."""
        metric = "vqa" if next(iter(answers.values())).isdigit() else None
        return self.say_any(answers, metric=metric, **slots)

    def compared(self, first: str, second: str, more: float, least: float) -> Asked | None:
        """Asks whether one thing is greater than another, as it is by `more`, unless they differ by under `least`."""
        greater = self.chance(0.5)
        if abs(more) < least:
            return None
        return self.whether("greater" if greater else "smaller", (more > 0) == greater, first=first, second=second)

    def two(self, count: int) -> tuple[int, int]:
        """Two different ones of so many."""
        a, b = self.rng.permutation(count)[:2]
        return int(a), int(b)


def _outstanding(values: Sequence[float], scale: float, *, highest: bool) -> int | None:
    """The place of the highest or lowest value, if it is so by GAP of `scale`."""
    order = np.argsort(values) if not highest else np.argsort(-np.asarray(values))
    apart = abs(values[order[0]] - values[order[1]]) >= GAP * scale
    return int(order[0]) if apart else None


class _ChartQuestions(_ValueQuestions[ChartFacts]):
    kind = "charts"

    def cell(self) -> tuple[int, int, dict[str, str]]:
        """A series, a category, and what a question on them can name."""
        facts = self.facts
        row, at = int(self.rng.integers(len(facts.series))), int(self.rng.integers(len(facts.categories)))
        series = facts.series[row]
        named = {"name": facts.categories[at], "series": series.name, "colour": series.colours[at], "mark": facts.mark}
        return row, at, named

    def noun(self) -> str:
        return self.facts.names if self.facts.names and self.chance(0.5) else "category"

    def value(self) -> Asked | None:
        if not self.facts.exact:
            return None
        row, at, named = self.cell()
        topic = "value"
        if len(self.facts.series) > 1:
            topic = "value-of-series"
        elif self.facts.motley and self.chance(0.5):
            topic = "value-by-colour"
        return self.say(topic, self.facts.write(self.facts.series[row].values[at]), **named)

    def extreme(self) -> Asked | None:
        facts, series, highest = self.facts, pick(self.rng, self.facts.series), self.chance(0.5)
        at = _outstanding(series.values, facts.top, highest=highest)
        if at is None:
            return None
        noun, word = self.noun(), "highest" if highest else "lowest"
        size = pick(self.rng, ("largest", "biggest") if highest else ("smallest",))
        topics = ["extreme-of-series" if len(facts.series) > 1 else "extreme"]
        topics += ["extreme-slice"] if facts.kind == "pie chart" else []
        answers = dict.fromkeys(topics, facts.categories[at])
        return self.name(answers, noun=noun, word=word, size=size, series=series.name)

    def extreme_value(self) -> Asked | None:
        if not self.facts.exact:
            return None
        word, extreme = pick(self.rng, (("highest", max), ("lowest", min)))
        value = extreme(value for series in self.facts.series for value in series.values)
        return self.say("extreme-value", self.facts.write(value), word=word)

    def colour(self) -> Asked:
        _, _, named = self.cell()
        topic = "colour-of-line" if self.facts.mark == "line" else "colour-of-bars"
        if len(self.facts.series) > 1:
            topic = "colour-of-series"
        elif self.facts.motley:
            topic = "colour-of-mark"
        answer, named["colour"] = named["colour"], pick(self.rng, ("color", "colour"))
        return self.say(topic, answer, **named)

    def by_colour(self) -> Asked | None:
        _, _, named = self.cell()
        if len(self.facts.series) > 1:
            return self.say("series-by-colour", named["series"], **named)
        if not self.facts.motley:
            return None
        return self.name({"mark-by-colour": named["name"]}, noun=self.noun(), **named)

    def count(self) -> Asked:
        count, several, mark = len(self.facts.categories), len(self.facts.series), self.facts.mark
        answers = {"marks": str(several if mark == "line" else count * several)}
        answers |= {"categories": str(count)} if mark != "slice" else {}
        answers |= {"series": str(several)} if several > 1 else {}
        return self.say_any(answers, mark=mark)

    def count_beyond(self) -> Asked | None:
        """How many bars pass a tick that none comes near."""
        if len(self.facts.series) > 1 or self.facts.mark != "bar":
            return None
        values = np.array(self.facts.series[0].values)
        clear = [t for t in self.facts.ticks[1:-1] if np.abs(values - t[0]).min() >= GAP * self.facts.top]
        if not clear:
            return None
        limit, text = pick(self.rng, clear)
        topic, beyond = ("above", values > limit) if self.chance(0.5) else ("below", values < limit)
        return self.say(topic, str(beyond.sum()), limit=text)

    def compare(self) -> Asked | None:
        facts = self.facts
        cells = [(series, at) for series in facts.series for at in range(len(facts.categories))]
        (one, a), (other, b) = (cells[i] for i in self.two(len(cells)))
        first, second = facts.categories[a], facts.categories[b]
        if len(facts.series) > 1:
            first, second = f"{one.name} at {first}", f"{other.name} at {second}"
        elif facts.motley and self.chance(0.3):
            first, second = (f"the {one.colours[i]} {facts.mark}" for i in (a, b))
        return self.compared(first, second, one.values[a] - other.values[b], GAP * facts.top)

    def difference(self) -> Asked | None:
        facts = self.facts
        if not facts.printed or facts.decimals or len(facts.series) > 1:
            return None
        pairs = list(zip(facts.series[0].values, facts.categories, strict=True))
        (low, less), (high, more) = sorted((pairs[i] for i in self.two(len(pairs))), key=lambda pair: pair[0])
        if high > _EASY or high == low:
            return None
        return self.say("difference", facts.write(high - low), more=more, less=less)

    def title_or_label(self) -> Asked | None:
        if self.facts.label and (not self.facts.title or self.chance(0.4)):
            return self.say("label", self.facts.label)
        return self.title()

    def form(self) -> Asked:
        if self.facts.mark == "bar" and self.chance(0.5):
            return self.say("direction", "horizontal" if self.facts.sideways else "vertical")
        return self.say("kind", self.facts.kind.split()[-2])


class _TableQuestions(_ValueQuestions[TableFacts]):
    kind = "tables"

    def numeric(self) -> tuple[int, tuple[float, ...]] | None:
        """A column of numbers and its values."""
        columns = [(at, values) for at, values in enumerate(self.facts.values) if values]
        return pick(self.rng, columns) if columns else None

    def cell(self) -> Asked:
        row, column = pick(self.rng, self.facts.rows), int(self.rng.integers(1, len(self.facts.header)))
        return self.say("cell", row[column], name=row[0], head=self.facts.header[column])

    def place(self) -> Asked:
        row, column = int(self.rng.integers(len(self.facts.rows))), int(self.rng.integers(len(self.facts.header)))
        answer = {"place": self.facts.rows[row][column]}
        named = {"column": _ORDINALS[column], "row": _ORDINALS[row]}
        return self.say_any(answer, **named) if column else self.name(answer, **named)

    def header(self) -> Asked:
        header = self.facts.header
        column = int(self.rng.integers(len(header)))
        which = _ORDINALS[column] if column < len(header) - 1 or self.chance(0.5) else "last"
        return self.say("header", header[column], which=which)

    def lookup(self) -> Asked | None:
        row, column = pick(self.rng, self.facts.rows), int(self.rng.integers(1, len(self.facts.header)))
        if [other[column] for other in self.facts.rows].count(row[column]) > 1:
            return None
        return self.name({"lookup": row[0]}, value=row[column], head=self.facts.header[column])

    def extreme(self) -> Asked | None:
        highest = self.chance(0.5)
        if (numeric := self.numeric()) is None:
            return None
        column, values = numeric
        if (at := _outstanding(values, max(values), highest=highest)) is None:
            return None
        row, named = (
            self.facts.rows[at],
            {"head": self.facts.header[column], "word": "highest" if highest else "lowest"},
        )
        if self.chance(0.3):
            return self.say("extreme-value", row[column], **named)
        return self.name({"extreme": row[0]}, **named)

    def count(self) -> Asked:
        return self.say_any({"columns": str(len(self.facts.header)), "rows": str(len(self.facts.rows))})

    def compare(self) -> Asked | None:
        if (numeric := self.numeric()) is None:
            return None
        (column, values), (a, b) = numeric, self.two(len(self.facts.rows))
        first, second = (
            f"the {self.facts.header[column]} of {self.facts.rows[a][0]}",
            f"that of {self.facts.rows[b][0]}",
        )
        return self.compared(first, second, values[a] - values[b], GAP * max(values))

    def has(self) -> Asked:
        column = int(self.rng.integers(len(self.facts.header)))
        if self.chance(0.5):
            return self.whether("has", True, name=self.facts.header[column])
        printed = {text.lower()[:3] for text in self.facts.header}
        drawn = draw_words_apart(self.rng, len(printed) + 1)
        return self.whether("has", False, name=next(word.capitalize() for word in drawn if word[:3] not in printed))

    def difference(self) -> Asked | None:
        if (numeric := self.numeric()) is None:
            return None
        (column, values), (a, b) = numeric, self.two(len(self.facts.rows))
        whole = all(value.is_integer() and value <= _EASY for value in values)
        if not whole or values[a] == values[b]:
            return None
        first, second = self.facts.rows[a][0], self.facts.rows[b][0]
        answer = str(round(abs(values[a] - values[b])))
        return self.say("difference", answer, head=self.facts.header[column], first=first, second=second)


def ask_chart(rng: Generator, facts: ChartFacts) -> Asked:
    """Draws a question that the chart answers beyond dispute; values are asked where they can be read exactly."""
    return _ChartQuestions(rng, facts).ask()


def ask_table(rng: Generator, facts: TableFacts) -> Asked:
    """Draws a question that the table answers beyond dispute."""
    return _TableQuestions(rng, facts).ask()
