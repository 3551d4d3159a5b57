"""Sessions: the same answers as of the whole conversation, whatever else goes on, and after they were saved."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vl
from vl.engine import Engine
from vl.engine.reading import told_of_all

from .sessions import NEW, QUESTIONS, SMALL, TEXT, answers, ask, document, load, used_pages

ROOT = Path(vl.__file__).parents[1]


@pytest.fixture(scope="module")
def expected(tiny_text_checkpoint: Path) -> list[str]:
    return answers(load(tiny_text_checkpoint, prefix_memory=0), document())


@pytest.fixture
def model(tiny_text_checkpoint: Path) -> vl.MiniMaxVL:
    return load(tiny_text_checkpoint)


def test_it_answers_as_the_conversation_would(model: vl.MiniMaxVL, expected: list[str]) -> None:
    told: list[vl.Reading] = []
    session = model.read(document(), progress=told.append)
    assert session.tokens == session.total == told[-1].tokens == told[-1].total
    assert len(told) > 3
    for _ in range(2):
        assert [session.ask(question, **NEW) for question in QUESTIONS] == expected
    assert "".join(session.stream(QUESTIONS[0], **NEW)) == expected[0]
    results = session.generate(QUESTIONS, **NEW)
    assert [result.text for result in results] == expected
    assert all(result.usage.cached_tokens == session.tokens for result in results)
    assert session.ask([*ask("Hello"), *ask(QUESTIONS[0])], **NEW) == model.chat(
        [*document(), *ask("Hello"), *ask(QUESTIONS[0])], **NEW
    )


def test_images_in_what_was_read_and_in_questions(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, cache_tokens=12000, prefill_tokens=512, page_size=64)
    session = model.read(document(images=2))
    picture = Image.new("RGB", (50, 50), "blue")
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "And this?"}]
    whole = [*document(images=2), {"role": "user", "content": parts}]
    assert session.ask("And this?", images=[picture], **NEW) == model.chat(whole, **NEW)
    assert session.ask("What?", **NEW) == model.chat([*document(images=2), *ask("What?")], **NEW)


def test_what_is_remembered_and_what_is_added(model: vl.MiniMaxVL) -> None:
    session = model.read(document())
    first = session.ask("Hello", remember=True, **NEW)
    turn = [*document(), *ask("Hello"), {"role": "assistant", "content": first}]
    assert session.ask("And now?", **NEW) == model.chat([*turn, *ask("And now?")], **NEW)
    session.add(document("More of it."))
    whole = [*turn, *document("More of it.")]
    assert session.tokens == len(model.processor(whole, add_generation_prompt=False))
    assert session.ask("Hello", **NEW) == model.chat([*whole, *ask("Hello")], **NEW)


def test_others_take_nothing_of_it_and_it_takes_nothing_of_others(model: vl.MiniMaxVL, expected: list[str]) -> None:
    """In a cache that is too small for all of them at once, by turns and from threads."""
    session = model.read(document())
    alone = [model.chat(ask(f"{TEXT} {n}"), **NEW) for n in range(3)]
    found: dict[Any, str] = {}

    def run(key: Any, answer: Callable[[], str]) -> None:
        found[key] = answer()

    calls: dict[Any, Callable[[], str]] = {q: partial(session.ask, q, **NEW) for q in QUESTIONS}
    calls |= {n: partial(model.chat, ask(f"{TEXT} {n}"), **NEW) for n in range(3)}
    threads = [threading.Thread(target=run, args=call) for call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in QUESTIONS] == expected
    assert [found[n] for n in range(3)] == alone


def test_a_session_that_was_closed_takes_no_room(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even before the engine's next step, in which its pages are given back."""
    model = load(tiny_text_checkpoint)
    engine = model.engine
    assert isinstance(engine, Engine)
    session = model.read(document())
    monkeypatch.setattr(engine, "_room", lambda: SMALL["cache_tokens"])
    most = vl.SamplingParams(max_new_tokens=SMALL["cache_tokens"] - session.tokens + 1)
    with pytest.raises(vl.InputError, match="cannot be held"):
        engine.check(most, session.tokens)
    session.close()
    engine.check(most, session.tokens)
    request = engine.submit(model.processor(ask(TEXT)), vl.SamplingParams(max_new_tokens=2))
    engine.run([request])


def test_what_is_told_of_reading_never_goes_back_behind_what_was_known() -> None:
    told: list[vl.Reading] = []
    tell = told_of_all(told.append, 100, 60)
    for tokens in (80, 0, 60, 100):  # at 0 the request has given way to others
        tell(vl.Reading(tokens, 100, 1.0, 1.0))
    assert [reading.tokens for reading in told] == [80, 60, 60, 100]
    assert all(reading.rate >= 0 for reading in told)


def test_a_larger_cache_takes_it_along(tiny_text_checkpoint: Path, expected: list[str]) -> None:
    model = load(tiny_text_checkpoint, cache_tokens=8)
    sessions = [model.read(document())]
    pages = model.engine._cache().pages  # type: ignore[attr-defined]
    sessions.append(model.read(document("Hello world, 0123456789! " * 40)))
    assert model.engine._cache().pages > pages  # type: ignore[attr-defined]
    other = model.chat([*document("Hello world, 0123456789! " * 40), *ask("Hello")], **NEW)
    assert [sessions[0].ask(question, **NEW) for question in QUESTIONS] == expected
    assert sessions[1].ask("Hello", **NEW) == other


