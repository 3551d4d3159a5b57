from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from forkserver import forking

import vl
from preprocessing.chat import Conversation
from preprocessing.images import load_image
from vl.bench import runner
from vl.bench.serving import process
from vl.engine import Engine, SamplingParams, grammars
from vl.jobs import children
from vl.ranks import processes
from vl.training import curve

Reply = Callable[[Conversation], str]
Left = Callable[[vl.MiniMaxVL], dict[str, int]]


@pytest.fixture(scope="session", autouse=True)
def _processes_are_forks() -> Iterator[None]:
    """Those that the project itself starts: most of what they cost here is to import torch. And trials have time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (runner, process, children, processes, curve):
            patch.setattr(module, "subprocess", forking)
        patch.setattr(grammars, "_SECONDS", 120.0)  # as a trial may take beside whatever else this machine does
        yield


@dataclass
class Said:
    """A request to a parrot."""

    answer: str
    done: bool = False
    error: Exception | None = None

    def result(self) -> Any:
        return SimpleNamespace(text=self.answer, finish_reason="stop", reasoning="", logprobs=None)


class Read(SimpleNamespace):
    """What a processor gives, as long as it has images."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Parrot:
    """Stands in for a model and its engine: `reply` says what it answers to a conversation. Images are not looked at.

    Attributes:
        batches: how many were answered at once, step by step.
        new_tokens: what was allowed.
    """

    reply: Reply
    name: str = "parrot"
    batches: list[int] = field(default_factory=list)
    new_tokens: set[int] = field(default_factory=set)
    queue: list[Said] = field(default_factory=list)

    @property
    def engine(self) -> Parrot:
        return self

    def processor(self, messages: Any) -> Any:
        conversation = Conversation.of(messages)
        images = [load_image(source) for source in conversation.images]
        grids = [SimpleNamespace(width=image.width, height=image.height) for image in images]
        return Read(conversation=conversation, images=images, grids=grids)

    def check(self, params: SamplingParams) -> None:
        self.new_tokens.add(params.max_new_tokens)

    def submit(self, inputs: Any, params: SamplingParams) -> Said:
        self.new_tokens.add(params.max_new_tokens)
        answer = self.reply(inputs.conversation)
        if answer == "too long":
            raise vl.InputError("this prompt has too many tokens")
        self.queue.append(Said(answer))
        return self.queue[-1]

    def step(self) -> None:
        self.batches.append(len(self.queue))
        for said in self.queue:
            said.done = True
        self.queue.clear()

    def cancel(self, request: Said) -> None:
        if request in self.queue:
            self.queue.remove(request)


@pytest.fixture
def parrot() -> Callable[[Reply], Any]:
    return Parrot


def _left_in(model: vl.MiniMaxVL) -> dict[str, int]:
    engine = model.engine
    assert isinstance(engine, Engine)
    scheduler, runner, prefixes = engine.scheduler, engine.runner, engine.prefixes
    found = {
        "waiting": len(scheduler.waiting),
        "running": len(scheduler.running),
        "doing less than could be": int(scheduler.shrunk),
    }
    if runner is not None and prefixes is not None:
        cache, kept = runner.cache, list(prefixes._kept.values())
        held = {page for each in prefixes.held for page in each.pages}
        idle = {page for each in kept for page in each.pages} - held
        found |= {
            "slots": cache.slots - cache.free_slots,
            "pages": cache.pages - cache.free_pages - cache.idle_pages - len(held),
            "idle pages of nothing that is kept": cache.idle_pages - len(idle),
            "places": prefixes._most - len(prefixes) - prefixes.free_places,
            "places that are taken twice": len(kept) - len({each.place for each in kept}),
        }
    return {name: count for name, count in found.items() if count}


@pytest.fixture(scope="session")
def left_in() -> Left:
    """What a model's engine still has of requests: nothing, once all have ended. Sessions and what is kept may stay."""
    return _left_in


@pytest.fixture(scope="session")
def until_idle() -> Callable[[vl.MiniMaxVL], None]:
    """Returns once nothing is left in a model's engine; ends the test if that does not come.

    An answer that should have been given up may not be written to its end meanwhile: none gets 5,000 tokens more.
    """

    def wait(model: vl.MiniMaxVL) -> None:
        assert isinstance(model.engine, Engine)
        deadline, before = time.monotonic() + 120, dict[int, int]()
        while found := _left_in(model):
            for request in list(model.engine.scheduler.running):
                assert request.written - before.setdefault(request.arrival, request.written) < 5000, found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    return wait
