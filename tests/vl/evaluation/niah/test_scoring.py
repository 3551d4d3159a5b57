from __future__ import annotations

import pytest

from vl.evaluation.niah import repeat_score, value_score
from vl.evaluation.niah.scoring import label_parts

LIST = "1. Kiwi\n2. Blood Orange\n3. Fig"
VERSE = "The tide returns, slow and grey,\nCarrying bottles.\nNobody writes any more."


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("40718", 1),
        ("The code of the amber door is 40718.", 1),
        ("It is **40718**, I think", 1),
        ("140718", 0),
        ("407180", 0),
        ("4071", 0),
        ("40,718", 0),
        ("", 0),
    ],
)
def test_a_code_has_to_stand_as_it_is(answer: str, score: float) -> None:
    assert value_score("40718", answer) == score


def test_the_parts_of_labels() -> None:
    assert label_parts(LIST) == ["Kiwi", "Blood Orange", "Fig"]
    assert label_parts(VERSE) == [
        "The tide returns",
        "slow and grey",
        "Carrying bottles",
        "Nobody writes any more",
    ]
    assert label_parts("1. 苹果\n2. 香蕉") == ["苹果", "香蕉"]
    assert label_parts("春风又绿江南岸，\n明月何时照我还。") == ["春风又绿江南岸", "明月何时照我还"]
    assert label_parts("1. Not a list\nat all") == ["1. Not a list", "at all"], "a list has a number at every item"
    assert label_parts(" \n.,") == []


@pytest.mark.parametrize(
    ("label", "answer", "score"),
    [
        (LIST, LIST, 1),
        (LIST, "You listed Fig, Kiwi and Blood Orange.", 1),
        (LIST, "1. Kiwi\n2. Blood orange\n3. Fig", 2 / 3),
        (LIST, "1. Apple\n2. Pear\n3. Plum", 0),
        (LIST, "I'm sorry, was it Kiwi, Blood Orange, Fig?", 0),
        (LIST, "There is no previous conversation. Kiwi", 0),
        ("1. 苹果\n2. 香蕉", "抱歉，苹果 香蕉", 0),
        (VERSE, VERSE, 1),
        (VERSE, "Carrying bottles. Nobody writes any more", 1 / 2),
        (VERSE, "The tide returns, slow and gray,", 1 / 4),
    ],
)
def test_a_repeated_answer_scores_its_share(label: str, answer: str, score: float) -> None:
    assert repeat_score(label, answer) == pytest.approx(score)
