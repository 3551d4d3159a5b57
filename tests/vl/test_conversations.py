"""Every spelling that data files use gives one conversation; what is not read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vl
from preprocessing.chat import Conversation
from vl.conversations import read_conversation
from vl.evaluation import Example, Row, read_records
from vl.training.corpus import Corpus

ANSWER = "One shape."
USER, ASSISTANT = {"role": "user", "content": "What?"}, {"role": "assistant", "content": ANSWER}
HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": ANSWER}
PARTS = [{"type": "image"}, {"type": "text", "text": "What?"}]
ONE_IMAGE: dict[str, Any] = {
    "the project's": {"messages": [{"role": "user", "content": [PARTS[0] | {"image": "1.png"}, PARTS[1]]}, ASSISTANT]},
    "LLaVA": {"id": "7", "image": "1.png", "conversations": [HUMAN, GPT]},
    "LLaVA, images": {"images": ["1.png"], "conversations": [HUMAN, GPT]},
    "ShareGPT": {"image": "1.png", "conversations": [{"from": "user", "value": "What?"}, GPT]},
    "ShareGPT with roles": {
        "images": ["1.png"],
        "conversations": [{"role": "user", "content": "<image>What?"}, ASSISTANT],
    },
    "TRL": {"images": ["1.png"], "messages": [{"role": "user", "content": PARTS}, ASSISTANT]},
    "TRL, text content": {"images": [{"path": "1.png", "bytes": None}], "messages": [USER, ASSISTANT]},
    "TRL, prompt and completion": {"images": ["1.png"], "prompt": [USER], "completion": [ASSISTANT]},
    "TRL, two texts": {"image": "1.png", "prompt": "What?", "completion": ANSWER},
    "imagefolder": {"file_name": "1.png", "text": ANSWER, "prompt": "What?"},
    "named beside the turns and in them": {
        "image": "1.png",
        "messages": [{"role": "user", "content": [PARTS[0] | {"image": "1.png"}, PARTS[1]]}, ASSISTANT],
    },
    "question and answer": {"img": "1.png", "question": "What?", "answer": ANSWER},
    "a text that asks": {"picture": "1.png", "text": "What?", "answer": ANSWER},
    "COCO": {"image_path": "1.png", "image_id": 42, "prompt": "What?", "caption": ANSWER, "coco_url": "http://a/b.jpg"},
    "image_url": {"image_url": {"url": "1.png"}, "prompt": "What?", "caption": ANSWER},
    "url": {"url": "1.png", "prompt": "What?", "caption": ANSWER},
    "url is where it was found": {"image": "1.png", "url": "http://a/b.jpg", "prompt": "What?", "caption": ANSWER},
    "<image> in the prompt": {"image": "1.png", "prompt": "<image>\nWhat?", "response": ANSWER},
}


def write(folder: Path, *records: Any) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "data.jsonl"


@pytest.mark.parametrize("form", ONE_IMAGE)
def test_training_and_evaluation_read_the_same(form: str, tmp_path: Path) -> None:
    path = write(tmp_path, ONE_IMAGE[form])
    learnt = Conversation.of(Corpus([path]).messages(0))
    assert learnt.images == [str(tmp_path / "1.png")]
    assert [m["content"] for m in learnt.messages] == [PARTS, [{"type": "text", "text": ANSWER}]]
    (example,) = read_records(path, "vqa")
    assert isinstance(example, Example), example
    asked = Conversation.of(example.messages)
    assert (asked.images, asked.messages) == (learnt.images, learnt.messages[:1])
    assert example.references == (ANSWER,)


@pytest.mark.parametrize("prompt", [{}, {"prompt": None}])
def test_no_prompt_is_the_default_question(prompt: dict[str, None]) -> None:
    record = {"file_name": "1.png", "text": ANSWER, **prompt}
    (question, _) = Conversation.of(read_conversation(record, str)).messages
    assert question["content"] == [{"type": "image"}, {"type": "text", "text": vl.DEFAULT_PROMPT}]


def test_several_images_stand_where_the_turns_say() -> None:
    record = {"images": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image> or <image>?"}, GPT]}
    read = Conversation.of(read_conversation(record, str))
    assert read.images == ["a.png", "b.png"]
    assert [part.get("text", 0) for part in read.messages[0]["content"]] == [0, " or ", 0, "?"]


def test_a_system_prompt_beside_the_turns() -> None:
    record = {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, GPT]}
    assert [m["role"] for m in Conversation.of(read_conversation(record, str)).messages] == [
        "system",
        "user",
        "assistant",
    ]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two texts": ({"caption": "A", "text": "B", "image": "1.png"}, '"caption" and "text", which differ'),
    "two questions": ({"prompt": "A?", "question": "B?", "answer": "C"}, '"prompt" and "question", which differ'),
    "two conversations": ({"messages": [], "conversations": [GPT]}, '"messages" and "conversations", which differ'),
    "an unknown key": ({"photo_of_it": "1.png", "text": ANSWER}, '"photo_of_it" looks like an image'),
    "an unknown key in a list": ({"files": ["1.png"], "text": ANSWER}, '"files" looks like an image'),
    "a data URL": ({"payload": "data:image/png;base64,AA==", "text": ANSWER}, '"payload" looks like'),
    "a second image": ({"image": "1.png", "image2": "2.png", "text": ANSWER}, '"image2" looks like an image'),
    "two that differ": ({"image": "1.png", "file_name": "2.png", "text": ANSWER}, '"image" and "file_name"'),
    "base64": ({"payload": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgG", "text": ANSWER}, '"payload" looks like an image'),
    "a photo of a telephone": ({"path": "1.heic", "text": ANSWER}, '"path" looks like an image'),
    "a URL with a fragment": ({"link": "http://a/b.jpg#top", "text": ANSWER}, '"link" looks like an image'),
    "a number": ({"image_id": 42, "question": "What?", "answer": ANSWER}, '"image_id" speaks of an image'),
    "no suffix": ({"conversations": [USER, ASSISTANT], "image_file_path": "1"}, '"image_file_path" speaks of an image'),
    "a capital letter": ({"Images": ["one"], "text": ANSWER}, '"Images" speaks of an image'),
    "nothing in a list": ({"images": [None], "text": ANSWER}, '"images" has None where'),
    "an empty name": ({"images": ["1.png", ""], "text": ANSWER}, "\"images\" has '' where"),
    "a list in a list": ({"images": [["1.png"]], "text": ANSWER}, r'"images" has \[.1\.png.\] where'),
    "others in the turns": (
        {"image": "1.png", "messages": [{"role": "user", "content": [PARTS[0] | {"image": "2.png"}]}, ASSISTANT]},
        "its turns name others",
    ),
    "a video's path": ({"video_path": "1.mp4", "text": ANSWER}, '"video_path" is not read'),
    "a list of questions": ({"image": "1.png", "question": ["What?"], "answer": ANSWER}, "a question is a string"),
    "beside messages": ({"thumb": "1.png", "messages": [USER, ASSISTANT]}, '"thumb" looks like an image'),
    "pairs": ({"image": "1.png", "prompt": "What?", "chosen": "a", "rejected": "b"}, '"chosen" is not read'),
    "a video": ({"video": "1.mp4", "text": ANSWER}, '"video" is not read'),
    "too few places": ({"images": ["a.png", "b.png"], "conversations": [HUMAN, GPT]}, "names 2 images.* places for 1"),
    "a place for nothing": ({"conversations": [HUMAN, GPT]}, "names no image"),
    "an empty image": ({"image": {"bytes": None}, "text": ANSWER}, '"image" has an image without'),
    "nobody to show it to": ({"image": "1.png", "messages": [ASSISTANT]}, "no turn of the user"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_image_that_is_not_read_is_an_error_that_names_record_and_key(kind: str, tmp_path: Path) -> None:
    record, message = REFUSED[kind]
    path = write(tmp_path, record)
    corpus = Corpus([path])
    with pytest.raises(vl.InputError, match=message):
        corpus.messages(0)
    assert corpus.name(0) == f"{path}:1"
    (row,) = read_records(path, "vqa")
    assert isinstance(row, Row)
    assert row.line == 1
    with pytest.raises(vl.InputError, match=message):
        raise vl.InputError(row.error or "")
