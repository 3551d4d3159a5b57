from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from vl.evaluation.metrics import METRICS, named_shapes, right_attributes, rouge_l, scene_matches

TRUTH = named_shapes("Two shapes: a red circle at the top left and a blue star in the center.")


def test_positions_are_read_in_full() -> None:
    assert named_shapes("A red star at the top left and a blue ring at the top.") == [
        ("red", "star", "at the top left"),
        ("blue", "ring", "at the top"),
    ]


def test_a_scene_matches_any_wording_and_order_that_names_each_object() -> None:
    assert scene_matches("I SEE A BLUE STAR AND A RED CIRCLE", TRUTH)
    assert not scene_matches("a red circle", TRUTH), "one object missing"
    assert not scene_matches("a red circle, a blue star, a blue star", TRUTH), "one object twice"
    assert not scene_matches("a blue circle and a red star", TRUTH), "colours swapped"
    assert not scene_matches("a red circle and a blue star", TRUTH, positions=True), "no positions given"
    assert scene_matches("a blue star in the center, a red circle at the top left", TRUTH, positions=True)


def test_attributes_say_what_is_wrong() -> None:
    assert right_attributes("a green circle at the top left and a blue star nowhere", TRUTH) == {
        "colour": 1,
        "shape": 2,
        "position": 1,
    }
    assert right_attributes("", TRUTH) == {"colour": 0, "shape": 0, "position": 0}


def test_scene_scores_weigh_attributes_by_objects() -> None:
    metric = METRICS["scenes"]
    both = "Two shapes: a red circle at the top left and a blue star in the center."
    one = "One shape: a black ring at the top."
    rows = [metric.score([both], both), metric.score([one], "a white ring at the top")]
    scores = metric.total(rows)
    assert next(iter(scores)) == "objects"
    assert scores["objects"] == scores["exact"] == 0.5
    assert scores["count"] == scores["position"] == 1
    assert scores["colour"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="names no coloured shape"):
        metric.score(["a dog"], "a dog")


WORDS = st.lists(st.sampled_from(["a", "red", "Dog,", "on", "the", "mat.", "42"]), max_size=10).map(" ".join)


@given(WORDS, WORDS)
def test_rouge_l_is_that_of_rouge_score(reference: str, caption: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, caption)["rougeL"].fmeasure
    assert rouge_l(reference, caption) == pytest.approx(expected)


def test_captions_are_held_against_the_best_reference() -> None:
    scores = METRICS["caption"].score(["a cat", "a small dog"], "a dog")
    assert scores["rouge_l"].value == pytest.approx(0.8)


def test_plural_shapes_are_counted() -> None:
    blue, red = ("blue", "star", None), ("red", "cross", "at the top")
    assert named_shapes("Two blue stars and a red cross at the top.") == [blue, blue, red]
    assert named_shapes("Blue stars, red crosses and four gray hexagons.")[2:] == [("gray", "hexagon", None)] * 4
    assert scene_matches("A red cross and two blue stars.", [blue, red, blue])
    assert not scene_matches("Three blue stars.", [blue, blue])
