from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

import vl
from preprocessing.chat import Conversation
from preprocessing.images import load_image
from vl.engine import SamplingParams

Reply = Callable[[Conversation], str]


@dataclass
class Said:
    """A request to a parrot."""

    answer: str
    done: bool = False
    error: Exception | None = None

    def result(self) -> Any:
        return SimpleNamespace(text=self.answer, finish_reason="stop")


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
