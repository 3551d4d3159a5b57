"""Vocabularies are given the tokens of reasoning without a change to any other entry in use."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

import vl
from preprocessing import DEFAULT_TEMPLATE, ChatTemplate, Processor, Tokenizer
from preprocessing.reasoning import REASONING_TEMPLATE
from vl.training.build import build_processor
from vl.training.config import TrainConfig
from vl.training.data import DrawnBatches
from vl.training.vocabulary import train_bpe, with_reasoning

from .conftest import tables

PLAIN = Processor(Tokenizer(train_bpe([DEFAULT_TEMPLATE], 350)), ChatTemplate(None), None)
ROOM = len(PLAIN.tokenizer)
THINKS = with_reasoning(PLAIN, ROOM)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_texts_are_written_as_before_but_for_two_entries(text: str) -> None:
    before, after = PLAIN.tokenizer.encode(text), THINKS.tokenizer.encode_plain(text)
    assert THINKS.tokenizer.decode(after) == PLAIN.tokenizer.decode(before)
    given_up = set(THINKS.reasoning or ())
    if given_up.isdisjoint(before):
        assert after == before


def test_they_take_the_places_of_two_entries_of_which_nothing_is_made() -> None:
    assert len(THINKS.tokenizer) == ROOM
    assert THINKS.reasoning == (ROOM - 2, ROOM - 1)
    spelt = [PLAIN.tokenizer.decode([token]) for token in THINKS.reasoning or ()]
    for word in spelt:
        assert THINKS.tokenizer.decode(THINKS.tokenizer.encode(word)) == word
    assert with_reasoning(THINKS, ROOM) is THINKS


def test_they_follow_the_vocabulary_where_the_embedding_has_room() -> None:
    thinks = with_reasoning(PLAIN, ROOM + 2)
    assert thinks.reasoning == (ROOM, ROOM + 1)
    assert thinks.tokenizer.encode("rename the monkey") == PLAIN.tokenizer.encode("rename the monkey")


@pytest.mark.parametrize("room", [ROOM, ROOM + 2])
def test_tokens_that_are_there_keep_their_entries_and_cost_no_others(room: int) -> None:
    kept = with_reasoning(replace(THINKS, template=PLAIN.template), room)
    assert kept.template.source == REASONING_TEMPLATE
    assert kept.tokenizer.backend.to_str() == THINKS.tokenizer.backend.to_str()
    described = json.loads(PLAIN.tokenizer.backend.to_str())
    described["added_tokens"].append(json.loads(THINKS.tokenizer.backend.to_str())["added_tokens"][-2] | {"id": ROOM})
    half = replace(PLAIN, tokenizer=Tokenizer(Backend.from_str(json.dumps(described))))
    assert half.tokenizer.token_id("<think>") == ROOM
    assert with_reasoning(half, ROOM + 1).reasoning == (ROOM, ROOM - 1), "one entry is given up for one token"
    assert with_reasoning(half, ROOM + 2).reasoning == (ROOM, ROOM + 1)


def test_other_templates_in_the_released_format_are_replaced_and_what_is_not_says_so() -> None:
    with pytest.raises(vl.ConfigError, match="own chat template writes no reasoning_content"):
        with_reasoning(replace(PLAIN, template=ChatTemplate("{{ messages }}")), ROOM)
    older = ChatTemplate(DEFAULT_TEMPLATE.replace("message['role'] == 'function'", "false"))
    assert with_reasoning(replace(PLAIN, template=older), ROOM).template.source == REASONING_TEMPLATE
    words = Tokenizer(Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(vl.ConfigError, match="BPE vocabularies, not WordLevel"):
        with_reasoning(replace(PLAIN, tokenizer=words), 2)
    letters = Tokenizer(Backend(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(vl.ConfigError, match="no 2 entries"):
        with_reasoning(replace(PLAIN, tokenizer=letters), 2)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_source_that_thinks_has_a_model_that_can(share: float) -> None:
    recipe = tables()
    recipe["data"]["mix"] |= {"scratch": share, "questions": 1.0}
    config = TrainConfig.of(recipe)
    processor = build_processor(config)
    assert (processor.reasoning is not None) == bool(share)
    batch = DrawnBatches(config.data, processor, 0, config.data.open_source())[(1, 2)]
    markers = set(processor.reasoning or ())
    assert len(markers & set(batch.labels.tolist())) == (2 if share else 0), "what was looked at is learnt"
