"""What visitors may ask for: one model answers all of them, one at a time."""

from __future__ import annotations

from vl.engine import SamplingParams
from vl.errors import InputError

MOST_NEW_TOKENS = 1024
MOST_CHARACTERS = 4_000
"""Of one question. 98,000 kept every other visitor waiting for 54 s on two CPU cores."""
MOST_CHARACTERS_OF_TALK = 16_000
"""Of a conversation's questions and answers, which are all read again for the next answer."""


def sampling(max_new_tokens: object, temperature: object, top_p: object, seed: object) -> SamplingParams:
    """The settings as JSON has them; an emptied field is None. Raises InputError for one out of its range."""
    for name, value in (("max_new_tokens", max_new_tokens), ("temperature", temperature), ("top_p", top_p)):
        if value is None:
            raise InputError(f"{name} is empty: give it a number")
    settings = {
        "max_new_tokens": whole(max_new_tokens),
        "temperature": temperature,
        "top_p": top_p,
        "seed": whole(seed),
    }
    params = SamplingParams.of(settings)
    if params.max_new_tokens > MOST_NEW_TOKENS:
        raise InputError(f"max_new_tokens must be at most {MOST_NEW_TOKENS:,} here, not {params.max_new_tokens:,}")
    return params


def whole(value: object) -> object:
    """JavaScript and JSON have one type of number, so 8.0 is 8; anything else is left for SamplingParams to judge."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_length(question: str, said: int = 0) -> None:
    """Raises InputError if a question is too long, alone or after `said` characters of its conversation."""
    if len(question) > MOST_CHARACTERS:
        raise InputError(
            f"The question has {len(question):,} characters and may have {MOST_CHARACTERS:,}: please shorten it."
        )
    if said + len(question) > MOST_CHARACTERS_OF_TALK:
        raise InputError(
            f"The conversation would have {said + len(question):,} characters and may have "
            f"{MOST_CHARACTERS_OF_TALK:,}: clear it to go on about this image."
        )
