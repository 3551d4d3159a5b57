"""Answers that are thought about first: what is thought is kept apart, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import vl
from vl.engine import AsyncEngine, Engine, Request
from vl.engine.choosing import Chosen

MESSAGES = [{"role": "user", "content": "Sum of A and B?"}]
SAID = "<think>A 12, B 30</think>It is 42."
Say = Callable[[str], None]


@pytest.fixture
def says(thinking_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Has the model say a text, in which control tokens may be written out, and end."""
    push = Engine._push

    def say(text: str) -> None:
        ids = [*thinking_model.processor.tokenizer.encode(text), *thinking_model.end_ids]

        def scripted(self: Engine, request: Request, chosen: Chosen) -> None:
            push(self, request, chosen._replace(token_id=ids[request.written]))

        monkeypatch.setattr(Engine, "_push", scripted)

    return say


def answer(model: vl.MiniMaxVL, **sampling: Any) -> vl.Generation:
    return model.generate([MESSAGES], **{"max_new_tokens": 200, **sampling})[0]


def test_what_is_thought_is_no_part_of_the_answer(thinking_model: vl.MiniMaxVL, says: Say) -> None:
    says(SAID)
    found = answer(thinking_model)
    assert (found.text, found.reasoning, found.finish_reason) == ("It is 42.", "A 12, B 30", "stop")
    encode = thinking_model.processor.tokenizer.encode
    assert found.usage.completion_tokens == len(found.token_ids) == len(encode(SAID)) + 1
    assert found.usage.reasoning_tokens == len(encode("<think>A 12, B 30</think>"))
    assert thinking_model.chat(MESSAGES, max_new_tokens=200) == "It is 42."
    assert "".join(thinking_model.stream(MESSAGES, max_new_tokens=200)) == "It is 42."


@pytest.mark.parametrize(
    ("said", "text", "reasoning"),
    [
        ("It is 42.", "It is 42.", ""),
        ("It is <think>not</think>42.", "It is not42.", ""),
        ("<think></think>42", "42", ""),
        ("<think>é</think>é", "é", "é"),
        ("<think>A <think> B</think>42</think>", "42", "A  B"),
        ("<think>never ends", "", "never ends"),
    ],
)
def test_it_comes_first_or_not_at_all(
    thinking_model: vl.MiniMaxVL, says: Say, said: str, text: str, reasoning: str
) -> None:
    says(said)
    found = answer(thinking_model)
    assert (found.text, found.reasoning) == (text, reasoning)


def test_stop_strings_are_of_the_answer_and_the_limit_is_of_all(thinking_model: vl.MiniMaxVL, says: Say) -> None:
    says(SAID)
    found = answer(thinking_model, stop=["30", " 42"])
    assert (found.text, found.reasoning, found.finish_reason) == ("It is", "A 12, B 30", "stop")
    for limit in range(1, len(thinking_model.processor.tokenizer.encode(SAID)) + 1):
        cut = answer(thinking_model, max_new_tokens=limit)
        assert cut.finish_reason == "length"
        assert len(cut.token_ids) == limit
        assert "A 12, B 30".startswith(cut.reasoning)
        assert "It is 42.".startswith(cut.text)


def test_a_form_is_of_the_answer(thinking_model: vl.MiniMaxVL) -> None:
    pytest.importorskip("llguidance")
    assert thinking_model.processor.reasoning is not None
    likely = {thinking_model.processor.reasoning.open: 100.0}
    found = answer(thinking_model, response_format={"type": "regex", "pattern": "[ab]{3}"}, logit_bias=likely)
    assert (len(found.text), set(found.text) <= {"a", "b"}, found.reasoning) == (3, True, "")


def test_coroutines_are_told_of_both(thinking_model: vl.MiniMaxVL, says: Say) -> None:
    says(SAID)

    async def follow() -> tuple[str, str]:
        async with AsyncEngine(thinking_model.engine) as engine:
            request = await engine.prepare(thinking_model.processor(MESSAGES), vl.SamplingParams(max_new_tokens=200))
            deltas = [delta async for delta in engine.follow(request)]
        return "".join(delta.reasoning for delta in deltas), "".join(delta.text for delta in deltas)

    assert asyncio.run(follow()) == ("A 12, B 30", "It is 42.")


def test_the_next_turn_is_not_given_what_was_thought(thinking_model: vl.MiniMaxVL, says: Say) -> None:
    says(SAID)
    session = thinking_model.read([{"role": "system", "content": "A 12, B 30"}])
    assert session.ask("Sum?", remember=True, max_new_tokens=200) == "It is 42."
    talk = [
        {"role": "system", "content": "A 12, B 30"},
        {"role": "user", "content": "Sum?"},
        {"role": "assistant", "content": "It is 42.", "reasoning_content": "A 12, B 30"},
    ]
    assert session.tokens == len(thinking_model.processor(talk, add_generation_prompt=False).input_ids)
