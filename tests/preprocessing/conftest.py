"""A small byte-level BPE with the released special tokens, in our wrapper and in transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from preprocessing import Tokenizer

SPECIAL = ["<end_of_document>", "<beginning_of_sentence>", "<end_of_sentence>", "<image>"]
CORPUS = [
    "A red circle above a blue square. What is in this picture? It shows two green stars and one yellow triangle.",
    "Hello world, hello there! system ai_setting=assistant user name=user ai name=assistant\n\n",
    "La fenêtre s'ouvre déjà où naïve façade; 日本語の文字 и русский текст 🙂🚀",
] * 3


@pytest.fixture(scope="session")
def backend_json() -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@pytest.fixture(scope="session")
def tokenizer(backend_json: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend_json))


@pytest.fixture(scope="session")
def checkpoint(backend_json: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but tokenizer.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tokenizer.json").write_text(backend_json, encoding="utf-8")
    return folder
