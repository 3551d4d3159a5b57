from __future__ import annotations

import pytest

from vl.evaluation.metrics import METRICS, Ratio


def test_a_set_is_weighed_by_what_it_holds() -> None:
    metric = METRICS["ocr"]
    rows = [metric.score(["abcd"], "abcd"), metric.score(["ab"], "xy")]
    assert metric.total(rows)["cer"] == pytest.approx(2 / 6)
    assert metric.total(rows)["exact"] == 0.5
    assert metric.right(rows[0])
    assert not metric.right(rows[1])
    assert metric.badness(rows[1]) > metric.badness(rows[0])
    assert metric.total([]) == {}


def test_reading_ignores_layout_and_the_models_lead_in() -> None:
    score = METRICS["ocr"].score
    assert score(["one two"], 'The text reads "one\n two".')["cer"] == (0, 7)
    assert score(['The sign says "STOP".'], 'The sign says "STOP".')["cer"].value == 0
    assert score(['The sign says "STOP".'], "STOP")["cer"].value > 0
    assert score(["wrong", "right"], "right")["exact"].value == 1, "the best reference counts"
    assert score([""], "ab")["cer"].value == 2
    assert METRICS["ocr"].total([score([""], "ab"), score(["abcd"], "abcd")])["cer"] == 0.5


def test_any_reference_will_do() -> None:
    assert METRICS["chart"].score(["red", "12%"], "12.1 %")["relaxed"].value == 1
    assert METRICS["table"] is METRICS["chart"]
    assert METRICS["vqa"].score(["two", "a pair"], "Pair")["normalised"].value == 1
    assert METRICS["consensus"].score(["yes"] * 10, "yes")["consensus"].value == 1
    assert METRICS["counting"].score(["3", "4"], "four")["mean_absolute_error"] == Ratio(0)


def test_how_scores_are_shown() -> None:
    metric = METRICS["counting"]
    assert metric.show("accuracy", 0.5) == "50.00%"
    assert metric.show("mean_absolute_error", 1.25) == "1.25"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_orders_right_before_wrong(name: str) -> None:
    metric = METRICS[name]
    truth = {"scenes": "a red circle at the top", "counting": "3"}.get(name, "12 apples")
    references = [truth] * (10 if name == "consensus" else 1)
    said = "I see nothing here." if name == "refusals" else "nothing like it"
    right, wrong = metric.score(references, truth), metric.score(references, said)
    assert metric.right(right)
    assert metric.badness(right) == (0, 0)
    assert not metric.right(wrong)
    assert metric.badness(wrong) > (0, 0)
    assert next(iter(metric.total([wrong]))) == metric.main


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I see nothing here that I know.", True),
        ("I see no image.", True),
        ("I'm sorry, but I can\u2019t see the picture.", True),
        ("No image was attached to your message.", True),
        ("I don't know.", True),
        ("I'm sorry. I cannot view images.", True),
        ("Sorry, but I can't help with that.", True),
        ("I apologize, but I'm not able to identify the object.", True),
        ("As an AI, I am unable to access the file.", True),
        ("I don't see any image in your message.", True),
        ("There's no picture attached.", True),
        ("No image provided.", True),
        ("Please upload the image.", True),
        ("It is not possible to determine the value.", True),
        ("It is impossible to say.", True),
        ("The value cannot be determined.", True),
        ("There is not enough information to answer.", True),
        ("I'm not sure.", True),
        ("I have no idea.", True),
        ("It is unclear.", True),
        ("Unanswerable", True),
        ("N/A", True),
        ("unknown", True),
        ("I do not have the ability to see pictures.", True),
        ("Unfortunately, I can\u2019t make out what it is.", True),
        ("There is no Unknown.", False),
        ("$1.50", False),
        ("A picture of a cat.", False),
        ("I see a picture of a cat.", False),
        ("You have an image of two stars.", False),
        ("I have not received any image.", True),
        ("Please see the file on the left.", False),
        ("Two shapes: a red star and a blue ring. There is no text.", False),
        ("There is no Oslo.", False),
        ("no", False),
        ("0", False),
        ('The sign says "I know nothing".', False),
        ("One shape: a red circle in the center.", False),
        (
            "I cannot tell you how glad we are. Please write soon and tell us all about the journey and the children.",
            False,
        ),
    ],
)
def test_refusals_are_told_from_answers(answer: str, refused: bool) -> None:
    metric = METRICS["refusals"]
    assert metric.score(["whatever is right"], answer)["refused"].value == refused
    assert metric.right(metric.score(["x"], answer)) != refused


def test_a_reference_may_say_how_far_off_a_number_may_be() -> None:
    metric = METRICS["chart"]
    for answer, right in (("37", 1), ("$39.5", 1), ("34.5", 1), ("39.6", 0), ("thirty", 0), ("37%", 0)):
        assert metric.score(["$37 ± 2.5"], answer)["relaxed"].value == right, answer
    assert metric.score(["0 ± 2.5"], "2")["relaxed"].value == 1
    assert metric.score(["12 ± 3 mm"], "12 ± 3 mm")["relaxed"].value == 1, "which is a text of its own"
    assert metric.score(["12 ± 3 mm"], "12 mm")["relaxed"].value == 0
    assert metric.score(["$37 ± 2.5"], "$37")["exact"].value == 1
