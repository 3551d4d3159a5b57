from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.evaluation.metrics import METRICS, named_shapes
from vl.nano.pictures.canvas import COLOURS, SizeRange
from vl.nano.pictures.counts import draw_counts
from vl.nano.pictures.placing import POSITIONS
from vl.nano.pictures.questions import topics
from vl.nano.pictures.relations import TASK_KINDS, ask_scene, short_caption
from vl.nano.pictures.scenes import SHAPES, SceneFacts, Shape, caption_scene, draw_scene

SIZES = (SizeRange(64, 336, 1.0),)
SCENES = [draw_scene(np.random.default_rng((5, i)), SIZES)[1] for i in range(150)]
HEAPS = [draw_counts(np.random.default_rng((5, i)), SIZES)[1] for i in range(60)]
YES_NO = ("yes", "no")
THING = rf"((?:(?:{'|'.join(COLOURS)}) )?(?:(?:{'|'.join(SHAPES)})(?:e?s)?|shapes?))"
SIDES: dict[str, Callable[[Shape, Shape], bool]] = {
    "left": lambda a, b: a.x < b.x,
    "right": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
    "higher": lambda a, b: a.y < b.y,
    "lower": lambda a, b: a.y > b.y,
    "top": lambda a, b: a.y < b.y,
    "bottom": lambda a, b: a.y > b.y,
    "up": lambda a, b: a.y < b.y,
    "down": lambda a, b: a.y > b.y,
}


def shape(name: str, x: float, y: float, radius: float = 10, position: str = "in the center") -> Shape:
    colour, form = name.split()
    return Shape(form, colour, position, x, y, radius, 0.0, (0, 0, 0))


def meant(facts: SceneFacts, name: str) -> list[Shape]:
    """The shapes that words such as "red stars", "crosses" or "shape" speak of."""
    words = {
        w.removesuffix("es") if w == "crosses" else w.removesuffix("s") if w != "cross" else w for w in name.split()
    }
    return [s for s in facts.shapes if words - {"shape"} <= {s.colour, s.shape}]


def questions(kind: str, scenes: list[SceneFacts] = SCENES, each: int = 4) -> list[tuple[SceneFacts, str, str]]:
    asked = []
    for number, facts in enumerate(scenes):
        for turn in range(each):
            try:
                one = ask_scene(np.random.default_rng((number, turn)), facts, kinds=[kind])
            except ValueError:
                continue
            assert one.metric == ("counting" if kind == "counting" else "vqa")
            assert METRICS[one.metric].right(METRICS[one.metric].score([one.answer], one.answer))
            asked.append((facts, one.prompt, one.answer))
    assert len(asked) > len(scenes)
    assert len({re.sub(THING, "", prompt) for _, prompt, _ in asked}) >= 4
    return asked


@pytest.mark.parametrize("scenes", [SCENES, HEAPS], ids=["scenes", "heaps"])
def test_counts_are_what_is_there(scenes: list[SceneFacts]) -> None:
    answers = Counter()
    for facts, prompt, answer in questions("counting", scenes):
        found = re.search(THING, prompt)
        assert found, prompt
        assert int(answer) == len(meant(facts, found[1])), (prompt, facts.shapes)
        answers[int(answer)] += 1
    assert 0.05 < answers[0] / answers.total() < 0.25
    assert answers[1] / answers.total() < 0.6
    assert set(answers) >= set(range(7 if scenes is SCENES else 10))


def test_presence_is_balanced_and_right() -> None:
    answers = Counter()
    near = 0
    for facts, prompt, answer in questions("presence"):
        found = re.search(rf"\b(an?) {THING}", prompt)
        assert found, prompt
        assert found[1] == ("an" if found[2][0] in "aeiou" else "a")
        assert answer == YES_NO[not meant(facts, found[2])]
        answers[answer] += 1
        near += answer == "no" and len(found[2].split()) == 2 and all(meant(facts, w) for w in found[2].split())
    assert 0.42 < answers["yes"] / answers.total() < 0.58
    assert near > 0.1 * answers["no"], "absent things are too easy"


