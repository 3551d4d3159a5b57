from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vl.evaluation.metrics import METRICS, parse_quantity
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.labels import MIN_SIZE, write_number
from vl.nano.pictures.questions import Asked
from vl.nano.pictures.table_questions import ask_table, describe_table
from vl.nano.pictures.tables import TableFacts, draw_table

SIZES = (SizeRange(200, 420, 1.0),)
TABLES = [draw_table(np.random.default_rng((1, i)), SIZES) for i in range(200)]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def column(facts: TableFacts, head: str) -> list[str]:
    return [row[facts.header.index(head)] for row in facts.rows]


def amount(text: str) -> float:
    quantity = parse_quantity(text)
    assert quantity is not None
    return quantity.value


def test_a_table_is_a_function_of_the_random_state() -> None:
    for seed in range(6):
        (a, a_facts), (b, b_facts) = (draw_table(np.random.default_rng(seed), SIZES) for _ in range(2))
        assert a_facts == b_facts
        assert a.tobytes() == b.tobytes()
    assert len({image.tobytes() for image, _ in TABLES}) == len(TABLES)


def test_cells_are_printed_in_order_row_by_row() -> None:
    for _, facts in TABLES:
        cells = [facts.title, *facts.header, *(cell for row in facts.rows for cell in row)]
        assert [c for c, _ in facts.boxes] == [c for cell in cells for c in cell if c != " "]
        start = len(facts.title.replace(" ", ""))
        lines = [[*facts.header], *map(list, facts.rows)]
        bottoms = []
        for line in lines:
            edges = []
            for cell in line:
                boxes = [box for _, box in facts.boxes[start : start + len(cell)]]
                start += len(cell)
                edges.append((boxes[0][0], boxes[-1][2]))
                assert len({box[3] for box in boxes}) == 1
                bottoms.append(boxes[0][3])
            assert all(a[1] < b[0] for a, b in pairwise(edges)), facts
        rows = np.array(bottoms).reshape(len(lines), -1)
        assert (np.ptp(rows, axis=1) < 1e-6).all()
        assert (np.diff(rows[:, 0]) > MIN_SIZE).all()


def test_characters_are_inked_inside_their_boxes() -> None:
    for image, facts in TABLES:
        pixels = np.asarray(image.convert("L"), dtype=int)
        for character, (left, top, right, bottom) in facts.boxes:
            assert left >= 0
            assert top >= 0
            assert right <= facts.width
            assert bottom <= facts.height
            part = pixels[round(top) : round(bottom) + 1, round(left) : round(right) + 1]
            assert part.max() - part.min() > 50, (character, facts)


def test_numbers_are_what_is_printed() -> None:
    for _, facts in TABLES:
        for head, values in zip(facts.header, facts.values, strict=True):
            if values is not None:
                assert [amount(text) for text in column(facts, head)] == list(values)
        assert facts.values[0] is None
    assert write_number(1234.5, 1, grouped=True) == "1,234.5"
    assert write_number(7, 0, "%") == "7%"
    assert write_number(2, 2, "$") == "$2.00"


