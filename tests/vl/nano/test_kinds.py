"""Every kind of picture through the one door that training and evaluation use."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest

import vl
from preprocessing import Patcher
from vl.evaluation.metrics import METRICS, captions, named_shapes
from vl.model import DEFAULT_PROMPT
from vl.nano.kinds import KINDS
from vl.nano.mix import KIND_NAMES, SMALL, Mix
from vl.nano.patches import CLASSES, patch_labels
from vl.nano.pictures.canvas import COLOURS
from vl.nano.pictures.placing import POSITIONS
from vl.nano.pictures.scenes import SHAPES
from vl.nano.render import Sample, render
from vl.nano.source import NanoSource

from .pictures.cutout_folder import make_cutouts

FOLDER = os.environ.get("VL_EMOJI_FONTS")
COUNT = 24
FOLDERS: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> None:
    FOLDERS["cutouts"] = make_cutouts(tmp_path_factory.mktemp("cutouts"), 60)


@cache
def samples(kind: str) -> list[Sample]:
    mix = replace(
        Mix(sizes=SMALL, questions=0.6, damaged=0.5).only(kind), fonts=FOLDER if kind == "emoji" else None, **FOLDERS
    )
    try:
        return [render(11, index, mix) for index in range(COUNT)]
    except vl.ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_answer_is_right_by_the_samples_metric(kind: str) -> None:
    for sample in samples(kind):
        metric = METRICS[sample.metric]
        assert metric.right(metric.score((sample.answer,), sample.answer)), sample
        if sample.metric != "caption":
            assert not metric.right(metric.score((sample.answer,), "nonsense")), sample
        assert sample.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_questions_captions_and_damage(kind: str) -> None:
    drawn = samples(kind)
    assert len({sample.prompt for sample in drawn}) >= 5
    assert len({sample.image.tobytes() for sample in drawn}) == COUNT
    described = [sample for sample in drawn if sample.answer == KINDS[kind].caption(sample.facts)]
    if KINDS[kind].ask:
        assert 0.1 * COUNT <= len(described) <= 0.9 * COUNT
    assert any(sample.prompt == DEFAULT_PROMPT for sample in drawn) == KINDS[kind].default
    if kind != "nothing":
        assert any(sample.boxes != sample.facts.boxes for sample in drawn), "some are turned"
    assert any(sample.boxes == sample.facts.boxes for sample in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_can_be_learnt_from(kind: str) -> None:
    """Each has a class, and all but a few, smaller than the distance of two points, show up in the labels."""
    for sample in samples(kind):
        grid = Patcher().grid(*sample.image.size)
        seen = set(patch_labels(sample.boxes, grid).flatten().tolist())
        assert {CLASSES[name] for name, _ in sample.boxes} >= seen - {0}
        wide = {
            CLASSES[name]
            for name, (left, top, right, bottom) in sample.boxes
            if min(right - left, bottom - top) * 336 / max(sample.image.size) > 15
        }
        assert len(wide - seen) <= 0.2 * len(wide) + 1, sample


def test_short_captions_count_for_the_metric() -> None:
    """What a short caption names, plurals included, are the scene's shapes."""
    for sample in samples("counts"):
        if sample.metric == "scenes":
            named = sorted((colour, shape) for colour, shape, _ in named_shapes(sample.answer))
            assert named == sorted((s.colour, s.shape) for s in sample.facts.shapes)


def test_every_kind_has_a_frequency_and_its_metric_knows_its_words() -> None:
    assert tuple(KINDS) == KIND_NAMES == tuple(Mix().weights)
    assert set(captions.COLOURS) == set(COLOURS)
    assert set(captions.SHAPES) == set(SHAPES)
    assert set(captions.PLACES) == {place for row in POSITIONS for place in row}


