"""Chats in MR-NIAH's layout: a few of our own making."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vl
from vl.evaluation.niah import Case, Failed, find_needles, read_rounds

LABEL = "1. Kiwi\n2. Blood Orange\n3. Fig"
DEPTHS = (0, 25, 50, 75, 100)


def chat(*fillers: int, needle: int, label: str = LABEL) -> dict[str, Any]:
    """Rounds whose answers have so many characters, and the needle before the one of that number."""
    turns = [("Say something", "x" * size) for size in fillers]
    turns.insert(needle, ("Name some fruits", label))
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "Please repeat the fruits you named"})
    return {"messages": messages, "label": label, "length_class": 2048}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_records_are_read_with_their_depth(tmp_path: Path) -> None:
    file = write(
        tmp_path / "two.jsonl",
        chat(100, 3000, 2900, 3000, needle=1),
        "",
        chat(3000, 3000, 20, needle=2),
        chat(needle=0),
        chat(3000, 3000, 3000, 3000, needle=1),
        chat(3000, 3000, 3000, 3000, needle=2),
    )
    cases = list(read_rounds(file, DEPTHS))
    assert all(isinstance(case, Case) for case in cases)
    assert [(case.id, case.length, case.depth) for case in cases if isinstance(case, Case)] == [
        ("two.jsonl:1", 2048, 0),
        ("two.jsonl:3", 2048, 100),
        ("two.jsonl:4", 2048, 100),  # right before the question
        ("two.jsonl:5", 2048, 25),
        ("two.jsonl:6", 2048, 50),
    ]
    first = cases[0]
    assert isinstance(first, Case)
    assert (first.question, first.reference) == ("Please repeat the fruits you named", LABEL)
    assert first.score(LABEL, "Kiwi and Fig") == pytest.approx(2 / 3)


def test_what_is_wrong_with_a_record_is_its_own(tmp_path: Path) -> None:
    good = chat(10, needle=0)
    bad = (
        ("oops", "not JSON"),
        ({**good, "label": None}, 'no "label"'),
        ({**good, "label": ".\n,"}, 'no "label"'),
        ({**good, "length_class": "2k"}, 'no "length_class"'),
        ({**good, "label": "1. Plum"}, "no answer of the assistant has the label"),
        ({**good, "messages": []}, "message"),
        ({**good, "messages": good["messages"][:-1]}, "the last turn has to be the user's question"),
    )
    file = write(tmp_path / "bad.jsonl", good, *(record for record, _ in bad))
    first, *failed = read_rounds(file, DEPTHS)
    assert isinstance(first, Case)
    for number, (case, (_, message)) in enumerate(zip(failed, bad, strict=True), 2):
        assert isinstance(case, Failed)
        assert case.id == f"bad.jsonl:{number}"
        assert message in case.error
    with pytest.raises(vl.InputError, match="cannot read"):
        list(read_rounds(tmp_path / "none.jsonl", DEPTHS))


def test_a_model_that_repeats_scores_all_and_one_that_apologises_nothing(
    tmp_path: Path, reader: Callable[[Callable[[str], str]], Any]
) -> None:
    file = write(tmp_path / "chats.jsonl", chat(20, 400, needle=1), chat(400, 20, needle=1), "oops")
    copying = reader(lambda text: text[text.index("1. Kiwi") :].partition("user name")[0])
    cases = list(read_rounds(file, (0, 100)))
    result = find_needles(copying, cases, (0, 100))
    assert result.cells() == [[1.0], [1.0]]
    assert [row.error is None for row in result.rows] == [True, True, False]
    assert result.summary()["count"] == 2
    sorry = find_needles(reader(lambda _: "Sorry: Kiwi, Blood Orange, Fig"), cases, (0, 100))
    assert sorry.score() == 0
