"""The user's own data: JSON Lines of messages with right answers, read one record at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from preprocessing import ImageSource
from preprocessing.chat import Conversation
from preprocessing.sources import seen_from
from vl.conversations import TURNS, decode_record, read_conversation
from vl.errors import InputError
from vl.evaluation.examples import Example, Row
from vl.evaluation.metrics import METRICS

_ANSWERS = '"answer": "...", "answers": ["...", ...] or a last message of the assistant'


def read_records(path: str | os.PathLike[str], metric: str | None = None) -> Iterator[Example | Row]:
    """The records of a file in order, each as an example, or as a row whose error says what is wrong with it.

    A record is a line of JSON:

        {"id": "7", "task": "ocr", "answer": "STOP", "messages": [{"role": "user", "content": [
            {"type": "image", "image": "signs/7.jpg"}, {"type": "text", "text": "Read the sign."}]}]}

    `messages` are those of `MiniMaxVL.chat`; paths of images are relative to the file. The right answer is `answer` or
    `answers` (strings or numbers), or else what the assistant says last, as in training data; that turn is not shown to
    the model. The other forms of training records do too: a list of messages, and `image` with `caption` and `prompt`.
    `task` names the metric and the group; with `metric` given it names only the group and may be missing.
    `id` is the line number where it is missing. Blank lines are passed over.

    Raises:
        InputError: if the file cannot be read or there is no such metric.
    """
    if metric is not None and metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}: choose from {', '.join(METRICS)}")
    folder = Path(path).parent
    for number, line in read_lines(path):
        record: Any = None
        try:
            record = decode_record(line)
            yield _example(record, number, folder, metric)
        except InputError as error:
            known = record if isinstance(record, dict) else {}
            task = known["task"] if isinstance(known.get("task"), str) else metric
            name = metric or (task if task in METRICS else None)
            yield Row(_id(known, number), task or "", name, error=str(error), line=number)


def count_records(path: str | os.PathLike[str]) -> int:
    """How many records a file holds, good and bad. Raises InputError if it cannot be read."""
    return sum(1 for _ in read_lines(path))


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1. Raises InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None


def _example(record: Any, number: int, folder: Path, metric: str | None) -> Example:
    fields = record if isinstance(record, dict) else {}
    references = _references(fields)
    if references and not any(key in fields for key in TURNS):
        # The form of captions, whose caption is given as an answer that may be a number or several.
        record = {**fields, "answer": references[0]}
    messages = read_conversation(record, partial(resolve_image, folder))
    checked = Conversation.of(messages)
    last = checked.messages[-1]
    if last["role"] == "assistant":
        references = references or ("".join(part.get("text", "") for part in last["content"]),)
        messages = messages[:-1]
        if not messages or any(part["type"] == "image" for part in last["content"]):
            raise InputError("the assistant's last message has to be text that answers a message before it")
    if (role := messages[-1]["role"]) != "user":
        raise InputError(f"the question has to be the user's, not the {role}'s")
    if not references:
        raise InputError(f"the record has no right answer: give {_ANSWERS}")
    task, judge = _task(fields, metric)
    return Example(_id(fields, number), task, judge, messages, references, checked.images.copy, number)


def _references(record: dict[str, Any]) -> tuple[str, ...]:
    """The answers that a record gives apart from its messages; none if it gives none."""
    if record.get("answer") is not None and record.get("answers") is not None:
        raise InputError('the record has both "answer" and "answers": keep one')
    given = record.get("answer") if record.get("answers") is None else record["answers"]
    answers = given if isinstance(given, list) else [] if given is None else [given]
    for answer in answers:
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise InputError(f"an answer is a string or a number, not {json.dumps(answer)[:60]}")
    return tuple(map(str, answers))


def _task(record: dict[str, Any], metric: str | None) -> tuple[str, str]:
    """The group of a record and its metric."""
    task = record.get("task")
    if task is not None and not isinstance(task, str):
        raise InputError(f'"task" has to be a string, not {json.dumps(task)[:60]}')
    judge = metric or task
    if judge is None:
        raise InputError(f'the record has no "task": name one of {", ".join(METRICS)}, or use --metric')
    if judge not in METRICS:
        raise InputError(f"no metric is called {judge!r}: name one of {', '.join(METRICS)}, or use --metric")
    return task or judge, judge


def _id(record: dict[str, Any], number: int) -> str:
    given = record.get("id")
    return str(given) if isinstance(given, str | int) else str(number)


def resolve_image(folder: Path, source: Any) -> ImageSource:
    """A path as seen from the file's folder; a URL as it is."""
    if not isinstance(source, str):
        raise InputError(f"an image has to be a path or a URL, not {json.dumps(source)[:60]}")
    return seen_from(folder, source)