def test_a_mix_that_draws_nothing_is_refused() -> None:
    with pytest.raises(vl.ConfigError, match="at least one of words, scenes"):
        Mix(scenes=0, words=0)
    with pytest.raises(vl.ConfigError, match=r"data\.mix\.questions = 1\.5 must be between 0 and 1"):
        Mix(questions=1.5)
    with pytest.raises(vl.ConfigError, match="'bold' must be one of all, learnt, held-out"):
        Mix(faces="bold")


def test_a_mix_draws_each_kind_as_often_as_it_says() -> None:
    mix = Mix(scenes=1, words=2, pages=1, sizes=SMALL)
    kinds = [render(12, index, mix).kind for index in range(120)]
    assert set(kinds) == set(mix.kinds) == {"scenes", "words", "pages"}
    assert 0.35 < kinds.count("words") / 120 < 0.65
    assert mix.easy().kinds == ("words", "scenes")


def test_a_share_of_questions_is_looked_at_first() -> None:
    mix = Mix(sizes=SMALL, questions=1.0, turns=4).only("scenes")
    for share in (0.0, 0.7, 1.0):
        samples = [render(12, index, replace(mix, scratch=share)) for index in range(60)]
        said = [m for sample in samples for m in sample.messages if m["role"] == "assistant"]
        looked = sum("reasoning_content" in message for message in said) / len(said)
        # Three in ten questions, such as what is at the top left, have nothing to look at.
        assert abs(looked - 0.65 * share) < 0.12
        assert all(message.get("reasoning_content") != "" for message in said)
        assert NanoSource({"scratch": share}).reasons == bool(share)
    with pytest.raises(vl.ConfigError, match="scratch"):
        Mix(scratch=1.5)


def test_held_out_faces_are_never_learnt() -> None:
    faces = {
        part: {render(13, i, replace(Mix(sizes=SMALL, faces=part).only("words"))).facts.face for i in range(60)}
        for part in ("learnt", "held-out")
    }
    assert faces["held-out"]
    assert not faces["learnt"] & faces["held-out"]
    assert all(name.startswith(("Caladea", "Manrope")) for name in faces["held-out"])


def test_pages_may_have_sizes_of_their_own() -> None:
    values = {"words": 1.0, "pages": 1.0, "scenes": 0.0, "sizes": [[64, 300, 1.0]], "page_sizes": [[400, 500, 1.0]]}
    source = NanoSource(values)
    drawn = [source.draw(13, i, stage=2) for i in range(80)]
    full = [getattr(sample.facts, "kind", "") in ("page", "screen") for sample in drawn]
    assert {getattr(sample.facts, "kind", "words") for sample in drawn} >= {"words", "page", "receipt", "sign"}
    assert [max(sample.image.size) >= 400 for sample in drawn] == full
    assert all(max(source.draw(13, i, stage=1).image.size) <= 336 for i in range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_more_turns_follow_the_first(kind: str) -> None:
    mix = replace(Mix(sizes=SMALL, questions=0.6).only(kind), fonts=FOLDER if kind == "emoji" else None, **FOLDERS)
    try:
        single, many = ([render(11, i, replace(mix, turns=turns)) for i in range(COUNT)] for turns in (1, 9))
    except vl.ConfigError as error:
        pytest.skip(str(error))
    for one, more in zip(single, many, strict=True):
        assert (one.prompt, one.answer, one.image.tobytes()) == (more.prompt, more.answer, more.image.tobytes())
        assert not one.later
        assert more.messages[1:2] == one.messages[1:]
        assert [message["role"] for message in more.messages] == ["user", "assistant"] * (1 + len(more.later))
        asked = [more.prompt, *(turn.prompt for turn in more.later)]
        assert len(set(asked)) == len(asked) <= 9
        said = [more.answer, *(turn.answer for turn in more.later)]
        assert said.count(KINDS[kind].caption(more.facts)) <= 1 or not KINDS[kind].ask
    longest = max(len(sample.later) for sample in many)
    assert longest >= 3 if KINDS[kind].ask else longest == 0
