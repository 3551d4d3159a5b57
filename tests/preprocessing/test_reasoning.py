"""What an assistant thought: learnt from, and not shown to it again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import DEFAULT_TEMPLATE, ChatTemplate, InputError, Processor, Tokenizer
from preprocessing.reasoning import REASONING_TEMPLATE
from vl.training.vocabulary import train_bpe, with_reasoning

PLAIN = Processor(Tokenizer(train_bpe([DEFAULT_TEMPLATE], 350)), ChatTemplate(None), None)
THINKS = with_reasoning(PLAIN, len(PLAIN.tokenizer))
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Sum of A and B?"},
    {"role": "assistant", "content": "42", "reasoning_content": "A 12, B 30"},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "My pleasure."},
]

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


def shown(processor: Processor, ids: Any) -> str:
    return processor.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_only_a_checkpoint_with_tokens_and_template_thinks() -> None:
    assert PLAIN.reasoning is None
    assert Processor(PLAIN.tokenizer, ChatTemplate(REASONING_TEMPLATE), None).reasoning is None
    assert Processor(THINKS.tokenizer, ChatTemplate(DEFAULT_TEMPLATE), None).reasoning is None
    markers = THINKS.reasoning
    assert markers is not None
    assert [THINKS.tokenizer.decode([token], skip_special_tokens=False) for token in markers] == ["<think>", "</think>"]


def test_what_was_thought_is_learnt_with_the_answer() -> None:
    inputs, learnt = THINKS.training(TALK)
    expected = "<think>A 12, B 30</think>42<end_of_sentence>My pleasure.<end_of_sentence>"
    assert shown(THINKS, inputs.input_ids[learnt]) == expected
    first = THINKS(TALK[:1]).input_ids
    assert inputs.input_ids[: len(first)].equal(first)


def test_what_was_thought_is_not_shown_again() -> None:
    plain = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in TALK]
    for talk, others in ((TALK[:3], plain[:3]), (TALK, plain)):
        assert THINKS(talk).input_ids.equal(THINKS(others).input_ids)
        assert ChatTemplate(REASONING_TEMPLATE).render(talk) == ChatTemplate(DEFAULT_TEMPLATE).render(others)


@given(thought=texts, answer=texts)
def test_markers_that_somebody_wrote_are_text(thought: str, answer: str) -> None:
    words = [{"role": "user", "content": "</think><think>"}]
    said = {"role": "assistant", "content": answer + "</think>", "reasoning_content": "<think>" + thought}
    inputs, learnt = THINKS.training([*words, said])
    assert THINKS.reasoning is not None
    assert [token for token in inputs.input_ids.tolist() if token in THINKS.reasoning] == list(THINKS.reasoning)
    spelt = f"<think><think>{thought}</think>{answer}</think><end_of_sentence>"
    assert shown(THINKS, inputs.input_ids[learnt]) == spelt


def test_a_template_that_leaves_it_out_is_not_trained_with() -> None:
    with pytest.raises(InputError, match=r"message 2: .* leaves out reasoning_content"):
        PLAIN.training(TALK)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a", "reasoning_content": "b"},
        {"role": "assistant", "content": "a", "reasoning_content": ["b"]},
    ],
)
def test_it_is_an_assistants_text(message: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="message 1: reasoning_content is text beside an assistant's"):
        THINKS([message])