def test_colours_and_shapes_are_those_of_the_one_thing_meant() -> None:
    for facts, prompt, answer in questions("colour"):
        places = [s for s in facts.shapes if re.search(rf"\bshape {s.position}\b(?! (left|right))", prompt)]
        found = re.search(rf"[Tt]he ({'|'.join(SHAPES)})\b", prompt)
        (one,) = places or meant(facts, found[1] if found else "")
        assert answer == one.colour
    for facts, prompt, answer in questions("shape"):
        colour = re.search(rf"\b({'|'.join(COLOURS)})\b", prompt)
        assert colour, prompt
        (one,) = meant(facts, colour[1])
        assert answer == one.shape


def test_what_is_absent_has_no_colour_form_or_place() -> None:
    for facts, prompt, answer in questions("absent"):
        found = re.fullmatch(rf"There is no {THING}\.", answer)
        assert found
        assert not meant(facts, found[1])
        assert (found[1].removesuffix(" shape") if found[1].endswith(" shape") else found[1]) in prompt


def test_places_are_those_of_the_grid() -> None:
    for facts, prompt, answer in questions("place"):
        asked = prompt.split(" Answer ")[0].split(" Say ")[0]
        if answer.split()[0] in COLOURS:
            where = [p for row in POSITIONS for p in row if p in prompt]
            position = max(where, key=len)
            (one,) = [s for s in facts.shapes if s.position == position]
            assert answer == f"{one.colour} {one.shape}"
        else:
            found = re.search(rf"the {THING}", asked)
            assert found, prompt
            (one,) = meant(facts, found[1])
            row, col = int(3 * one.y / facts.height), int(3 * one.x / facts.width)
            assert answer == POSITIONS[row][col]


def test_relations_hold_beyond_dispute() -> None:
    answers = Counter()
    for facts, prompt, answer in questions("relation", each=6):
        first, second = re.findall(rf"[Tt]he {THING}", prompt)
        (a,), (b,) = meant(facts, first), meant(facts, second)
        words = re.findall(r"\b(left|right|above|below|higher|lower)\b", prompt)
        if answer in YES_NO:
            assert (answer == "yes") == SIDES[words[0]](a, b)
        elif answer in SIDES:
            assert answer in words
            assert SIDES[answer](a, b)
        else:
            assert answer == (first if SIDES[words[0]](a, b) else second)
        along, across, side = abs(a.x - b.x), abs(a.y - b.y), facts.width
        if words[0] not in ("left", "right"):
            along, across, side = across, along, facts.height
        assert along >= 0.15 * side
        assert along >= 0.5 * across
        assert along >= a.radius + b.radius
        answers[answer] += 1
    assert 0.42 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.58
    assert all(answers[side] >= 5 for side in ("left", "right", "above", "below"))


def test_extremes_are_clear_of_all_others() -> None:
    for facts, prompt, answer in questions("extreme"):
        found = re.search(r"\b(left|right|top|bottom|up|down)\b", prompt.replace("-most", " "))
        assert found, prompt
        further = SIDES[found[1]]
        best = [a for a in facts.shapes if all(a is b or further(a, b) for b in facts.shapes)]
        assert [f"{s.colour} {s.shape}" for s in best] == [answer]
        vertical = found[1] not in ("left", "right")
        ends = sorted((s.y if vertical else s.x for s in facts.shapes), reverse=found[1] in ("right", "bottom", "down"))
        assert abs(ends[0] - ends[1]) >= 0.15 * (facts.height if vertical else facts.width)


def test_kinds_are_balanced_and_chosen() -> None:
    full = [facts for facts in SCENES if len(facts.shapes) >= 3]
    by_prompt = Counter()
    rng = np.random.default_rng(0)
    for facts in full * 5:
        asked = ask_scene(rng, facts)
        by_prompt[asked.metric] += 1
    assert 0.08 < by_prompt["counting"] / by_prompt.total() < 0.25  # one of seven kinds
    for _ in range(20):
        assert ask_scene(rng, full[0], kinds=("counting",)).metric == "counting"
    with pytest.raises(ValueError, match="no such kind of question: colours"):
        ask_scene(rng, full[0], kinds=("colours",))
    lone = SceneFacts(90, 90, (shape("red star", 45, 45),))
    with pytest.raises(ValueError, match="admits no question of relation, extreme"):
        ask_scene(rng, lone, kinds=("relation", "extreme"))
    assert ask_scene(rng, lone, kinds=("relation", "counting")).metric == "counting"


