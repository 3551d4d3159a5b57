"""Hay: sentences without end, drawn or from the user's files, and as many tokens of it as are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice
from random import Random

from preprocessing.tokenizer import Tokenizer
from vl.errors import InputError
from vl.evaluation.niah.text import draw_sentences

Hay = Callable[[Random], Iterator[str]]
"""Sentences without end from a random start, each with the white space before it."""

_ENDS = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])|(?=\n)")


def drawn_hay(rng: Random) -> Iterator[str]:
    """The sentences of `vl.evaluation.niah.text`."""
    return (f" {sentence}" for sentence in draw_sentences(rng))


def file_hay(paths: Sequence[str | os.PathLike[str]]) -> Hay:
    """The text of some files, round and round, from a sentence that is drawn.

    Raises:
        InputError: if a file cannot be read, is not UTF-8, or there is no text in any.
    """
    sentences = [part for path in paths for part in _ENDS.split(_read(path)) if part.strip()]
    if not sentences:
        raise InputError(f"there is no text in {', '.join(map(str, paths))}: a haystack needs some")

    def hay(rng: Random) -> Iterator[str]:
        start = rng.randrange(len(sentences))
        whole = chain(islice(sentences, start, None), islice(sentences, start))
        return (sentence if sentence[0].isspace() else f" {sentence}" for sentence in cycle(whole))

    return hay


def take_tokens(hay: Iterator[str], tokenizer: Tokenizer, count: int) -> tuple[list[int], list[int]]:
    """Exactly `count` tokens of hay, the last sentence cut if need be.

    Returns:
        Token ids, and where in them each sentence begins; [0] for no hay at all.
    """
    ids: list[int] = []
    starts: list[int] = []
    while len(ids) < count or not starts:
        starts.append(len(ids))
        ids += tokenizer.encode_plain(next(hay))
    del ids[count:]
    return ids, starts


def _read(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read the haystack {os.fspath(path)}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"the haystack {os.fspath(path)} is not UTF-8: convert it, or name a text file") from None
