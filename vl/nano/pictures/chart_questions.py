"""Questions about charts, with the answers that their facts give, and their canonical captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.chart_facts import ChartFacts
from vl.nano.pictures.labels import draw_words_apart
from vl.nano.pictures.questions import (
    Asked,
    Questions,
    listed,
    looked,
    missing,
    none_of,
    numbered,
    reckon,
    starred,
)
from vl.nano.pictures.tables import TableFacts

GAP = 0.05  # by how much values differ that a question compares: of the axis, the pie, or a column's largest value
EASY = 100  # differences and sums are asked of whole numbers up to this
_READ = 0.05  # of its range: how far off a value that is read off an axis may be
_MOST = 10  # values that are looked at one by one

_Facts = TypeVar("_Facts", ChartFacts, TableFacts)


def describe_chart(facts: ChartFacts) -> str:
    """The canonical caption, such as 'A bar chart titled "Sales by month": Jan 12, Feb 30 and Mar 7.'."""
    start = f"A {facts.kind}" + (f' titled "{facts.title}"' if facts.title else "")
    if len(facts.series) > 1 and facts.printed:
        return f"{start}: {'; '.join(f'{s.name}: {_with_values(facts, s.values)}' for s in facts.series)}."
    named = f" of {listed([s.name for s in facts.series])}" if len(facts.series) > 1 else ""
    return f"{start}{named}: {_with_values(facts, facts.series[0].values)}."


def _with_values(facts: ChartFacts, values: Sequence[float]) -> str:
    pairs = zip(facts.categories, values, strict=True)
    return listed([f"{name} {facts.write(value)}" if facts.printed else name for name, value in pairs])


class ValueQuestions(Questions[_Facts]):
    """What charts and tables are asked alike."""

    def title(self) -> Asked | None:
        return self.say("title", self.facts.title) if self.facts.title else None

    def name(self, answers: dict[str, str], thought: str = "", **slots: str) -> Asked:
        """Asks for a name. Years are names: within 5% of each other, they are still different ones."""
        metric = "vqa" if next(iter(answers.values())).isdigit() else None
        return self.say_any(answers, metric=metric, thought=thought, **slots)

    def compared(self, first: str, second: str, more: float, least: float, thought: str = "") -> Asked | None:
        """Asks whether one thing is greater than another, as it is by `more`, unless they differ by under `least`."""
        greater = self.chance(0.5)
        if abs(more) < least:
            return None
        topic, yes = "greater" if greater else "smaller", (more > 0) == greater
        return self.whether(topic, yes, first=first, second=second, thought=thought)

    def other_name(self, printed: Sequence[str]) -> str:
        """A name that is none of those printed, and begins otherwise."""
        begin = {text.lower()[:3] for text in printed}
        drawn = draw_words_apart(self.rng, len(begin) + 1, part=self.part)
        return next(word.capitalize() for word in drawn if word[:3] not in begin)

    def two(self, count: int) -> tuple[int, int]:
        """Two different ones of so many."""
        a, b = self.rng.permutation(count)[:2]
        return int(a), int(b)


def outstanding(values: Sequence[float], scale: float, *, highest: bool) -> int | None:
    """The place of the highest or lowest value, if it is so by GAP of `scale`."""
    order = np.argsort(values) if not highest else np.argsort(-np.asarray(values))
    apart = abs(values[order[0]] - values[order[1]]) >= GAP * scale
    return int(order[0]) if apart else None


class _ChartQuestions(ValueQuestions[ChartFacts]):
    kind = "charts"

    def cell(self) -> tuple[int, int, dict[str, str]]:
        """A series, a category, and what a question on them can name."""
        facts = self.facts
        row, at = int(self.rng.integers(len(facts.series))), int(self.rng.integers(len(facts.categories)))
        series = facts.series[row]
        named = {"name": facts.categories[at], "series": series.name, "colour": series.colours[at], "mark": facts.mark}
        return row, at, named

    def seen(self, row: int) -> list[str]:
        """The categories in order, each with its value in a series where that can be read."""
        facts = self.facts
        if not facts.exact:
            return list(facts.categories)
        pairs = zip(facts.categories, facts.series[row].values, strict=True)
        return [f"{name} {facts.write(value)}" for name, value in pairs]

    def look(self, seen: Sequence[str], last: Iterable[int] | None = None, then: str = "") -> str:
        """What is looked at: values that are read off an axis come after its step and its end."""
        return self.scale() + looked(seen, last, then)

    def scale(self) -> str:
        facts = self.facts
        return f"{facts.ticks[1][1]}, {facts.ticks[-1][1]}: " if facts.exact and not facts.printed else ""

    @property
    def within(self) -> float | None:
        """By how much a value that is read may be off, where that is not a share of it."""
        return None if self.facts.printed else _READ * self.facts.top

    def noun(self) -> str:
        return self.facts.names if self.facts.names and self.chance(0.5) else "category"

    def value(self) -> Asked | None:
        if not self.facts.exact:
            return None
        row, at, named = self.cell()
        topic, seen = "value", self.seen(row)
        if len(self.facts.series) > 1:
            topic = "value-of-series"
        elif self.facts.motley and self.chance(0.5):
            topic = "value-by-colour"
            seen = [f"{colour} {pair}" for colour, pair in zip(self.facts.series[row].colours, seen, strict=True)]
        answer = self.facts.write(self.facts.series[row].values[at])
        return self.say(topic, answer, thought=self.look(seen, [at]), **named)._replace(within=self.within)

    def absent(self) -> Asked | None:
        """The value of something that is not there."""
        if not self.facts.exact or len(self.facts.series) > 1:
            return None
        name = self.other_name(self.facts.categories)
        return self.say("value", none_of(name), name=name, thought=self.look(self.seen(0), None, missing(name)))

    def lookup(self) -> Asked | None:
        """What has a value."""
        row, at, named = self.cell()
        value = named["value"] = self.facts.write(self.facts.series[row].values[at])
        alone = [self.facts.write(other) for series in self.facts.series for other in series.values].count(value) == 1
        if not self.facts.printed or len(self.facts.series) > 1 or not alone:
            return None
        answer = {"lookup": named.pop("name")}
        return self.name(answer, noun=self.noun(), thought=looked(self.seen(row), [at]), **named)

    def extreme(self) -> Asked | None:
        facts, row, highest = self.facts, int(self.rng.integers(len(self.facts.series))), self.chance(0.5)
        series = facts.series[row]
        at = outstanding(series.values, facts.top, highest=highest)
        if at is None:
            return None
        noun, word = self.noun(), "highest" if highest else "lowest"
        size = pick(self.rng, ("largest", "biggest") if highest else ("smallest",))
        topics = ["extreme-of-series" if len(facts.series) > 1 else "extreme"]
        topics += ["extreme-slice"] if facts.kind == "pie chart" else []
        answers = dict.fromkeys(topics, facts.categories[at])
        thought = self.scale() + starred(self.seen(row), series.values, highest=highest) if facts.exact else ""
        return self.name(answers, noun=noun, word=word, size=size, series=series.name, thought=thought)

    def extreme_value(self) -> Asked | None:
        if not self.facts.exact:
            return None
        word, extreme = pick(self.rng, (("highest", max), ("lowest", min)))
        values = [value for series in self.facts.series for value in series.values]
        pairs = [pair for row in range(len(self.facts.series)) for pair in self.seen(row)]
        thought = self.scale() + starred(pairs, values, highest=extreme is max) if len(pairs) <= _MOST else ""
        asked = self.say("extreme-value", self.facts.write(extreme(values)), word=word, thought=thought)
        return asked._replace(within=self.within)

    def colour(self) -> Asked:
        row, at, named = self.cell()
        topic, thought = "colour-of-line" if self.facts.mark == "line" else "colour-of-bars", ""
        if len(self.facts.series) > 1:
            topic, thought = "colour-of-series", self.coloured(row)
        elif self.facts.motley:
            topic, thought = "colour-of-mark", self.coloured(at)
        answer, named["colour"] = named["colour"], pick(self.rng, ("color", "colour"))
        return self.say(topic, answer, thought=thought, **named)

    def coloured(self, last: int) -> str:
        """What is looked at for colours: the series or else the categories, each with its own."""
        series = self.facts.series
        if len(series) > 1:
            return looked([f"{one.name} {one.colours[0]}" for one in series], [last])
        pairs = zip(self.facts.categories, series[0].colours, strict=True)
        return looked([f"{name} {colour}" for name, colour in pairs], [last])

    def by_colour(self) -> Asked | None:
        row, at, named = self.cell()
        if len(self.facts.series) > 1:
            return self.say("series-by-colour", named["series"], thought=self.coloured(row), **named)
        if not self.facts.motley:
            return None
        answer = {"mark-by-colour": named["name"]}
        return self.name(answer, noun=self.noun(), thought=self.coloured(at), **named)

    def count(self) -> Asked:
        count, several, mark = len(self.facts.categories), len(self.facts.series), self.facts.mark
        answers = {"marks": str(several if mark == "line" else count * several)}
        answers |= {"categories": str(count)} if mark != "slice" else {}
        answers |= {"series": str(several)} if several > 1 else {}
        listed_names, series = numbered(self.facts.categories), numbered([one.name for one in self.facts.series])
        thoughts = {"categories": listed_names, "series": series if several > 1 else ""}
        thoughts["marks"] = thoughts["series"] if mark == "line" else listed_names if several == 1 else ""
        return self.say_any(answers, mark=mark, thought=thoughts)

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
        signs = (f"{pair} {'>' if value > limit else '<'}" for pair, value in zip(self.seen(0), values, strict=True))
        thought = f"{self.scale()}{text}: {numbered(list(signs), beyond.tolist())}"
        return self.say(topic, str(beyond.sum()), limit=text, thought=thought)

    def compare(self) -> Asked | None:
        facts = self.facts
        cells = [(series, at) for series in facts.series for at in range(len(facts.categories))]
        (one, a), (other, b) = (cells[i] for i in self.two(len(cells)))
        first, second = facts.categories[a], facts.categories[b]
        seen, last = self.seen(0), [a, b]
        if len(facts.series) > 1:
            first, second = f"{one.name} at {first}", f"{other.name} at {second}"
            seen = []
        elif facts.motley and self.chance(0.3):
            seen = [f"{colour} {pair}" for colour, pair in zip(one.colours, seen, strict=True)]
            first, second = (f"the {one.colours[i]} {facts.mark}" for i in (a, b))
        said = (f"{name} {facts.write(value)}" for name, value in ((first, one.values[a]), (second, other.values[b])))
        verdict = (">" if one.values[a] > other.values[b] else "<").join(said)
        thought = (self.look(seen, last, verdict) if seen else self.scale() + verdict) if facts.exact else ""
        return self.compared(first, second, one.values[a] - other.values[b], GAP * facts.top, thought)

    def easy(self) -> tuple[int, int, float, float] | None:
        """Two categories and their values, the higher first, if these are whole numbers to do sums with."""
        facts = self.facts
        if not facts.printed or facts.decimals or len(facts.series) > 1:
            return None
        values = facts.series[0].values
        high, low = sorted(self.two(len(values)), key=lambda at: -values[at])
        return None if values[high] > EASY else (high, low, values[high], values[low])

    def reckoned(self, easy: tuple[int, int, float, float], sign: str) -> str:
        """What is looked at for a sum or a difference: the values, and the steps of the sum."""
        high, low, *values = easy
        seen = self.seen(0)
        steps = reckon(round(values[0]), round(values[1]), sign)
        return looked(seen, [high, low], f"{seen[high]}, {seen[low]}: {steps}")

    def difference(self) -> Asked | None:
        if (easy := self.easy()) is None or easy[2] == easy[3]:
            return None
        more, less, high, low = easy
        thought = self.reckoned(easy, "-")
        named = {"more": self.facts.categories[more], "less": self.facts.categories[less]}
        return self.say("difference", self.facts.write(high - low), thought=thought, **named)

    def sum(self) -> Asked | None:
        if (easy := self.easy()) is None:
            return None
        one, other, high, low = easy
        thought = self.reckoned(easy, "+")
        first, second = (self.facts.categories[at] for at in sorted((one, other), reverse=self.chance(0.5)))
        return self.say("sum", self.facts.write(high + low), thought=thought, first=first, second=second)

    def title_or_label(self) -> Asked | None:
        if self.facts.label and (not self.facts.title or self.chance(0.4)):
            return self.say("label", self.facts.label)
        return self.title()

    def form(self) -> Asked:
        if self.facts.mark == "bar" and self.chance(0.5):
            return self.say("direction", "horizontal" if self.facts.sideways else "vertical")
        return self.say("kind", self.facts.kind.split()[-2])


def ask_chart(rng: Generator, facts: ChartFacts, part: str = "all", *, kinds: Sequence[str] = ()) -> Asked:
    """Draws a question, one of `kinds` if any are named, that the chart answers beyond dispute.

    Values are asked where they are printed, or can be read off an axis to within a twentieth of its range.

    Raises:
        ValueError: for a kind that does not exist, or when the chart admits none of them.
    """
    return _ChartQuestions(rng, facts, part).ask(kinds)
