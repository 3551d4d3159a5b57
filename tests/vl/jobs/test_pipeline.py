"""The way from sources to results, with the real engine on the small model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

import vl
from preprocessing import Inputs
from vl.engine import Generation, SamplingParams
from vl.jobs import pipeline
from vl.jobs.pipeline import answered


class AtOnce:
    """A pool without threads: what is handed to it is done at once, so that all two windows are ready at any time."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_result(work(*args))
        return future

    def shutdown(self, **_: Any) -> None: ...


class Answering:
    """An engine that has the answer to each prompt at once.

    Attributes:
        asked: the prompts.
        busy: five were asked.
    """

    def __init__(self) -> None:
        self.asked, self.busy = list[range](), threading.Event()

    def submit(self, inputs: range, params: SamplingParams) -> Any:
        self.asked.append(inputs)
        if len(self.asked) >= 5:
            self.busy.set()
        return SimpleNamespace(done=True, error=None, result=lambda: SimpleNamespace(text=""))

    def step(self) -> None: ...
    def cancel(self, request: Any) -> None: ...


@dataclass
class Item:
    source: str
    inputs: Inputs | None = None
    text: str | None = None
    error: Exception | None = field(default=None)

    @property
    def done(self) -> bool:
        return self.inputs is None

    def succeed(self, generation: Generation) -> None:
        self.inputs, self.text = None, generation.text

    def fail(self, error: Exception) -> None:
        self.inputs, self.error = None, error


QUESTIONS = ["A red circle", "Two squares", "pass", "What is at the top left of the picture?", "bad", "Blue", "Why?"]


def prepared(model: vl.MiniMaxVL, source: str) -> Item:
    if source == "pass":
        return Item(source)
    inputs = model.processor([{"role": "user", "content": source}])
    if source == "bad":
        inputs.input_ids[0] = 10**6
    return Item(source, inputs)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_answers_are_the_models_and_in_order(tiny_model: vl.MiniMaxVL, batch_size: int) -> None:
    params = SamplingParams(max_new_tokens=5)
    items = list(
        answered(tiny_model.engine, QUESTIONS, lambda s: prepared(tiny_model, s), params, batch_size=batch_size)
    )
    assert [item.source for item in items] == QUESTIONS
    for item in items:
        if item.source == "pass":
            assert (item.text, item.error) == (None, None)
        elif item.source == "bad":
            assert isinstance(item.error, vl.InputError)
        else:
            expected = tiny_model.chat([{"role": "user", "content": item.source}], max_new_tokens=5)
            assert (item.text, item.error) == (expected, None)
    assert tiny_model.engine.scheduler.running == []  # type: ignore[attr-defined]


def test_the_engine_is_kept_full(tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that ends makes room for the next at once, not when all of its batch have ended."""
    engine: Any = tiny_model.engine
    step, running = engine.step, []

    def counted() -> None:
        step()
        running.append(len(engine.scheduler.running))

    monkeypatch.setattr(engine, "step", counted)
    lengths = iter([2, 9, 2, 2, 2, 2])
    submit = engine.submit

    def submit_short(inputs: Inputs, params: SamplingParams) -> Any:
        return submit(inputs, SamplingParams(max_new_tokens=next(lengths)))

    monkeypatch.setattr(engine, "submit", submit_short)
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)
    sources = [f"Question {n}" for n in range(6)]
    list(answered(tiny_model.engine, sources, lambda s: prepared(tiny_model, s), SamplingParams(), batch_size=2))
    assert len(running) <= 11  # 9 for the longest, beside which the others go one after the other; batches need 14


def test_leaving_early_leaves_nothing_behind(tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, first = 0, threading.Event()

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"Question {taken}"

    def in_order(source: str) -> Item:
        """The others may not be answered while the first is on its way: more would be taken then."""
        item = prepared(tiny_model, source)
        if source == "Question 1":
            submitted.append(item.inputs)
        else:
            assert first.wait(120)
        return item

    submit, submitted = tiny_model.engine.submit, list[Any]()

    def submit_first(inputs: Inputs, params: SamplingParams) -> Any:
        if inputs is submitted[0]:
            first.set()
        return submit(inputs, params)

    monkeypatch.setattr(tiny_model.engine, "submit", submit_first)
    params = SamplingParams(max_new_tokens=3)
    items = answered(tiny_model.engine, endless(), in_order, params, batch_size=2)
    assert next(items).source == "Question 1"
    assert taken <= 2 * 2 + 2 + 2, "two windows, and those that are written"
    items.close()
    engine: Any = tiny_model.engine
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    for thread in threading.enumerate():
        if thread.name.startswith("vl-images"):
            thread.join(120)
            assert not thread.is_alive()


def test_a_bug_ends_it(tiny_model: vl.MiniMaxVL) -> None:
    def broken(source: str) -> Item:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(answered(tiny_model.engine, ["a"], broken, SamplingParams(), batch_size=1))
    with pytest.raises(vl.InputError, match="batch_size"):
        answered(tiny_model.engine, ["a"], broken, SamplingParams(), batch_size=0)


def test_however_late_the_first_is_no_more_results_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine rests, when as many as may be kept are answered, until it comes."""
    monkeypatch.setattr(pipeline, "_WAITING", 9)
    engine, late = Answering(), list[int]()

    def prepare(number: int) -> Item:
        if number == 0:
            assert engine.busy.wait(120)
            time.sleep(0.2)  # for which an engine that does not rest goes on
            late.append(len(engine.asked))
        return Item(str(number), range(number, number + 1))  # type: ignore[arg-type]

    items = list(answered(engine, range(100), prepare, SamplingParams(), batch_size=2, workers=4))
    assert [int(item.source) for item in items] == list(range(100))
    assert late[0] <= 9


def test_what_needs_no_engine_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As errors do: they come out though there is nothing to answer between them."""
    monkeypatch.setattr(pipeline, "_WAITING", 5)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"{taken}.png"

    items = answered(None, endless(), Item, SamplingParams(), batch_size=2, workers=3)  # type: ignore[arg-type]
    for number in range(1, 50):
        assert next(items).source == f"{number}.png"
        assert taken <= number + 5 + 2 * 2
    items.close()


def test_one_that_waits_for_the_answer_of_a_later_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a copy does, if another thread has read the same image first; though the line is full by then."""
    monkeypatch.setattr(pipeline, "_WAITING", 3)
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)

    class Copy(Item):
        @property
        def done(self) -> bool:
            return made[3].done

    def prepare(number: int) -> Item:
        made[number] = Item(str(number), range(1)) if number else Copy("0")  # type: ignore[arg-type]
        return made[number]

    made: dict[int, Item] = {}
    items = list(answered(Answering(), range(9), prepare, SamplingParams(), batch_size=2))
    assert [int(item.source) for item in items] == list(range(9))


def test_of_what_is_ready_the_longest_goes_first_and_none_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of four: its longest first, whatever comes after it."""
    engine = Answering()

    def prepare(length: int) -> Item:
        return Item(str(length), range(length))  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)
    lengths = [1, 5, 3, 4, 9, 8, 7, 6, 2]
    items = list(answered(engine, lengths, prepare, SamplingParams(), batch_size=4))
    assert [int(item.source) for item in items] == lengths, "in order"
    assert list(map(len, engine.asked)) == [5, 4, 3, 1, 9, 8, 7, 6, 2]
