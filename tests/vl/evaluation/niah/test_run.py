"""What a reader that finds everything scores, one that finds nothing, and those between."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import vl
from vl.evaluation.niah import Case, Grid, Row, find_needles

MakeReader = Callable[[Callable[[str], str]], Any]
GRID = Grid((128, 256, 512), (0, 50, 100), 2, distractors=2)


def look_up(text: str) -> str:
    """Answers by the key that is asked for."""
    (key,) = re.findall(r"What is the code of the (.*?)\?", text)
    (value,) = re.findall(rf"The code of the {key} is (\d+)\.", text)
    return f"It is {value}."


def first_code(text: str) -> str:
    """Answers with whatever code comes first."""
    return re.findall(r"is (\d+)\.", text)[0]


def test_a_model_that_looks_up_finds_all(reader: MakeReader) -> None:
    model, rows = reader(look_up), list[Row]()
    result = find_needles(model, GRID.cases(), (0, 50, 100), batch_size=4, on_row=rows.append)
    assert result.score() == 1
    assert result.cells() == [[1.0] * 3] * 3
    assert result.lengths == (128, 256, 512)
    assert sorted(model.lengths) == sorted([row.length for row in rows])
    assert [row.tokens for row in result.rows] == [row.length for row in result.rows]
    assert max(model.batches) <= 4
    assert tuple(rows) == result.rows, "in order, and each one told"


def test_rows_of_earlier_count_where_they_are_asked_for_now(reader: MakeReader) -> None:
    cases = list(Grid((128,), (25,)).cases())
    rows = {row.id: row for row in find_needles(reader(look_up), cases, (25,)).rows}
    moved = [replace(case, depth=0.0) for case in cases]
    assert find_needles(reader(look_up), moved, (0,), done=rows).cells() == [[1.0]]
    with pytest.raises(vl.InputError, match="two prompts have the id text-128-25-0: give data files names"):
        find_needles(reader(look_up), [*cases, *cases], (25,))


@pytest.mark.parametrize("answer", ["", "I see no code.", "00000"])
def test_a_model_that_sees_nothing_finds_none(reader: MakeReader, answer: str) -> None:
    assert find_needles(reader(lambda _: answer), GRID.cases(), GRID.depths).score() == 0  # type: ignore[arg-type]


def test_distractors_mislead_who_does_not_look_at_the_key(reader: MakeReader) -> None:
    alone = Grid((256,), (0, 100), 4)
    assert find_needles(reader(first_code), alone.cases(), (0, 100)).score() == 1
    beside = Grid((256,), (0, 100), 4, distractors=3)
    cells = find_needles(reader(first_code), beside.cases(), (0, 100)).cells()
    assert cells == [[1.0], [0.0]], "the first code is the right one where its depth is 0"


def test_short_sight_shows_in_the_cells(reader: MakeReader) -> None:
    def last_200_words(text: str) -> str:
        try:
            return look_up(" ".join(text.split()[-200:]))
        except ValueError:
            return "?"

    grid = Grid((128, 1024), (0, 100), 3)
    result = find_needles(reader(last_200_words), grid.cases(), (0, 100))
    assert result.cells() == [[1.0, 0.0], [1.0, 1.0]]
    assert result.score(128) == 1
    assert result.score(1024) == result.score(depth=0) == 0.5
    assert result.score() == 0.75
    assert result.summary()["by_length"] == [1.0, 0.5]


def test_prompts_that_cannot_be_made_cost_their_row(reader: MakeReader) -> None:
    grid = Grid((20, 256), (50,), 2)
    result = find_needles(reader(look_up), grid.cases(), (50,))
    assert result.cells() == [[None, 1.0]]
    assert [row.id for row in result.errors] == ["text-20-50-0", "text-20-50-1"]
    assert all("20 tokens are too few" in (row.error or "") for row in result.errors)

    def fail(_: Any) -> Any:
        raise RuntimeError("oops")

    broken = Case("x", 5, 50, "?", "1", fail, lambda *_: 1.0)
    (row,) = find_needles(reader(look_up), [broken], (50,)).rows
    assert row.error == "cannot prepare x: RuntimeError: oops"


def test_what_was_answered_is_not_asked_again(reader: MakeReader) -> None:
    cases = list(GRID.cases())
    done = {case.id: Row(case.id, case.length, case.depth, score=0.0) for case in cases[:5]}
    model = reader(look_up)
    result = find_needles(model, cases, (0, 50, 100), done=done)
    assert len(model.lengths) == len(cases) - 5
    assert result.score() == pytest.approx((len(cases) - 5) / len(cases))
    assert result.rows[:5] == tuple(done.values())


def test_a_batch_of_nothing(reader: MakeReader) -> None:
    with pytest.raises(vl.InputError, match="batch_size"):
        find_needles(reader(look_up), GRID.cases(), (0, 50, 100), batch_size=0)
