"""What is asked: made-up texts and photographs, or the records of a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.chat import IMAGE_PARTS
from preprocessing.sources import seen_from
from vl.bench.pictures import photograph_part
from vl.bench.serving.client import Client
from vl.conversations import decode_record, read_conversation
from vl.errors import Error, InputError
from vl.evaluation.datafile import read_lines
from vl.jobs.served import data_url
from vl.model import DEFAULT_PROMPT

Message = dict[str, Any]

_WORDS = (
    *(
        "red",
        "blue",
        "house",
        "lake",
        "boat",
        "near",
        "two",
        "left",
        "right",
        "tree",
        "small",
        "large",
        "under",
        "over",
    ),
    *(
        "bright",
        "dark",
        "door",
        "road",
        "people",
        "table",
        "green",
        "behind",
        "water",
        "hill",
        "window",
        "round",
        "old",
    ),
)
_FEW, _MORE = 32, 160  # words of the texts whose tokens are counted


@dataclass(frozen=True)
class Question:
    """What a request asks. `long`: it is one of those whose prompts are long."""

    messages: list[Message]
    long: bool = False


@dataclass(frozen=True)
class Mixture:
    """Of made-up questions.

    Attributes:
        tokens: of the text; 0: `DEFAULT_PROMPT`.
        image: width and height of a photograph before it.
        prefix_share: part of the text's tokens that all requests share, as a system message.
        long_share: part of the requests that have `long_tokens` of text in place of all this.
    """

    tokens: int = 0
    image: tuple[int, int] | None = None
    prefix_share: float = 0.0
    long_share: float = 0.0
    long_tokens: int = 0


def made_up(mixture: Mixture, count: int, seed: int, words_per_token: float) -> list[Question]:
    """Questions that are always the same for a seed, and have nothing in common but what they are to share.

    Args:
        words_per_token: see `words_per_token`.
    """
    chosen = random.Random(seed)
    long = set(chosen.sample(range(count), round(count * mixture.long_share)))
    shared = round(mixture.tokens * mixture.prefix_share)
    prefix = words(random.Random(f"{seed} shared"), round(shared * words_per_token))
    made = []
    for number in range(count):
        tokens = mixture.long_tokens if number in long else mixture.tokens - shared
        text = words(chosen, max(1, round(tokens * words_per_token))) if tokens else DEFAULT_PROMPT
        content: list[Message] = [{"type": "text", "text": text}]
        if mixture.image and number not in long:
            content.insert(0, photograph_part(*mixture.image, seed=chosen.randrange(2**32)))
        messages: list[Message] = [{"role": "user", "content": content}]
        if prefix and number not in long:
            messages.insert(0, {"role": "system", "content": prefix})
        made.append(Question(messages, number in long))
    return made


def words(chosen: random.Random, count: int) -> str:
    """So many common words."""
    return " ".join(chosen.choices(_WORDS, k=count))


async def words_per_token(client: Client, model: str) -> float:
    """How many of our words a token of the server's is, by its own count of two texts.

    Raises:
        Error: if it refuses them or does not count.
    """
    counts = []
    for count in (_FEW, _MORE):
        message = {"role": "user", "content": words(random.Random(f"count {count}"), count)}
        answer = await client.whole({"model": model, "messages": [message], "max_tokens": 1})
        if answer.failure:
            raise Error(f"{client.url} refused a text of {count} words: {answer.failure}: {answer.message}")
        counts.append(answer.prompt_tokens)
    if counts[1] <= counts[0]:
        raise Error(f"{client.url} does not count the tokens of prompts (usage.prompt_tokens): give --records")
    return (_MORE - _FEW) / (counts[1] - counts[0])


def read_questions(path: Path, count: int | None) -> list[Question]:
    """The questions of a file's records, without the answer that a record ends with.

    Args:
        path: JSON Lines in any form that training and evaluation read; images are relative to it.
        count: how many; None: all.

    Raises:
        InputError or ImageError: naming the line that cannot be used, or if there are fewer.
    """
    found: list[Question] = []
    for number, line in read_lines(path):
        if len(found) == count:
            break
        try:
            found.append(Question(list(_asked(read_conversation(decode_record(line), _source), path.parent))))
        except Error as error:
            raise type(error)(f"{path}, line {number}: {error}") from None
    if not found or (count is not None and len(found) < count):
        raise InputError(f"{path} holds {len(found)} records" + (f", fewer than {count}" if count else ""))
    return found


def _source(source: Any) -> str:
    if not isinstance(source, str):
        raise InputError(f"an image has to be a path or a URL, not {type(source).__name__}")
    return source


def _asked(messages: Any, folder: Path) -> Iterator[Message]:
    """The messages that are to be answered, as a request has them."""
    turns = list(messages)
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns:
        raise InputError("there is nothing to answer")
    for turn in turns:
        content = turn.get("content")
        parts = [_part(part, folder) for part in content] if isinstance(content, list) else content
        yield {**turn, "content": parts}


def _part(part: Any, folder: Path) -> Any:
    if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS:
        return {"type": "image_url", "image_url": {"url": data_url(seen_from(folder, part["image"]))[0]}}
    return part
