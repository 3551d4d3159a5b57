from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.evaluation import (
    attribute_accuracy,
    character_error_rate,
    edit_distance,
    named_shapes,
    read_text,
    scene_matches,
)
from vl.training.render import Mix, render
from vl.training.scenes import SceneFacts


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("saturday", "sunday", 3),
        ("rosettacode", "raisethysword", 8),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("gumbo", "gambol", 2),
    ],
)
def test_edit_distance_of_known_pairs(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance == edit_distance(b, a)


@given(a=st.text(max_size=12), b=st.text(max_size=12), c=st.text(max_size=12))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_character_error_rate_weighs_by_length() -> None:
    assert character_error_rate(["this is a test"], ["this is a test"]) == 0
    # 4 edits over 7 + 1 characters
    assert character_error_rate(["sitting", "x"], ["kitten", "y"]) == pytest.approx(4 / 8)
    assert character_error_rate(["ab"], ["abcdef"]) == 2
    with pytest.raises(ValueError, match="one each"):
        character_error_rate(["a"], [])
    with pytest.raises(ValueError, match="no characters"):
        character_error_rate([""], ["a"])


def scene() -> SceneFacts:
    facts = render(11, 3, Mix(max_objects=6).only("scenes")).facts
    assert isinstance(facts, SceneFacts)
    assert len(facts.shapes) >= 2
    return facts


def test_a_scene_matches_any_wording_and_order_that_names_each_object() -> None:
    facts = scene()
    names = [f"the {s.colour} {s.shape}" for s in facts.shapes]
    assert scene_matches("I see " + " and ".join(reversed(names)).upper(), facts)
    assert not scene_matches(" and ".join(names[1:]), facts), "one object missing"
    assert not scene_matches(" and ".join([*names, names[0]]), facts), "one object twice"
    assert not scene_matches(" and ".join(names), facts, positions=True), "no positions given"


def test_swapped_colours_do_not_match() -> None:
    facts = next(
        s.facts
        for s in (render(11, i, Mix().only("scenes")) for i in range(50))
        if len({x.colour for x in s.facts.shapes}) == len({x.shape for x in s.facts.shapes}) == 2
    )
    a, b = facts.shapes
    assert scene_matches(f"{a.colour} {a.shape}, {b.colour} {b.shape}", facts)
    assert not scene_matches(f"{b.colour} {a.shape}, {a.colour} {b.shape}", facts)


def test_positions_are_read_in_full() -> None:
    assert named_shapes("A red star at the top left and a blue ring at the top.") == [
        ("red", "star", "at the top left"),
        ("blue", "ring", "at the top"),
    ]


def test_quoted_text() -> None:
    assert read_text('The text reads "a "b" c".') == 'a "b" c'
    assert read_text(" plain answer \n") == "plain answer"


def test_attribute_accuracy_says_what_is_wrong() -> None:
    facts = next(
        sample.facts
        for sample in (render(1, index, Mix(words=0.0)) for index in range(50))
        if isinstance(sample.facts, SceneFacts) and len(sample.facts.shapes) == 2
    )
    first, second = facts.shapes
    other = "red" if first.colour != "red" else "blue"
    caption = f"Two shapes: a {other} {first.shape} {first.position} and a {second.colour} {second.shape} nowhere."
    assert attribute_accuracy([caption], [facts]) == {"count": 1.0, "colour": 0.5, "shape": 1.0, "position": 0.5}
    assert attribute_accuracy([""], [facts]) == {"count": 0.0, "colour": 0.0, "shape": 0.0, "position": 0.0}
