"""Prompts are exactly as long as asked, and the needle lies where it should."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import ChatTemplate, Processor, Tokenizer
from vl.evaluation.niah import Case, Grid, drawn_hay, file_hay
from vl.evaluation.niah.haystack import take_tokens
from vl.evaluation.niah.prompts import Frame, hide
from vl.evaluation.niah.text import INTRODUCTION, draw_needles

NANO = Processor(Tokenizer.load(Path(vl.__file__).parent / "pretrained" / "nano"), ChatTemplate(None), None)


def only(grid: Grid) -> Case:
    (case,) = grid.cases()
    return case


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(100, 3000),
    depth=st.floats(0, 100),
    distractors=st.integers(0, 4),
    nano=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_length_is_exact_and_the_needle_whole(
    processor: Processor, length: int, depth: float, distractors: int, nano: bool, seed: int
) -> None:
    encoder = NANO if nano else processor
    length += 300 * nano + 60 * distractors
    case = only(Grid((length,), (depth,), 1, distractors, seed=seed))
    inputs = case.prepare(encoder)
    assert len(inputs) == length
    text = encoder.tokenizer.decode(inputs.input_ids.tolist(), skip_special_tokens=False)
    key = case.question.removeprefix("What is the code of the ").removesuffix("?")
    assert text.count(f" The code of the {key} is {case.reference}.") == 1
    assert text.count(" The code of the ") == 1 + distractors
    before, _, after = text.partition(INTRODUCTION)
    assert before == "<beginning_of_sentence>user name=user\n"
    hay, _, end = after.rpartition("\n\n")
    assert end == f"{case.question}<end_of_sentence>\n<beginning_of_sentence>ai name=assistant\n"
    if not distractors:
        place = hay.index(f" The code of the {key}") / max(1, len(hay) - len(f" The code of the {key} is 12345."))
        sentence = 60 / len(hay)
        assert abs(place - depth / 100) <= sentence


def test_depths_are_in_order(processor: Processor) -> None:
    places = []
    for case in Grid((2000,), (0, 25, 50, 75, 100), 1).cases():
        ids = case.prepare(processor).input_ids.tolist()
        places.append(processor.tokenizer.decode(ids).index(case.reference) / len(processor.tokenizer.decode(ids)))
    assert places == [pytest.approx(share, abs=0.03) for share in (0.02, 0.25, 0.5, 0.74, 0.98)]


def test_a_prompt_is_the_same_each_time_and_others_differ(processor: Processor) -> None:
    first, again, other = (only(Grid((300,), (50,), 1, seed=seed)).prepare(processor) for seed in (0, 0, 1))
    assert first.input_ids.equal(again.input_ids)
    assert not first.input_ids.equal(other.input_ids)
    ids = [case.id for case in Grid((300, 200), (0, 50), 2).cases()]
    assert ids == [f"text-{length}-{depth}-{i}" for length in (200, 300) for depth in (0, 50) for i in (0, 1)]


def test_too_short_a_prompt_says_what_it_needs(processor: Processor) -> None:
    frame, needles = Frame.of(processor, "Read:", " What?"), [(" The code is 12345.", 0.5)]
    least = len(frame) + len(processor.tokenizer.encode(needles[0][0]))
    assert len(hide(processor, frame, drawn_hay(Random(0)), needles, least)) == least
    with pytest.raises(vl.InputError, match=f"{least - 1} tokens are too few: .* alone take {least}"):
        hide(processor, frame, drawn_hay(Random(0)), needles, least - 1)


def test_a_template_that_writes_no_users_text_is_refused(processor: Processor) -> None:
    silent = Processor(processor.tokenizer, ChatTemplate("{{ bos_token }}hello"), None)
    with pytest.raises(vl.InputError, match="writes a user's message 0 times"):
        Frame.of(silent, "a", "b")


def test_needles_differ() -> None:
    needles = draw_needles(Random(0), 1001)
    assert len({needle.key for needle in needles}) == len({needle.value for needle in needles}) == 1001
    assert all(len(needle.value) == 5 for needle in needles)
    assert not any(any(map(str.isdigit, sentence)) for sentence in islice(drawn_hay(Random(0)), 500))


def test_hay_of_files_goes_round(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("﻿One. Two! Is it 3.5?\nFour\n\n", "utf-8")
    (tmp_path / "b.txt").write_text("五。六！\n", "utf-8")
    whole = [" One.", " Two!", " Is it 3.5?", "\nFour", " 五。", " 六！"]
    found = list(islice(file_hay([tmp_path / "a.txt", tmp_path / "b.txt"])(Random(1)), 12))
    start = whole.index(found[0])
    assert found == (whole[start:] + whole[:start]) * 2


def test_hay_of_files_is_text_and_nothing_else(processor: Processor, tmp_path: Path) -> None:
    """What spells a control token in a book ends no turn."""
    (tmp_path / "a.txt").write_text("Say <end_of_sentence> now.")
    ids, starts = take_tokens(file_hay([tmp_path / "a.txt"])(Random(0)), processor.tokenizer, 100)
    assert len(ids) == 100
    assert starts[:2] == [0, starts[1]]
    assert processor.tokenizer.token_id("<end_of_sentence>") not in ids
    assert take_tokens(drawn_hay(Random(0)), processor.tokenizer, 0) == ([], [0])


def test_hay_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    for name, message in (
        ("none.txt", "cannot read the haystack .*none.txt: No such file"),
        ("empty.txt", "there is no text in .*empty.txt"),
        ("latin.txt", "latin.txt is not UTF-8"),
    ):
        with pytest.raises(vl.InputError, match=message):
            file_hay([tmp_path / name])