@given(st.integers(0, 2**32), st.sampled_from(TASK_KINDS))
def test_a_question_is_a_function_of_the_generator(seed: int, kind: str) -> None:
    facts = SCENES[seed % len(SCENES)]
    if kind in ("relation", "extreme", "shape"):
        facts = SceneFacts(100, 100, (shape("red star", 20, 20), shape("blue ring", 80, 75)))
    a, b = (ask_scene(np.random.default_rng(seed), facts, kinds=[kind]) for _ in range(2))
    assert a == b


def test_what_could_be_disputed_is_not_asked() -> None:
    # A square is a rectangle and a diamond, a ring some call a circle; the star lies on the border of two cells.
    wide = SceneFacts(100, 100, (shape("red square", 50, 50), shape("blue ring", 20, 20)))
    close = SceneFacts(100, 100, (shape("red star", 34, 50), shape("blue heart", 46, 60)))
    disputed = {f"{colour}{form}" for colour in ("", "red ") for form in ("rectangle", "diamond")} | {
        "circle",
        "blue circle",
    }
    seen = set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        found = re.search(THING, ask_scene(rng, wide, kinds=("counting", "presence")).prompt)
        assert found
        seen.add(found[1].removesuffix("s"))
        with pytest.raises(ValueError, match="admits"):
            ask_scene(rng, close, kinds=("relation", "extreme"))
        asked = ask_scene(rng, close, kinds=("place",))
        assert asked.answer == "in the center"
        assert "heart" in asked.prompt or "blue" in asked.prompt
    assert {"square", "ring", "red circle", "blue rectangle"} & seen
    assert not disputed & seen


def test_a_slanted_neighbour_is_left_of_nothing() -> None:
    facts = SceneFacts(300, 300, (shape("red star", 100, 20), shape("blue heart", 150, 280)))
    for seed in range(50):
        asked = ask_scene(np.random.default_rng(seed), facts, kinds=("relation",))
        assert not re.search("left|right", asked.prompt), asked


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (["red circle", "blue star", "blue star"], "A red circle and two blue stars."),
        (["orange cross", "gray oval", "orange cross"], "Two orange crosses and a gray oval."),
        (["black ring"] * 9, "Nine black rings."),
        (["white heart"], "A white heart."),
        (["pink oval", "orange oval", "cyan cross"], "A pink oval, an orange oval and a cyan cross."),
    ],
)
def test_short_captions(names: list[str], caption: str) -> None:
    assert short_caption(SceneFacts(9, 9, tuple(shape(name, 1, 1) for name in names))) == caption


def test_short_captions_agree_with_the_long_ones() -> None:
    numbers = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    for facts in SCENES:
        named: Counter[tuple[str, str]] = Counter()
        for many, colour, form in re.findall(
            r"\b(an?|two|three|four|five|six) (\w+) (\w+)", short_caption(facts).lower()
        ):
            one = form if many in ("a", "an") else re.sub(r"(?<=cross)es$|s$", "", form)
            named[colour, one] += numbers.get(many, 1)
        assert named == Counter(pair[:2] for pair in named_shapes(caption_scene(facts)))
        assert not any(place in short_caption(facts) for row in POSITIONS for place in row)
    prompts = topics()["scenes.short"].ask
    assert len(prompts) == len(set(prompts)) >= 4


def test_moving_a_shape_across_turns_the_answer() -> None:
    a, b = shape("red star", 20, 50), shape("blue heart", 80, 50)
    swapped = SceneFacts(100, 100, (replace(a, x=80), replace(b, x=20)))
    opposite = {"yes": "no", "no": "yes", "left": "right", "right": "left"}
    for seed in range(60):
        one = ask_scene(np.random.default_rng(seed), SceneFacts(100, 100, (a, b)), kinds=("relation",))
        first, second = re.findall(r"[Tt]he ((?:red|blue)? ?(?:star|heart|shape))", one.prompt)
        (x,), (y,) = meant(swapped, first), meant(swapped, second)
        words = re.findall("left|right", one.prompt)
        expected = YES_NO[not SIDES[words[0]](x, y)]
        if one.answer in opposite:
            assert opposite[one.answer] == (expected if one.answer in YES_NO else ("left" if x.x < y.x else "right"))
