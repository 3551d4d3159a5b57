"""Questions about tables, with the answers that their facts give, and their canonical captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from numpy.random import Generator

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.chart_questions import EASY, GAP, ValueQuestions, outstanding
from vl.nano.pictures.questions import Asked, listed, looked, missing, none_of, numbered, reckon, starred
from vl.nano.pictures.tables import TableFacts

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def describe_table(facts: TableFacts) -> str:
    """The canonical caption: the title, then the names of columns and rows."""
    start = "A table" + (f' titled "{facts.title}"' if facts.title else "")
    columns, rows = listed(facts.header), listed([row[0] for row in facts.rows])
    return f"{start} with {len(facts.header)} columns, {columns}, and {len(facts.rows)} rows, {rows}."


class _TableQuestions(ValueQuestions[TableFacts]):
    kind = "tables"

    def numeric(self) -> tuple[int, tuple[float, ...]] | None:
        """A column of numbers and its values."""
        columns = [(at, values) for at, values in enumerate(self.facts.values) if values]
        return pick(self.rng, columns) if columns else None

    def cell(self) -> Asked:
        row, column = int(self.rng.integers(len(self.facts.rows))), int(self.rng.integers(1, len(self.facts.header)))
        cells, thought = self.facts.rows[row], self.down(column, [row])
        return self.say("cell", cells[column], name=cells[0], head=self.facts.header[column], thought=thought)

    def down(self, column: int, last: Iterable[int] | None = None, then: str = "") -> str:
        """What is looked at: the header up to a column, and down that column what each row has in it."""
        return f"{looked(self.facts.header, [column])}: {looked(self.pairs(column), last, then)}"

    def pairs(self, column: int) -> list[str]:
        return [f"{row[0]} {row[column]}" for row in self.facts.rows]

    def absent(self) -> Asked:
        """A cell of a row or a column that is not there."""
        facts, column = self.facts, int(self.rng.integers(1, len(self.facts.header)))
        if self.chance(0.5):
            name, row = self.other_name(facts.header), pick(self.rng, facts.rows)
            thought = looked(facts.header, None, missing(name))
            return self.say("cell", none_of(name), name=row[0], head=name, thought=thought)
        name = self.other_name([other[0] for other in facts.rows])
        thought = self.down(column, None, missing(name))
        return self.say("cell", none_of(name), name=name, head=facts.header[column], thought=thought)

    def place(self) -> Asked:
        row, column = int(self.rng.integers(len(self.facts.rows))), int(self.rng.integers(len(self.facts.header)))
        answer = {"place": self.facts.rows[row][column]}
        named = {"column": _ORDINALS[column], "row": _ORDINALS[row]}
        named["thought"] = numbered([other[0] for other in self.facts.rows[: row + 1]])
        if column:
            named["thought"] += f": {numbered(self.facts.rows[row][: column + 1])}"
        return self.say_any(answer, **named) if column else self.name(answer, **named)

    def header(self) -> Asked:
        header = self.facts.header
        column = int(self.rng.integers(len(header)))
        which = _ORDINALS[column] if column < len(header) - 1 or self.chance(0.5) else "last"
        thought = looked(header, None if which == "last" else [column])
        return self.say("header", header[column], which=which, thought=thought)

    def lookup(self) -> Asked | None:
        at, column = int(self.rng.integers(len(self.facts.rows))), int(self.rng.integers(1, len(self.facts.header)))
        row, head = self.facts.rows[at], self.facts.header[column]
        if [other[column] for other in self.facts.rows].count(row[column]) > 1:
            return None
        return self.name({"lookup": row[0]}, value=row[column], head=head, thought=self.down(column, [at]))

    def extreme(self) -> Asked | None:
        highest = self.chance(0.5)
        if (numeric := self.numeric()) is None:
            return None
        column, values = numeric
        if (at := outstanding(values, max(values), highest=highest)) is None:
            return None
        row, head = self.facts.rows[at], self.facts.header[column]
        named = {"head": head, "word": "highest" if highest else "lowest"}
        stars = starred(self.pairs(column), values, highest=highest)
        named["thought"] = f"{looked(self.facts.header, [column])}: {stars}"
        if self.chance(0.3):
            return self.say("extreme-value", row[column], **named)
        return self.name({"extreme": row[0]}, **named)

    def count(self) -> Asked:
        header, names = self.facts.header, [row[0] for row in self.facts.rows]
        answers = {"columns": str(len(header)), "rows": str(len(names))}
        return self.say_any(answers, thought={"columns": numbered(header), "rows": numbered(names)})

    def compare(self) -> Asked | None:
        if (numeric := self.numeric()) is None:
            return None
        (column, values), (a, b) = numeric, self.two(len(self.facts.rows))
        first, second = (
            f"the {self.facts.header[column]} of {self.facts.rows[a][0]}",
            f"that of {self.facts.rows[b][0]}",
        )
        said = (self.pairs(column)[at] for at in (a, b))
        thought = self.down(column, [a, b], (">" if values[a] > values[b] else "<").join(said))
        return self.compared(first, second, values[a] - values[b], GAP * max(values), thought)

    def has(self) -> Asked:
        """Whether there is a column, or a row, of a name."""
        topic = pick(self.rng, ("has", "has-row"))
        names = self.facts.header if topic == "has" else tuple(row[0] for row in self.facts.rows)
        if self.chance(0.5):
            at = int(self.rng.integers(len(names)))
            return self.whether(topic, True, name=names[at], thought=looked(names, [at]))
        return self.whether(topic, False, name=self.other_name(names), thought=looked(names))

    def easy(self) -> tuple[int, int, int, tuple[float, ...]] | None:
        """A column, two of its rows, the higher value's first, and its values, if they are easy to do sums with."""
        if (numeric := self.numeric()) is None:
            return None
        (column, values), pair = numeric, self.two(len(self.facts.rows))
        high, low = sorted(pair, key=lambda at: -values[at])
        whole = all(value.is_integer() and value <= EASY for value in values)
        return (column, high, low, values) if whole else None

    def reckoned(self, topic: str, sign: str) -> Asked | None:
        if (easy := self.easy()) is None:
            return None
        (column, high, low, values), rows = easy, self.facts.rows
        answer = round(values[high] + values[low] if sign == "+" else values[high] - values[low])
        if not answer:
            return None
        steps = reckon(round(values[high]), round(values[low]), sign)
        seen = self.pairs(column)
        thought = self.down(column, [high, low], f"{seen[high]}, {seen[low]}: {steps}")
        first, second = (rows[at][0] for at in sorted((high, low), reverse=self.chance(0.5)))
        return self.say(topic, str(answer), head=self.facts.header[column], first=first, second=second, thought=thought)

    def difference(self) -> Asked | None:
        return self.reckoned("difference", "-")

    def sum(self) -> Asked | None:
        return self.reckoned("sum", "+")


def ask_table(rng: Generator, facts: TableFacts, part: str = "all", *, kinds: Sequence[str] = ()) -> Asked:
    """Draws a question, one of `kinds` if any are named, that the table answers beyond dispute.

    Raises:
        ValueError: for a kind that does not exist, or when the table admits none of them.
    """
    return _TableQuestions(rng, facts, part).ask(kinds)
