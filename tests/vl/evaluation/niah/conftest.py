from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from preprocessing import ChatTemplate, Inputs, Processor, Tokenizer
from vl.engine import SamplingParams
from vl.recall.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def processor() -> Processor:
    """Of a text-only model, whose tokenizer has the words of drawn hay."""
    return Processor(Tokenizer(train_tokenizer(1024)), ChatTemplate(None), None)


@pytest.fixture
def reader(parrot: Callable[..., Any], processor: Processor) -> Callable[[Callable[[str], str]], Any]:
    """Makes a parrot with a real processor, whose reply is to the prompt's text; it keeps their `lengths` in tokens."""

    def make(reply: Callable[[str], str]) -> Any:
        model = parrot(reply)
        repeat = model.submit

        def submit(inputs: Inputs, params: SamplingParams) -> Any:
            model.lengths.append(len(inputs))
            text = processor.tokenizer.decode(inputs.input_ids.tolist())
            return repeat(SimpleNamespace(conversation=text), params)

        model.processor, model.submit, model.lengths = processor, submit, []
        return model

    return make
