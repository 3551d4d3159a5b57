"""Needles in long chats: data files in the layout of MR-NIAH, the multi-round test published with MiniMax-01."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from preprocessing import Messages, Processor
from preprocessing.chat import Conversation
from vl.conversations import decode_record
from vl.errors import InputError
from vl.evaluation.datafile import read_lines
from vl.evaluation.niah.cases import Case, Failed, nearest
from vl.evaluation.niah.scoring import label_parts, repeat_score


def read_rounds(path: str | os.PathLike[str], depths: Sequence[float]) -> Iterator[Case | Failed]:
    """The chats of a file in order; one that cannot be used comes as a failure that says why.

    A line is {"messages": [...], "label": "...", "length_class": 2048}: a chat whose last turn, the user's, asks to
    repeat an earlier answer, and that answer. The depth is measured: the share of the chat's characters, less the
    needle's and the question's, that stand before the answer; it counts for the nearest of `depths`.

    Args:
        depths: in percent.

    Raises:
        InputError: if the file cannot be read.
    """
    name = Path(path).name
    for number, line in read_lines(path):
        place = f"{name}:{number}"
        try:
            yield _case(decode_record(line), place, depths)
        except InputError as error:
            yield Failed(place, str(error))


def _case(record: Any, place: str, depths: Sequence[float]) -> Case:
    fields: Mapping[str, Any] = record if isinstance(record, dict) else {}
    label, length = fields.get("label"), fields.get("length_class")
    if not isinstance(label, str) or not label_parts(label):
        raise InputError('the record has no "label": the text of the answer that is to be repeated')
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise InputError('the record has no "length_class": about how many tokens the chat has, a whole number')
    messages = Conversation.of(fields.get("messages", [])).messages
    if messages[-1]["role"] != "user":
        raise InputError(f"the last turn has to be the user's question, not the {messages[-1]['role']}'s")
    turns = ["".join(part.get("text", "") for part in message["content"]) for message in messages]
    return Case(
        id=place,
        length=length,
        depth=nearest(depths, 100 * _depth(turns, [message["role"] for message in messages], label)),
        question=turns[-1],
        reference=label,
        prepare=partial(_prepare, messages),
        score=repeat_score,
    )


def _prepare(messages: Messages, processor: Processor) -> Any:
    return processor(messages)


def _depth(turns: Sequence[str], roles: Sequence[str], label: str) -> float:
    """Where the answer that is to be repeated lies, from 0 to 1."""
    wanted = label.strip()
    found = [
        i for i, (turn, role) in enumerate(zip(turns, roles, strict=True)) if role == "assistant" and wanted in turn
    ]
    if not found:
        raise InputError("no answer of the assistant has the label in it: nothing could be found")
    sizes = [len(turn) for turn in turns[:-1]]
    before, after = sum(sizes[: found[0]]), sum(sizes[found[0] + 1 :])
    return before / (before + after) if before + after else 0.0
