"""Questions about charts and tables, with the answers that their facts give, and their canonical captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from vl.nano.pictures.asked import Asked
from vl.nano.pictures.canvas import pick
from vl.nano.pictures.chart_facts import ChartFacts
from vl.nano.pictures.tables import TableFacts, draw_words_apart

GAP = 0.05  # by how much values differ that a question compares: of the axis, the pie, or a column's largest value
_EASY = 100  # differences are asked of whole numbers up to this
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_NUMBER = ("Answer with a number.", "Give only the number.", "Reply with just the number.", "Answer with one number.")
_NAME = ("Answer with its name.", "Give only the name.", "Reply with the name alone.")
_YES_NO = ("Answer yes or no.", "Yes or no?", "Reply with yes or no.")
_COLOUR = ("Answer with a color.", "Name the colour.", "Answer with one word.")
_CELL = ("Answer as it is printed.", "Give only the entry.", "Reply with the entry alone.")
_ROW = ("Answer with the first entry of the row.", "Give only the row's first entry.")

_Facts = TypeVar("_Facts", ChartFacts, TableFacts)
_Question = Callable[[np.random.Generator, _Facts], Asked | None]


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
    named = f" of {_listed([s.name for s in facts.series])}" if len(facts.series) > 1 else ""
    return f"{start}{named}: {_with_values(facts, facts.series[0].values)}."


def describe_table(facts: TableFacts) -> str:
    """The canonical caption: the title, then the names of columns and rows."""
    start = "A table" + (f' titled "{facts.title}"' if facts.title else "")
    columns, rows = _listed(facts.header), _listed([row[0] for row in facts.rows])
    return f"{start} with {len(facts.header)} columns, {columns}, and {len(facts.rows)} rows, {rows}."


def _with_values(facts: ChartFacts, values: Sequence[float]) -> str:
    pairs = zip(facts.categories, values, strict=True)
    return _listed([f"{name} {facts.write(value)}" if facts.printed else name for name, value in pairs])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _ask(rng: np.random.Generator, facts: _Facts, questions: Sequence[tuple[float, _Question[_Facts]]]) -> Asked:
    shares = np.array([share for share, _ in questions])
    order = rng.choice(len(questions), size=len(questions), replace=False, p=shares / shares.sum())
    asked = (questions[int(index)][1](rng, facts) for index in order)
    return next(question for question in asked if question)  # counting is always possible


def _phrased(
    rng: np.random.Generator, questions: Sequence[str], forms: Sequence[str], answer: str, metric: str
) -> Asked:
    return Asked(f"{pick(rng, questions)} {pick(rng, forms)}", answer, metric)


def _name_metric(metric: str, name: str) -> str:
    """Years are names: within 5% of each other, they are still different ones."""
    return "vqa" if name.isdigit() else metric


def _mark(facts: ChartFacts) -> str:
    return {"pie chart": "slice", "line chart": "line"}.get(facts.kind, "bar")


def _motley(facts: ChartFacts) -> bool:
    """Whether each bar or slice has its own colour."""
    return len(set(facts.series[0].colours)) == len(facts.categories)


def _noun(rng: np.random.Generator, facts: ChartFacts) -> str:
    return facts.names if facts.names and rng.random() < 0.5 else "category"


def _cell(rng: np.random.Generator, facts: ChartFacts) -> tuple[int, int]:
    return int(rng.integers(len(facts.series))), int(rng.integers(len(facts.categories)))


def _outstanding(values: Sequence[float], scale: float, *, highest: bool) -> int | None:
    """The place of the highest or lowest value, if it is so by GAP of `scale`."""
    order = np.argsort(values) if not highest else np.argsort(-np.asarray(values))
    apart = abs(values[order[0]] - values[order[1]]) >= GAP * scale
    return int(order[0]) if apart else None


def _chart_value(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if facts.kind == "pie chart" and not facts.printed:
        return None
    row, at = _cell(rng, facts)
    series, name, mark = facts.series[row], facts.categories[at], _mark(facts)
    questions = [f"What is the value of {name}?", f"How much is {name}?", f"What value does the chart show for {name}?"]
    if len(facts.series) > 1:
        questions = [f"What is the value of {series.name} for {name}?", f"How much is {series.name} at {name}?"]
        questions += [f"What value does the {series.colours[at]} {mark} have at {name}?"]
    elif _motley(facts) and rng.random() < 0.5:
        colour = series.colours[at]
        questions = [f"How much is the {colour} {mark}?", f"What is the value of the {colour} {mark}?"]
    return _phrased(rng, questions, _NUMBER, facts.write(series.values[at]), "chart")


def _chart_extreme(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    series, highest = pick(rng, facts.series), bool(rng.random() < 0.5)
    at = _outstanding(series.values, facts.top, highest=highest)
    if at is None:
        return None
    noun, word = _noun(rng, facts), "highest" if highest else "lowest"
    size = pick(rng, ("largest", "biggest") if highest else ("smallest",))
    if len(facts.series) > 1:
        questions = [f"For which {noun} is {series.name} {word}?", f"Where is {series.name} {word}?"]
    else:
        questions = [f"Which {noun} has the {word} value?", f"Which {noun} is the {size}?"]
        questions += [f"Which {noun} has the {size} slice?"] if facts.kind == "pie chart" else []
    name = facts.categories[at]
    return _phrased(rng, questions, _NAME, name, _name_metric("chart", name))


def _chart_extreme_value(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if facts.kind == "pie chart" and not facts.printed:
        return None
    word, value = pick(rng, (("highest", max), ("lowest", min)))
    values = [v for series in facts.series for v in series.values]
    questions = [f"What is the {word} value in the chart?", f"How much is the {word} value?"]
    return _phrased(rng, questions, _NUMBER, facts.write(value(values)), "chart")


def _chart_colour(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    row, at = _cell(rng, facts)
    colour, mark = pick(rng, ("color", "colour")), _mark(facts)
    series, name = facts.series[row], facts.categories[at]
    if len(facts.series) > 1:
        s = series.name
        questions = [f"What {colour} stands for {s}?", f"Which {colour} is used for {s}?", f"In what {colour} is {s}?"]
    elif _motley(facts):
        questions = [f"What {colour} is the {name} {mark}?", f"Which {colour} has {name}?"]
        questions += [f"What is the {colour} of the {mark} for {name}?"]
    else:
        marks = "is the line" if mark == "line" else "are the bars"
        questions = [f"What {colour} {marks}?", f"Which {colour} {marks} in the chart?"]
    return _phrased(rng, questions, _COLOUR, series.colours[at], "vqa")


def _chart_by_colour(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    row, at = _cell(rng, facts)
    colour, mark = facts.series[row].colours[at], _mark(facts)
    if len(facts.series) > 1:
        name = facts.series[row].name
        questions = [
            f"Which series is {colour}?",
            f"Which name has the {colour} {mark}?",
            f"What is drawn in {colour}?",
        ]
    elif _motley(facts):
        name, noun = facts.categories[at], _noun(rng, facts)
        questions = [f"Which {noun} does the {colour} {mark} show?", f"What does the {colour} {mark} stand for?"]
    else:
        return None
    return _phrased(rng, questions, _NAME, name, _name_metric("chart", name))


def _chart_count(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    count, several, mark = len(facts.categories), len(facts.series), _mark(facts)
    total = several if mark == "line" else count * several
    options = [(total, f"How many {mark}s are there?"), (total, f"How many {mark}s does the chart have?")]
    if mark != "slice":
        options += [
            (count, "How many categories are on the axis?"),
            (count, "How many categories does the chart show?"),
        ]
    if several > 1:
        options += [(several, "How many series does the legend name?")]
    number, question = pick(rng, options)
    return _phrased(rng, [question], _NUMBER, str(number), "counting")


def _chart_count_beyond(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    """How many bars pass a tick that none comes near."""
    if len(facts.series) > 1 or _mark(facts) != "bar":
        return None
    values = np.array(facts.series[0].values)
    clear = [t for t in facts.ticks[1:-1] if np.abs(values - t[0]).min() >= GAP * facts.top]
    if not clear:
        return None
    limit, text = pick(rng, clear)
    above = bool(rng.random() < 0.5)
    number = int((values > limit).sum() if above else (values < limit).sum())
    words = ("above", "more than", "greater than") if above else ("below", "less than", "under")
    questions = [f"How many bars are {word} {text}?" for word in words]
    return _phrased(rng, questions, _NUMBER, str(number), "counting")


def _chart_compare(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    cells = [(row, at) for row in range(len(facts.series)) for at in range(len(facts.categories))]
    (a_row, a), (b_row, b) = (cells[int(i)] for i in rng.permutation(len(cells))[:2])
    x, y = facts.series[a_row].values[a], facts.series[b_row].values[b]
    first, second = facts.categories[a], facts.categories[b]
    if len(facts.series) > 1:
        first, second = (f"{facts.series[r].name} at {name}" for r, name in ((a_row, first), (b_row, second)))
    elif _motley(facts) and rng.random() < 0.3:
        first, second = (f"the {facts.series[0].colours[i]} {_mark(facts)}" for i in (a, b))
    return _compared(rng, first, second, x - y, GAP * facts.top)


def _compared(rng: np.random.Generator, first: str, second: str, more: float, least: float) -> Asked | None:
    """Asks whether one thing is greater than another, which it is by `more`, unless they differ by under `least`."""
    greater = bool(rng.random() < 0.5)
    words = ("greater", "larger", "higher") if greater else ("smaller", "less", "lower")
    questions = [f"Is {first} {word} than {second}?" for word in words]
    answer = "yes" if (more > 0) == greater else "no"
    return _phrased(rng, questions, _YES_NO, answer, "vqa") if abs(more) >= least else None


def _chart_difference(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if not facts.printed or facts.decimals or len(facts.series) > 1:
        return None
    a, b = (int(i) for i in rng.permutation(len(facts.categories))[:2])
    values, names = facts.series[0].values, facts.categories
    a, b = (a, b) if values[a] > values[b] else (b, a)
    if values[a] > _EASY or values[a] == values[b]:
        return None
    questions = [f"What is the difference between {names[a]} and {names[b]}?"]
    questions += [
        f"By how much is {names[a]} greater than {names[b]}?",
        f"How much more is {names[a]} than {names[b]}?",
    ]
    return _phrased(rng, questions, _NUMBER, facts.write(values[a] - values[b]), "chart")


def _chart_title(rng: np.random.Generator, facts: ChartFacts) -> Asked | None:
    if facts.label and (not facts.title or rng.random() < 0.4):
        questions = ("What is the label of the value axis?", "What does the value axis say?")
        return _phrased(rng, questions, ("Answer with its text.", "Give only the text."), facts.label, "chart")
    return _titled(rng, facts.title, "chart")


def _titled(rng: np.random.Generator, title: str, kind: str) -> Asked | None:
    if not title:
        return None
    questions = (f"What is the title of the {kind}?", f"What is the {kind} called?", f"How is the {kind} titled?")
    return _phrased(rng, questions, ("Give only the title.", "Reply with the title alone."), title, kind)


def _chart_kind(rng: np.random.Generator, facts: ChartFacts) -> Asked:
    if _mark(facts) == "bar" and rng.random() < 0.5:
        questions = ("Are the bars vertical or horizontal?", "Do the bars run vertical or horizontal?")
        return _phrased(rng, questions, _COLOUR[-1:], "horizontal" if facts.sideways else "vertical", "vqa")
    questions = ("Is this a bar, line or pie chart?", "What kind of chart is this: bar, line or pie?")
    return _phrased(rng, questions, _COLOUR[-1:], facts.kind.split()[-2], "vqa")


_CHART_QUESTIONS: tuple[tuple[float, _Question[ChartFacts]], ...] = (
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


def _table_cell(rng: np.random.Generator, facts: TableFacts) -> Asked:
    row, column = pick(rng, facts.rows), int(rng.integers(1, len(facts.header)))
    name, head = row[0], facts.header[column]
    questions = [f'What is the "{head}" of "{name}"?', f"What does the table show for {name} under {head}?"]
    questions += [f"What is in the column {head} in the row {name}?", f"{head} of {name}: what is it?"]
    return _phrased(rng, questions, _CELL, row[column], "table")


def _table_place(rng: np.random.Generator, facts: TableFacts) -> Asked:
    row, column = int(rng.integers(len(facts.rows))), int(rng.integers(len(facts.header)))
    answer = facts.rows[row][column]
    questions = (f"What is in the {_ORDINALS[column]} column of the {_ORDINALS[row]} row below the header?",)
    return _phrased(rng, questions, _CELL, answer, "table" if column else _name_metric("table", answer))


def _table_header(rng: np.random.Generator, facts: TableFacts) -> Asked:
    column = int(rng.integers(len(facts.header)))
    which = _ORDINALS[column] if column < len(facts.header) - 1 or rng.random() < 0.5 else "last"
    questions = (f"What is the header of the {which} column?", f"What is the name of the {which} column?")
    return _phrased(rng, questions, _CELL, facts.header[column], "table")


def _table_lookup(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    row, column = pick(rng, facts.rows), int(rng.integers(1, len(facts.header)))
    if [other[column] for other in facts.rows].count(row[column]) > 1:
        return None
    name, head, value = row[0], facts.header[column], row[column]
    questions = (f"Which row has {value} under {head}?", f"In which row is {head} {value}?")
    return _phrased(rng, questions, _ROW, name, _name_metric("table", name))


def _table_extreme(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    highest = bool(rng.random() < 0.5)
    if (numeric := _numeric(rng, facts)) is None:
        return None
    column, values = numeric
    if (at := _outstanding(values, max(values), highest=highest)) is None:
        return None
    head, word = facts.header[column], "highest" if highest else "lowest"
    if rng.random() < 0.3:
        questions = (f"What is the {word} value under {head}?", f"What is the {word} {head} in the table?")
        return _phrased(rng, questions, _NUMBER, facts.rows[at][column], "table")
    name = facts.rows[at][0]
    questions = (f"Which row has the {word} {head}?", f"In which row is {head} {word}?")
    return _phrased(rng, questions, _ROW, name, _name_metric("table", name))


def _table_count(rng: np.random.Generator, facts: TableFacts) -> Asked:
    rows, columns = len(facts.rows), len(facts.header)
    options = [
        (columns, "How many columns does the table have?"),
        (columns, "How many columns are there?"),
        (rows, "How many rows does the table have, not counting the header?"),
        (rows, "How many rows are below the header?"),
    ]
    number, question = pick(rng, options)
    return _phrased(rng, (question,), _NUMBER, str(number), "counting")


def _table_compare(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    if (numeric := _numeric(rng, facts)) is None:
        return None
    column, values = numeric
    a, b = (int(i) for i in rng.permutation(len(values))[:2])
    first, second = f"the {facts.header[column]} of {facts.rows[a][0]}", f"that of {facts.rows[b][0]}"
    return _compared(rng, first, second, values[a] - values[b], GAP * max(values))


def _table_has(rng: np.random.Generator, facts: TableFacts) -> Asked:
    column = int(rng.integers(len(facts.header)))
    if rng.random() < 0.5:
        name, answer = facts.header[column], "yes"
    else:
        printed = {text.lower()[:3] for text in facts.header}
        drawn = draw_words_apart(rng, len(printed) + 1)
        name, answer = next(word.capitalize() for word in drawn if word[:3] not in printed), "no"
    questions = (f"Is there a column named {name}?", f"Does the table have a column {name}?")
    return _phrased(rng, questions, _YES_NO, answer, "vqa")


def _table_difference(rng: np.random.Generator, facts: TableFacts) -> Asked | None:
    if (numeric := _numeric(rng, facts)) is None:
        return None
    column, values = numeric
    a, b = (int(i) for i in rng.permutation(len(values))[:2])
    whole = all(value.is_integer() and value <= _EASY for value in values)
    if not whole or values[a] == values[b]:
        return None
    first, second = facts.rows[a][0], facts.rows[b][0]
    questions = (f"What is the difference in {facts.header[column]} between {first} and {second}?",)
    return _phrased(rng, questions, _NUMBER, str(round(abs(values[a] - values[b]))), "table")


_TABLE_QUESTIONS: tuple[tuple[float, _Question[TableFacts]], ...] = (
    (6, _table_cell),
    (3, _table_place),
    (1.5, _table_header),
    (3, _table_lookup),
    (3, _table_extreme),
    (2, _table_count),
    (3, _table_compare),
    (1.5, _table_has),
    (1, _table_difference),
    (1, lambda rng, facts: _titled(rng, facts.title, "table")),
)
