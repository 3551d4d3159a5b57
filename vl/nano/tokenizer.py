"""The small byte-level BPE vocabulary of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Tokenizer

from vl.nano.mix import Mix
from vl.nano.pictures.english import word_list
from vl.nano.render import render
from vl.training.vocabulary import train_bpe

VOCAB_SIZE = 2048

# Everyday text beside the captions: what people type at a prompt, and what the chat template writes.
_GENERAL = """system ai_setting=assistant
user name=user
ai name=assistant
You are a helpful assistant. Please answer the question about the picture. Hello! Thank you very much.
How many shapes are there? There are three shapes in the image. What colour is the circle? Which colour is it?
Where is the star? It is to the left of the square, above the ring and below the heart. Is there a triangle? Yes. No.
What is written here? What number is this? The sign says that the shop opens at nine and closes at half past five.
Describe the picture in one sentence, in detail, or in a few words. I can see a large green tree next to a small house.
This text is not in the image: it isn't there, they don't say, we can't tell, and that's all (as far as I know).
Mr. and Mrs. Smith paid $12.50, or 15% more; the total was 1,234.00 - "quite a lot", he said... Really?! e-mail: a@b.org
""".splitlines()


def train_tokenizer(vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Trains byte-level BPE with exactly `vocab_size` entries; the special tokens are entries 0 to 2.

    The text is the renderer's captions and prompts, its word list and some everyday English. Upper-case words are left
    out, so they and random strings fall apart into letters, and every digit is an entry of its own: a picture of text
    is read off nearly glyph by glyph. All 256 bytes are entries, so any text has an encoding.
    """
    return Tokenizer.from_str(_trained(vocab_size))


@lru_cache(maxsize=4)
def _trained(vocab_size: int) -> str:
    return train_bpe(_corpus(), vocab_size).to_str()


def _corpus() -> Iterator[str]:
    scenes = Mix().only("scenes")
    for index in range(400):
        sample = render(0, index, scenes)
        yield sample.prompt
        yield sample.answer
    for word in word_list():
        yield f'The text reads "{word} {word}".'
        yield f"{word.capitalize()} {word.capitalize()}"
    for line in _GENERAL:
        yield from (line,) * 20
