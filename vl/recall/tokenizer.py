"""A vocabulary in which every word of the synthetic text is one token, and every digit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vl.evaluation.niah.text import ADJECTIVES, INTRODUCTION, NOUNS, VERBS
from vl.training.config import SPECIAL_TOKENS

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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer.to_str()


def _corpus() -> Iterator[str]:
    yield _FRAME
    yield from (f"the {word}" for word in (*ADJECTIVES, *NOUNS, *VERBS))
