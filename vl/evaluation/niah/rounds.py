"""Needles in long chats: data files in the layout of MR-NIAH, the multi-round test published with MiniMax-01."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from preprocessing import Inputs, Processor
from preprocessing.chat import Conversation
from preprocessing.errors import brief
from vl.conversations import decode_record, read_conversation
from vl.errors import InputError
from vl.evaluation.datafile import read_lines, resolve_image
from vl.evaluation.niah.cases import Case, Failed, nearest
from vl.evaluation.niah.scoring import label_parts, repeat_score

ROUND_DEPTHS = (25.0, 50.0, 75.0)
"""Where the published files have their needles, in percent of the other rounds."""

_FORM = 'expected {"messages": [...], "label": "...", "length_class": 2048}'


def read_rounds(path: str | os.PathLike[str], depths: Sequence[float] = ROUND_DEPTHS) -> Iterator[Case | Failed]:
    """The chats of a file in order; one that cannot be used comes as a failure that says why.

    A line is {"messages": [...], "label": "...", "length_class": 2048}: a chat whose last turn, the user's, asks to
    repeat an earlier answer, and that answer. Paths of images in it count from the file's folder.

    The depth of a published chat is the one that it was made with: each has three short rounds, put before the rounds
    of numbers int(25% n), int(50% n) and int(75% n) of a chat of n others, one after another, and asks for one of the
    three. Files are known as published ones by their needles' rounds. In others the depth is measured: the share of
    the chat's characters, less the needle's and the question's, that stand before the answer. A chat counts for the
    nearest of `depths`.

    Args:
        depths: in percent.

    Raises:
        InputError: if the file cannot be read.
    """
    chats = list(_read(path))
    rounds = defaultdict(set)
    for chat in chats:
        if isinstance(chat, _Chat):
            rounds[chat.length, chat.rounds].add(chat.needle)
    for chat in chats:
        if isinstance(chat, Failed):
            yield chat
            continue
        made = [int(depth / 100 * (chat.rounds - len(ROUND_DEPTHS))) for depth in ROUND_DEPTHS]
        published = sorted(rounds[chat.length, chat.rounds]) == made
        depth = ROUND_DEPTHS[made.index(chat.needle)] if published else chat.measured
        yield Case(
            id=chat.place,
            length=chat.length,
            depth=nearest(depths, depth),
            question=chat.question,
            reference=chat.label,
            prepare=partial(_prepare, chat.chat),
            score=repeat_score,
        )


@dataclass(frozen=True)
class _Chat:
    """A record: `needle` is the number, from 0, of the round that has the label, of `rounds`; `measured` in percent."""

    place: str
    chat: Conversation
    question: str
    label: str
    length: int
    needle: int
    rounds: int
    measured: float


def _read(path: str | os.PathLike[str]) -> Iterator[_Chat | Failed]:
    name, folder = Path(path).name, Path(path).parent
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        try:
            yield _chat(decode_record(line, _FORM), place, folder)
        except InputError as error:
            yield Failed(place, str(error))


def _chat(record: Any, place: str, folder: Path) -> _Chat:
    if not isinstance(record, dict):
        raise InputError(f"a chat is an object, not a {type(record).__name__}: {_FORM}")
    label, length = record.get("label"), record.get("length_class")
    if not isinstance(label, str) or not label_parts(label):
        raise InputError(f'"label" is {brief(label)}: it has to be the text of the answer that is to be repeated')
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise InputError(f'"length_class" is {brief(length)}: it has to be about how many tokens the chat has, as 2048')
    if "messages" not in record:
        raise InputError('the record has no "messages": the turns of the chat, each with "role" and "content"')
    chat = Conversation.of(read_conversation({"messages": record["messages"]}, partial(resolve_image, folder)))
    messages = chat.messages
    if messages[-1]["role"] != "user":
        raise InputError(f"the last turn has to be the user's question, not the {messages[-1]['role']}'s")
    turns = ["".join(part.get("text", "") for part in message["content"]) for message in messages]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    found = next((number for number, i in enumerate(answers) if label.strip() in turns[i]), None)
    if found is None:
        raise InputError(
            "no answer of the assistant has the label in it: nothing could be found; put the answer that is to be "
            'repeated into "label" as it stands in the chat'
        )
    measured = 100 * _share_before(turns, answers[found])
    return _Chat(place, chat, turns[-1], label, length, found, len(answers), measured)


def _prepare(chat: Conversation, processor: Processor) -> Inputs:
    return processor(chat)


def _share_before(turns: Sequence[str], place: int) -> float:
    """The share, from 0 to 1, of what else is read that stands before the turn of a number."""
    sizes = [len(turn) for turn in turns[:-1]]
    before, after = sum(sizes[:place]), sum(sizes[place + 1 :])
    return before / (before + after) if before + after else 0.0
