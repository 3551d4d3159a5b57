from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

import vl
from preprocessing.chat import Conversation
from preprocessing.images import load_image

Reply = Callable[[Conversation], str]


@dataclass
class Parrot:
    """Stands in for a model: `reply` says what it answers to a conversation. Images are read, not looked at."""

    reply: Reply
    name: str = "parrot"
    batches: list[int] = field(default_factory=list)
    new_tokens: set[int] = field(default_factory=set)

    def processor(self, messages: Any) -> Any:
        conversation = Conversation.of(messages)
        images = [load_image(source) for source in conversation.images]
        grids = [SimpleNamespace(width=image.width, height=image.height) for image in images]
        return SimpleNamespace(conversation=conversation, images=images, grids=grids)

    def generate(self, batch: Sequence[Any], max_new_tokens: int) -> list[Any]:
        self.batches.append(len(batch))
        self.new_tokens.add(max_new_tokens)
        answers = [self.reply(inputs.conversation) for inputs in batch]
        if "too long" in answers:
            raise vl.InputError("this prompt has too many tokens")
        return [SimpleNamespace(text=answer, finish_reason="stop") for answer in answers]


@pytest.fixture
def parrot() -> Callable[[Reply], Any]:
    return Parrot