def test_a_larger_cache_that_cannot_be_had_loses_nothing(
    model: vl.MiniMaxVL, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, engine = model.read(document()), model.engine
    assert isinstance(engine, Engine)
    made = engine._make_runner

    def make(pages: int) -> Any:
        if pages > before:
            raise RuntimeError("not enough memory: you tried to allocate 1000 bytes")
        return made(pages)

    before = engine._cache().pages
    monkeypatch.setattr(engine, "_make_runner", make)
    with pytest.raises(vl.DeviceError, match="ran out of memory"):
        model.chat(document(TEXT * 5), **NEW)
    assert [session.ask(question, **NEW) for question in QUESTIONS] == expected


def test_its_pages_are_given_back(model: vl.MiniMaxVL) -> None:
    model.chat(ask("Hello"), **NEW)
    assert used_pages(model) == 0
    session = model.read(document())
    held = used_pages(model)
    assert held == -(-session.tokens // SMALL["page_size"])
    session.ask("Hello", remember=True, **NEW)
    assert used_pages(model) == -(-session.tokens // SMALL["page_size"]) > held
    with pytest.raises(vl.InputError, match="max_new_tokens"):
        session.ask("Hello", max_new_tokens=0)
    del session
    gc.collect()
    assert used_pages(model) == 0
    with model.read(document()) as session:
        assert used_pages(model) == held
    assert used_pages(model) == 0
    with pytest.raises(vl.InputError, match="the session was closed"):
        session.ask("Hello")


def test_after_the_model_changes_it_is_lost_and_says_so(model: vl.MiniMaxVL) -> None:
    session = model.read(document())
    with torch.no_grad():
        model.language_model.embed_tokens.weight.mul_(0.5)
    expected = model.chat([*document(), *ask("Hello")], **NEW)
    with pytest.raises(vl.InputError, match="the model has changed since"):
        session.ask("Hello", **NEW)
    assert model.read(document()).ask("Hello", **NEW) == expected
    assert used_pages(model) == 0


def test_a_read_that_is_interrupted_leaves_nothing(model: vl.MiniMaxVL, expected: list[str]) -> None:
    session = model.read(document())
    pages = used_pages(model)

    def stop(reading: vl.Reading) -> None:
        if reading.tokens > session.tokens + 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.add(document(TEXT[:200]), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        model.read(document(TEXT[5:] * 2), progress=stop)
    assert used_pages(model) == pages
    assert [session.ask(question, **NEW) for question in QUESTIONS] == expected


@pytest.mark.parametrize("source", [[], ["a.txt", {"role": "user", "content": "x"}], [{"role": "x"}], 3, ""])
def test_what_cannot_be_read_is_refused(model: vl.MiniMaxVL, source: Any) -> None:
    with pytest.raises(vl.InputError):
        model.read(source)


def test_images_beside_messages_are_refused(model: vl.MiniMaxVL) -> None:
    session = model.read(document())
    with pytest.raises(vl.InputError, match="put them into the messages' parts"):
        session.ask(ask("Hello"), images=["a.png"])
    with pytest.raises(vl.InputError, match="the question is empty: say what to ask, or show an image"):
        session.ask(" ")


@pytest.mark.parametrize(
    ("ask_of", "told"),
    [
        (lambda session: session.ask("Hello", images="a.png"), r"images must be a list .* not str: write \[image\]"),
        (lambda session: session.stream("Hello", images=b"GIF89a"), "images must be a list .* not bytes"),
        (lambda session: session.ask("Hello", progress=3), "progress=3 cannot be called"),
        (lambda session: session.stream("Hello", progress=3), "progress=3 cannot be called"),
        (lambda session: session.generate(["Hello"], progress=3), "progress=3 cannot be called"),
        (lambda session: session.add(document(), progress=3), "progress=3 cannot be called"),
        (lambda session: session.ask("Hello", remember="no"), "remember must be True or False, not 'no'"),
        (lambda session: session.generate("Hello"), "must be a list, not str: ask takes a single one"),
        (lambda session: session.generate(3), "must be a list, not int"),
        (lambda session: session._model.read(document(), overwrite="no"), "overwrite must be True or False"),
    ],
)
def test_arguments_of_other_kinds_are_refused(model: vl.MiniMaxVL, ask_of: Callable[[Any], object], told: str) -> None:
    with model.read(document()) as session, pytest.raises(vl.InputError, match=told):
        ask_of(session)


def test_what_several_threads_have_it_remember_is_all_there(model: vl.MiniMaxVL) -> None:
    session, failed = model.read(document()), []

    def remember(name: str) -> None:
        try:
            for turn in range(3):
                session.ask(f"{name} {turn}?", remember=turn < 2, **NEW)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=remember, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(session._known.read.messages) == 1 + 3 * 2 * 2
    assert torch.equal(model.processor(session._known.read, add_generation_prompt=False).input_ids, session._known.ids)


def test_an_answer_outlives_its_session(model: vl.MiniMaxVL, expected: list[str]) -> None:
    pieces = model.read(document()).stream(QUESTIONS[0], **NEW)
    gc.collect()
    for n in range(4):  # these would take its pages
        model.chat(ask(f"{n}" * 250), **NEW)
    assert "".join(pieces) == expected[0]


def test_a_session_is_not_copied(model: vl.MiniMaxVL) -> None:
    with pytest.raises(vl.InputError, match="save it"):
        copy.deepcopy(model.read(document()))
