from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vl.nano.mix import Mix
from vl.nano.render import render
from vl.nano.tokenizer import VOCAB_SIZE, train_tokenizer
from vl.training.config import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


def test_size_and_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    for expected, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(f"a{token}b").ids.count(expected) == 1
        assert tokenizer.token_to_id(token) == expected


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    code = "from vl.nano.tokenizer import train_tokenizer; print(train_tokenizer().to_str())"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == tokenizer.to_str()


@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_captions_are_short_and_digits_single(tokenizer: Tokenizer) -> None:
    for index in range(10):
        caption = render(5, index, Mix().only("scenes")).answer
        assert len(tokenizer.encode(caption).ids) <= len(caption.split()) * 1.6 + 3
    assert [t.lstrip("Ġ") for t in tokenizer.encode("2026").tokens] == ["2", "0", "2", "6"]
    assert len(tokenizer.encode("QJXHV").ids) == 5