def check(facts: TableFacts, asked: Asked) -> str:
    """Finds the answer again from the prompt and the cells; returns what kind of question it was."""
    prompt, answer = asked.prompt.split("?")[0], asked.answer
    names = [row[0] for row in facts.rows]
    heads = "|".join(facts.header[1:])
    if found := re.fullmatch(r"There is no (\w+)\.", answer):
        assert found[1] not in (*facts.header, *names)
        assert found[1] in prompt
        return "absent"
    if found := re.fullmatch(
        r"Is the (\w+) of (.+) (?:(greater|larger|higher)|smaller|less|lower) than that of (.+)", prompt
    ):
        values = dict(zip(names, map(amount, column(facts, found[1])), strict=True))
        a, b = values[found[2]], values[found[4]]
        assert answer == ("yes" if (a > b) == bool(found[3]) else "no")
        assert abs(a - b) >= 0.05 * max(values.values())
        return "compare"
    if found := re.search(r"column (?:named )?(\w+)$", prompt):
        assert answer == ("yes" if found[1] in facts.header else "no")
        return "has"
    if answer in ("yes", "no") and (found := re.search(r"row (?:named )?(\w+)$|^Is (\w+) listed", prompt)):
        assert answer == ("yes" if (found[1] or found[2]) in names else "no")
        return "has row"
    if found := re.search(
        r"sum of (\w+) of (.+) and (.+)|How much (\w+) do (.+) and (.+) have together|Add up (\w+) of (.+) and (.+?)\.",
        prompt,
    ):
        head, first, second = (group for group in found.groups() if group)
        values = dict(zip(names, map(amount, column(facts, head)), strict=True))
        assert int(answer) == values[first] + values[second]
        return "sum"
    if prompt.startswith(("How many", "Count the")):
        assert int(answer) == len(facts.header if "columns" in prompt else facts.rows)
        return "count"
    if "below" in prompt and (found := re.search(rf"\b({'|'.join(ORDINALS)}) (column|cell)\b", prompt)):
        row = re.search(r"(\w+) row below", prompt)
        assert row
        assert answer == facts.rows[ORDINALS.index(row[1])][ORDINALS.index(found[1])]
        return "place"
    if found := re.search(r"of the (\w+) column$", prompt):
        assert answer == facts.header[-1 if found[1] == "last" else ORDINALS.index(found[1])]
        return "header"
    if found := re.search(
        r"difference in (?P<head>\w+) between (?P<one>.+) and (?P<other>.+)"
        r"|apart are (?P<a>.+) and (?P<b>.+) in (?P<c>\w+)$|different is the (?P<d>\w+) of (?P<e>.+) and (?P<f>.+)$",
        prompt,
    ):
        head, first, second = (
            next(filter(None, map(found.group, keys)))
            for keys in (("head", "c", "d"), ("one", "a", "e"), ("other", "b", "f"))
        )
        values = dict(zip(names, map(amount, column(facts, head)), strict=True))
        assert int(answer) == abs(values[first] - values[second])
        return "difference"
    if re.search("highest|lowest", prompt):
        head = re.search(rf"\b({heads})\b", prompt)
        assert head
        ranked = sorted(zip(map(amount, column(facts, head[1])), names, strict=True), reverse="highest" in prompt)
        assert (
            answer == ranked[0][1]
            if prompt.startswith(("Which", "In which", "Find"))
            else amount(answer) == ranked[0][0]
        )
        assert abs(ranked[0][0] - ranked[1][0]) >= 0.05 * max(value for value, _ in ranked)
        return "extreme"
    if re.search("the title of the table|table called|table titled|^Read the title", prompt):
        assert answer == facts.title
        return "title"
    if found := re.match(
        r"(?:Which row has|Find the row with) (?P<value>\S+) under (?P<head>\w+)"
        r"|(?:In which row is|Which row's) (?P<named>\w+)(?: is)? (?P<this>\S+)$",
        prompt,
    ):
        value, head_name = found["value"] or found["this"], found["head"] or found["named"]
        assert [row[0] for row, cell in zip(facts.rows, column(facts, head_name), strict=True) if cell == value] == [
            answer
        ]
        return "lookup"
    asked_of = next(row for row in facts.rows if re.search(rf"\b{row[0]}\b", prompt))
    head = re.search(rf"\b({heads})\b", prompt)
    assert head
    assert answer == asked_of[facts.header.index(head[1])]
    return "cell"


def test_answers_follow_from_the_cells() -> None:
    rng = np.random.default_rng(5)
    asked = [(facts, ask_table(rng, facts)) for _, facts in TABLES for _ in range(10)]
    kinds = Counter(check(facts, question) for facts, question in asked)
    assert len(kinds) == 13, kinds
    assert min(kinds.values()) >= 15, kinds
    for facts, question in asked:
        metric = METRICS[question.metric]
        assert metric.right(metric.score([question.answer], question.answer))
        if question.answer in [row[0] for row in facts.rows] and question.answer.isdigit():
            assert question.metric == "vqa"
    said = Counter(q.answer for _, q in asked if q.answer in ("yes", "no"))
    assert 0.4 < said["yes"] / said.total() < 0.6
    assert len({question.prompt for _, question in asked}) > 0.6 * len(asked)


def test_captions_name_columns_and_rows() -> None:
    for _, facts in TABLES:
        caption = describe_table(facts)
        for name in (*facts.header, *(row[0] for row in facts.rows)):
            assert re.search(rf"\b{re.escape(name)}\b", caption)
        assert f"{len(facts.header)} columns" in caption
        assert f"{len(facts.rows)} rows" in caption


def test_tables_vary() -> None:
    assert {len(facts.header) for _, facts in TABLES} == {2, 3, 4, 5, 6}
    assert {len(facts.rows) for _, facts in TABLES} == {2, 3, 4, 5, 6, 7, 8}
    assert 0.2 < np.mean([bool(facts.title) for _, facts in TABLES]) < 0.5
    assert len({facts.header[1] for _, facts in TABLES}) > 150
    assert len({image.getpixel((0, 0)) for image, _ in TABLES}) > 100
    assert any(facts.values[1] is None for _, facts in TABLES)
    for _, facts in TABLES:
        assert len({name[:3] for name in facts.header}) == len(facts.header)
        assert len({row[0] for row in facts.rows}) == len(facts.rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), longer=st.integers(64, 2016))
@example(seed=528, longer=481)  # 12.6 px per em would fit: 13 are taken
def test_tables_are_legible_on_any_canvas(seed: int, longer: int) -> None:
    image, facts = draw_table(np.random.default_rng(seed), (SizeRange(longer, longer, 1.0),))
    assert image.size == (facts.width, facts.height)
    assert longer <= max(image.size) <= max(1.04 * longer + 2, 380)
    least = max(MIN_SIZE, round(0.012 * longer))
    assert all(bottom - top >= 0.95 * least - 1e-6 for _, (_, top, _, bottom) in facts.boxes)
