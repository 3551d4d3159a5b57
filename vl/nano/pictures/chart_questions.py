"""Questions about charts and tables, with the answers that their facts give, and their canonical captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vl.nano.pictures.canvas import pick
from vl.nano.pictures.chart_facts import ChartFacts
from vl.nano.pictures.labels import draw_words_apart
from vl.nano.pictures.questions import Asked, Question, listed, say, say_any
from vl.nano.pictures.tables import TableFacts

GAP = 0.05  # by how much values differ that a question compares: of the axis, the pie, or a column's largest value
_EASY = 100  # differences are asked of whole numbers up to this
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

_Facts = TypeVar("_Facts", ChartFacts, TableFacts)


def ask_chart(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    """Draws a question that the chart answers beyond dispute; values are asked where they can be read exactly."""
    return _ask(rng, facts, _CHART_QUESTIONS)


def ask_table(rng: np.random.Generator, facts: TableFacts) -> Asked:
    """Draws a question that the table answers beyond dispute."""
    return _ask(rng, facts, _TABLE_QUESTIONS)


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


def _ask(rng: np.random.Generator, facts: _Facts, questions: Sequence[tuple[float, Question[_Facts]]]) -> Asked:
    shares = np.array([share for share, _ in questions])
    order = rng.choice(len(questions), size=len(questions), replace=False, p=shares / shares.sum())
    asked = (questions[int(index)][1](rng, facts) for index in order)
    return next(question for question in asked if question)  # counting is always possible


def _name_metric(metric: str, name: str) -> str:
    """Years are names: within 5% of each other, they are still different ones."""
    return "vqa" if name.isdigit() else metric


def _outstanding(values: Sequence[float], scale: float, *, highest: bool) -> int | None:
    """The place of the highest or lowest value, if it is so by GAP of `scale`."""
    order = np.argsort(values) if not highest else np.argsort(-np.asarray(values))
    apart = abs(values[order[0]] - values[order[1]]) >= GAP * scale
    return int(order[0]) if apart else None


def _compared(rng: np.random.Generator, first: str, second: str, more: float, least: float) -> Asked | None:
    """Asks whether one thing is greater than another, which it is by `more`, unless they differ by under `least`."""
    greater = bool(rng.random() < 0.5)
    if abs(more) < least:
        return None
    topic, answer = "values.greater" if greater else "values.smaller", "yes" if (more > 0) == greater else "no"
    return say(rng, topic, answer, first=first, second=second)


def _noun(rng: np.random.Generator, facts: ChartFacts) -> str:
    return facts.names if facts.names and rng.random() < 0.5 else "category"


def _cell(rng: np.random.Generator, facts: ChartFacts) -> tuple[int, int, dict[str, str]]:
    """A series, a category, and what a question on them can name."""
    row, at = int(rng.integers(len(facts.series))), int(rng.integers(len(facts.categories)))
    series = facts.series[row]
    named = {"name": facts.categories[at], "series": series.name, "colour": series.colours[at], "mark": facts.mark}
    return row, at, named


def _chart_value(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if not facts.exact:
        return None
    row, at, named = _cell(rng, facts)
    topic = "charts.value"
    if len(facts.series) > 1:
        topic = "charts.value-of-series"
    elif facts.motley and rng.random() < 0.5:
        topic = "charts.value-by-colour"
    return say(rng, topic, facts.write(facts.series[row].values[at]), **named)


def _chart_extreme(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    series, highest = pick(rng, facts.series), bool(rng.random() < 0.5)
    at = _outstanding(series.values, facts.top, highest=highest)
    if at is None:
        return None
    noun, word = _noun(rng, facts), "highest" if highest else "lowest"
    size = pick(rng, ("largest", "biggest") if highest else ("smallest",))
    topics = ["charts.extreme-of-series"] if len(facts.series) > 1 else ["charts.extreme"]
    topics += ["charts.extreme-slice"] if facts.kind == "pie chart" else []
    answers, metric = dict.fromkeys(topics, facts.categories[at]), _name_metric("chart", facts.categories[at])
    return say_any(rng, answers, metric=metric, noun=noun, word=word, size=size, series=series.name)


def _chart_extreme_value(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if not facts.exact:
        return None
    word, extreme = pick(rng, (("highest", max), ("lowest", min)))
    value = extreme(value for series in facts.series for value in series.values)
    return say(rng, "charts.extreme-value", facts.write(value), word=word)


def _chart_colour(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    row, at, named = _cell(rng, facts)
    topic = "charts.colour-of-line" if facts.mark == "line" else "charts.colour-of-bars"
    if len(facts.series) > 1:
        topic = "charts.colour-of-series"
    elif facts.motley:
        topic = "charts.colour-of-mark"
    spelling = pick(rng, ("color", "colour"))
    return say(rng, topic, facts.series[row].colours[at], **(named | {"colour": spelling}))


def _chart_by_colour(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    _, _, named = _cell(rng, facts)
    if len(facts.series) > 1:
        return say(rng, "charts.series-by-colour", named["series"], **named)
    if not facts.motley:
        return None
    name, noun = named["name"], _noun(rng, facts)
    return say(rng, "charts.mark-by-colour", name, metric=_name_metric("chart", name), noun=noun, **named)


def _chart_count(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    count, several = len(facts.categories), len(facts.series)
    answers = {"charts.marks": str(several if facts.mark == "line" else count * several)}
    answers |= {"charts.categories": str(count)} if facts.mark != "slice" else {}
    answers |= {"charts.series": str(several)} if several > 1 else {}
    return say_any(rng, answers, mark=facts.mark)


def _chart_count_beyond(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    """How many bars pass a tick that none comes near."""
    if len(facts.series) > 1 or facts.mark != "bar":
        return None
    values = np.array(facts.series[0].values)
    clear = [t for t in facts.ticks[1:-1] if np.abs(values - t[0]).min() >= GAP * facts.top]
    if not clear:
        return None
    limit, text = pick(rng, clear)
    topic, beyond = ("charts.above", values > limit) if rng.random() < 0.5 else ("charts.below", values < limit)
    return say(rng, topic, str(beyond.sum()), limit=text)


def _chart_compare(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    cells = [(row, at) for row in range(len(facts.series)) for at in range(len(facts.categories))]
    (a_row, a), (b_row, b) = (cells[int(i)] for i in rng.permutation(len(cells))[:2])
    x, y = facts.series[a_row].values[a], facts.series[b_row].values[b]
    first, second = facts.categories[a], facts.categories[b]
    if len(facts.series) > 1:
        first, second = (f"{facts.series[r].name} at {name}" for r, name in ((a_row, first), (b_row, second)))
    elif facts.motley and rng.random() < 0.3:
        first, second = (f"the {facts.series[0].colours[i]} {facts.mark}" for i in (a, b))
    return _compared(rng, first, second, x - y, GAP * facts.top)


def _chart_difference(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if not facts.printed or facts.decimals or len(facts.series) > 1:
        return None
    pairs = list(zip(facts.series[0].values, facts.categories, strict=True))
    a, b = (pairs[int(i)] for i in rng.permutation(len(pairs))[:2])
    (high, more), (low, less) = (a, b) if a[0] > b[0] else (b, a)
    if high > _EASY or high == low:
        return None
    return say(rng, "charts.difference", facts.write(high - low), more=more, less=less)


def _chart_title(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if facts.label and (not facts.title or rng.random() < 0.4):
        return say(rng, "charts.label", facts.label)
    return say(rng, "charts.title", facts.title) if facts.title else None


def _chart_kind(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    if facts.mark == "bar" and rng.random() < 0.5:
        return say(rng, "charts.direction", "horizontal" if facts.sideways else "vertical")
    return say(rng, "charts.kind", facts.kind.split()[-2])


_CHART_QUESTIONS: tuple[tuple[float, Question[ChartFacts]], ...] = (
    (6, _chart_value),
    (4, _chart_extreme),
    (2, _chart_extreme_value),
    (3, _chart_colour),
    (3, _chart_by_colour),
    (2, _chart_count),
    (1.5, _chart_count_beyond),
    (3, _chart_compare),
    (1, _chart_difference),
    (1.5, _chart_title),
    (1, _chart_kind),
)


def _numeric(rng: np.random.Generator, facts: TableFacts) -> tuple[int, tuple[float, ...]] | None:
    """A column of numbers and its values."""
    columns = [(at, values) for at, values in enumerate(facts.values) if values]
    return pick(rng, columns) if columns else None


def _two_of_column(
    rng: np.random.Generator, facts: TableFacts
) -> tuple[str, tuple[float, ...], tuple[int, int]] | None:
    """The header of a column of numbers, its values, and two of its rows."""
    if (numeric := _numeric(rng, facts)) is None:
        return None
    column, values = numeric
    a, b = (int(i) for i in rng.permutation(len(values))[:2])
    return facts.header[column], values, (a, b)


def _table_cell(rng: np.random.Generator, facts: TableFacts) -> Asked:
    row, column = pick(rng, facts.rows), int(rng.integers(1, len(facts.header)))
    return say(rng, "tables.cell", row[column], name=row[0], head=facts.header[column])


def _table_place(rng: np.random.Generator, facts: TableFacts) -> Asked:
    row, column = int(rng.integers(len(facts.rows))), int(rng.integers(len(facts.header)))
    answer = facts.rows[row][column]
    metric = "table" if column else _name_metric("table", answer)
    return say(rng, "tables.place", answer, metric=metric, column=_ORDINALS[column], row=_ORDINALS[row])


def _table_header(rng: np.random.Generator, facts: TableFacts) -> Asked:
    column = int(rng.integers(len(facts.header)))
    which = _ORDINALS[column] if column < len(facts.header) - 1 or rng.random() < 0.5 else "last"
    return say(rng, "tables.header", facts.header[column], which=which)


def _table_lookup(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    row, column = pick(rng, facts.rows), int(rng.integers(1, len(facts.header)))
    name, value = row[0], row[column]
    if [other[column] for other in facts.rows].count(value) > 1:
        return None
    metric = _name_metric("table", name)
    return say(rng, "tables.lookup", name, metric=metric, value=value, head=facts.header[column])


def _table_extreme(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    highest = bool(rng.random() < 0.5)
    if (numeric := _numeric(rng, facts)) is None:
        return None
    column, values = numeric
    if (at := _outstanding(values, max(values), highest=highest)) is None:
        return None
    named = {"head": facts.header[column], "word": "highest" if highest else "lowest"}
    if rng.random() < 0.3:
        return say(rng, "tables.extreme-value", facts.rows[at][column], **named)
    name = facts.rows[at][0]
    return say(rng, "tables.extreme", name, metric=_name_metric("table", name), **named)


def _table_count(rng: np.random.Generator, facts: TableFacts) -> Asked:
    return say_any(rng, {"tables.columns": str(len(facts.header)), "tables.rows": str(len(facts.rows))})


def _table_compare(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    if (found := _two_of_column(rng, facts)) is None:
        return None
    head, values, (a, b) = found
    first, second = f"the {head} of {facts.rows[a][0]}", f"that of {facts.rows[b][0]}"
    return _compared(rng, first, second, values[a] - values[b], GAP * max(values))


def _table_has(rng: np.random.Generator, facts: TableFacts) -> Asked:
    column = int(rng.integers(len(facts.header)))
    if rng.random() < 0.5:
        return say(rng, "tables.has", "yes", name=facts.header[column])
    printed = {text.lower()[:3] for text in facts.header}
    drawn = draw_words_apart(rng, len(printed) + 1)
    return say(rng, "tables.has", "no", name=next(word.capitalize() for word in drawn if word[:3] not in printed))


def _table_difference(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    if (found := _two_of_column(rng, facts)) is None:
        return None
    head, values, (a, b) = found
    whole = all(value.is_integer() and value <= _EASY for value in values)
    if not whole or values[a] == values[b]:
        return None
    answer = str(round(abs(values[a] - values[b])))
    return say(rng, "tables.difference", answer, head=head, first=facts.rows[a][0], second=facts.rows[b][0])


def _table_title(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    return say(rng, "tables.title", facts.title) if facts.title else None


_TABLE_QUESTIONS: tuple[tuple[float, Question[TableFacts]], ...] = (
    (6, _table_cell),
    (3, _table_place),
    (1.5, _table_header),
    (3, _table_lookup),
    (3, _table_extreme),
    (2, _table_count),
    (3, _table_compare),
    (1.5, _table_has),
    (1, _table_difference),
    (1, _table_title),
)
