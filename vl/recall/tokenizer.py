"""A vocabulary in which every word of the synthetic text is one token, and every digit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Tokenizer

from vl.evaluation.niah.text import ADJECTIVES, INTRODUCTION, NOUNS, VERBS
from vl.training.vocabulary import train_bpe

# What stands around the drawn words: the sentences' own, and what the chat template writes.
_FRAME = f"""{INTRODUCTION} The code of the thing is 0. The code
What is the code of the thing?
system ai_setting=assistant
user name=user
ai name=assistant
"""


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """Trains byte-level BPE with at most `vocab_size` entries; the special tokens are entries 0 to 2.

    All 256 bytes are entries, so any text has an encoding; 1024 are enough for every word of the synthetic text.
    """
    return Tokenizer.from_str(_trained(vocab_size))


@lru_cache(maxsize=4)
def _trained(vocab_size: int) -> str:
    return train_bpe(_corpus(), vocab_size).to_str()


def _corpus() -> Iterator[str]:
    yield _FRAME
    yield from (f"the {word}" for word in (*ADJECTIVES, *NOUNS, *VERBS))
