"""One reader of the records that data files hold: training and evaluation see the same conversation in each.

A record is a JSON object, or a list of messages. What it may call things:

    turns     messages, conversations: a list of {"role", "content"} or of {"from", "value"} (LLaVA, ShareGPT), with
              "system" beside it; prompt and completion, each a list of messages or a text (TRL)
    a text    caption, text, completion, answer or response, that answers prompt or question; without one, what is
              asked is to describe the image, and with an answer a text is the question
    images    image, images, file_name (imagefolder), image_path, image_url, img, picture, url, ...: paths, URLs or
              {"path": ...}, one or a list; in the turns, image parts or `<image>` stand for them, in order, and
              without either they go before the first question
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from preprocessing import IMAGE_SUFFIXES, ImageSource, Messages
from preprocessing.chat import IMAGE_PARTS, image_source
from preprocessing.errors import brief
from preprocessing.formats import HEIF_SUFFIXES, begins_as_image
from vl.errors import InputError
from vl.model import DEFAULT_PROMPT

FindImage = Callable[[Any], ImageSource]
"""From what a record says of an image (None: that there is one) to where it is; InputError if it cannot be used."""

TURNS = ("messages", "conversations")
ANSWERS = ("caption", "completion", "answer", "response", "text")
QUESTIONS = ("prompt", "question")
IMAGES = (
    *("image", "images", "file_name", "file_names", "filename", "image_path", "image_paths", "image_file"),
    *("image_files", "image_url", "image_urls", "img", "imgs", "img_path", "picture", "pictures", "photo", "photos"),
)
ORIGINS = ("url", "urls")
"""Images too, unless the record names the image by another key: then they say where that was found."""

_OTHER_MEDIA = re.compile(r"(video|audio)s?(_?(path|file|url|name)s?)*", re.IGNORECASE)
_NOT_READ = {"chosen": "pairs of answers to choose between", "rejected": "pairs of answers to choose between"}
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
_PLACE = "<image>"
_SUFFIXES = (*IMAGE_SUFFIXES, *HEIF_SUFFIXES, ".svg")
_IMAGE_WORD = re.compile(r"image|img|picture|photo", re.IGNORECASE)
_IMAGE_KEY = re.compile(rf"{_IMAGE_WORD.pattern}|file_?name", re.IGNORECASE)
_FORMS = 'expected {"messages": [...]}, a list of messages, or {"image": ..., "caption": ...}'


def decode_record(line: bytes, forms: str = _FORMS) -> Any:
    """A line of JSON. Raises InputError that says what is wrong with it, and what `forms` it may have."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 from byte {error.start + 1} on") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at column {error.colno}; a record is one line") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not usable JSON: {error}") from None
    if not isinstance(record, dict | list):
        raise InputError(f"a record is an object or a list of messages: {forms}, got {type(record).__name__}")
    return record


def read_conversation(record: Any, find_image: FindImage, *, inside: int = 0) -> Messages:
    """The messages of a record, each image's source replaced by what `find_image` makes of it.

    Args:
        record: decoded JSON.
        find_image: see `FindImage`.
        inside: images that come with the record, as in a shard; they are the record's unless it names one.

    Raises:
        InputError: if the record has none of the known forms, or a key that looks like an image is not read; names
            the key. What is wrong inside the messages, the processor says.
    """
    if isinstance(record, list):
        return _fill(record, [], find_image)
    if not isinstance(record, Mapping):
        raise InputError(f"{_FORMS}, got {type(record).__name__}")
    _refuse_unknown(record)
    images = _images(record, inside)
    turns = _turns(record)
    if turns is None:
        turns = _question_and_answer(record)
    if not images and not any(_image_parts(turns)):
        images = [None] * inside
        if not inside:
            _refuse_unnamed(record)
        if not inside and "conversations" in record and any(_PLACE in str(turn) for turn in turns):
            raise InputError(f'a turn says {_PLACE}, and the record names no image: give it as "image"')
    return _fill(turns, images, find_image)


def _refuse_unknown(record: Mapping[str, Any]) -> None:
    for key, what in _NOT_READ.items():
        if record.get(key) is not None:
            raise InputError(f'"{key}" is not read: training is on {_FORMS.removeprefix("expected ")}, not on {what}')
    for key, value in record.items():
        if value and (key == "tools" or _OTHER_MEDIA.fullmatch(str(key))):
            raise InputError(f'"{key}" is not read: only text and images are; drop it or the record')


def _refuse_unnamed(record: Mapping[str, Any]) -> None:
    """Complains of a record that speaks of an image and names none: it would be learnt from, and asked about, blind."""
    for key, value in record.items():
        if value and key not in IMAGES and _IMAGE_WORD.search(str(key)):
            raise InputError(f'"{key}" speaks of an image and is not read: give its path or URL as "image"')


def _images(record: Mapping[str, Any], inside: int) -> list[Any]:
    """What the record says of its images, in order; complains of what looks like one and is not read."""
    named = [key for key in IMAGES if record.get(key) not in (None, [], "")]
    if inside:
        named = [key for key in named if key in ("image", "images")]
    if not named and not inside:
        named = [key for key in ORIGINS if record.get(key)]
    found = {key: _listed(key, record[key]) for key in named}
    if any(sources != found[named[0]] for sources in found.values()):
        raise InputError(f"the record names its image by {_quoted(named)}, and not the same one: keep one of them")
    known = {*IMAGES, *ORIGINS, *ANSWERS, *QUESTIONS, *TURNS, "id"}
    for key, value in record.items():
        unread = key not in known and _looks_like_image(value)
        if unread and not inside and (not named or _IMAGE_KEY.search(str(key))):
            raise InputError(f'"{key}" looks like an image and is not read: call it "image", or "images" for a list')
    return found[named[0]] if named else []


def _listed(key: str, value: Any) -> list[Any]:
    sources = value if isinstance(value, list) else [value]
    for source in sources:
        if isinstance(source, Mapping) and not any(source.get(name) for name in ("url", "path")):
            raise InputError(f'"{key}" has an image without "path" or "url"')
        if not isinstance(source, str | Mapping) or not source:
            raise InputError(f'"{key}" has {brief(source)} where the path or URL of an image belongs')
    return [(source.get("url") or source["path"]) if isinstance(source, Mapping) else source for source in sources]


def _looks_like_image(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_looks_like_image, value))
    if isinstance(value, Mapping):
        return any(map(_looks_like_image, value.values()))
    if not isinstance(value, str):
        return False
    name = re.split(r"[?#]", value, maxsplit=1)[0].lower()
    return name.startswith("data:image/") or name.endswith(_SUFFIXES) or _begins_as_base64(value)


def _begins_as_base64(value: str) -> bool:
    """Whether a text begins as an encoded image in base64 does."""
    try:
        return begins_as_image(base64.b64decode(value[:24], validate=True))
    except ValueError:
        return False


def _turns(record: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a record that has some."""
    key = _only(record, [key for key in TURNS if record.get(key) is not None])
    prompt, completion = record.get("prompt"), record.get("completion")
    if key is not None:
        turns = record[key]
        if not isinstance(turns, list):
            raise InputError(f'"{key}": {_FORMS}, got {type(turns).__name__}')
    elif isinstance(prompt, list) or isinstance(completion, list):
        turns = [*_as_turns(prompt, "user"), *_as_turns(completion, "assistant")]
    else:
        return None
    turns = [_as_message(turn) for turn in turns]
    if record.get("system"):
        turns.insert(0, {"role": "system", "content": record["system"]})
    return turns


def _only(record: Mapping[str, Any], keys: list[str]) -> str | None:
    """The one key of those that a record has for the same thing; InputError if they say different things."""
    if any(record[key] != record[keys[0]] for key in keys):
        raise InputError(f"the record has {_quoted(keys)}, which differ, and only one of them is read: keep one")
    return keys[0] if keys else None


def _as_turns(given: Any, role: str) -> list[Any]:
    if given is None or isinstance(given, list):
        return given or []
    return [{"role": role, "content": given}]


def _as_message(turn: Any) -> Any:
    """A turn of LLaVA or ShareGPT as a message; any other as it is."""
    if not isinstance(turn, Mapping) or "role" in turn or not {"from", "value"} <= turn.keys():
        return turn
    return {"role": _ROLES.get(str(turn["from"]), turn["from"]), "content": turn["value"]}


def _question_and_answer(record: Mapping[str, Any]) -> list[Any]:
    """The two messages of a record with a text."""
    answers = [key for key in ANSWERS if isinstance(record.get(key), str)]
    asked = _only(record, [key for key in QUESTIONS if record.get(key) is not None])
    question = None if asked is None else record[asked]
    if not answers:
        raise InputError(f"{_FORMS}, got an object with {', '.join(map(str, record)) or 'nothing in it'}")
    if question is None and answers[0] in ("answer", "response") and "text" in answers:
        question = record["text"]
        answers.remove("text")
    _only(record, answers)
    question = DEFAULT_PROMPT if question is None else question
    if not isinstance(question, str):
        raise InputError(f"a question is a string, not {brief(question)}")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": record[answers[0]]}]


def _fill(turns: list[Any], images: list[Any], find_image: FindImage) -> list[Any]:
    """The turns with the sources of their images; `images` are those that the record names beside them."""
    if images:
        turns = [_split(turn) for turn in turns]
        places = sum(1 for part in _image_parts(turns) if image_source(part) is None)
        named = [image_source(part) for part in _image_parts(turns)]
        if not places and named:
            if named != images:
                raise InputError("the record names images, and its turns name others: keep one of them")
        elif not places:
            turns = _put_first(turns, len(images))
        elif places != len(images):
            raise InputError(f"the record names {len(images)} images, and its turns have places for {places}")
    waiting = iter(images)
    return [_with_sources(turn, waiting, find_image) for turn in turns]


def _split(turn: Any) -> Any:
    """A message whose `<image>` are image parts; line breaks around them only held them apart from the text."""
    if not isinstance(turn, Mapping) or turn.get("role") == "assistant":
        return turn
    content = turn.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not any(_PLACE in _text(part) for part in parts):
        return turn
    split: list[Any] = []
    for part in parts:
        for number, text in enumerate(_text(part).split(_PLACE)):
            split += [{"type": "image"}] if number else []
            split += [{"type": "text", "text": text.strip("\n")}] if text.strip("\n") else []
        split += [] if _text(part) else [part]
    return {**turn, "content": split}


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else ""


def _put_first(turns: list[Any], count: int) -> list[Any]:
    """The turns with image parts before the first question."""
    first = next((i for i, turn in enumerate(turns) if isinstance(turn, Mapping) and turn.get("role") == "user"), None)
    if first is None:
        raise InputError("the record has images, and no turn of the user that they could belong to")
    content = turns[first].get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    asked = {**turns[first], "content": [*({"type": "image"} for _ in range(count)), *parts]}
    return [*turns[:first], asked, *turns[first + 1 :]]


def _image_parts(turns: list[Any]) -> Iterator[Mapping[str, Any]]:
    for turn in turns:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS:
                yield part


def _with_sources(turn: Any, waiting: Iterator[Any], find_image: FindImage) -> Any:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), list):
        return turn
    parts = []
    for part in turn["content"]:
        if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS:
            source = image_source(part)
            part = {"type": "image", "image": find_image(next(waiting, None) if source is None else source)}
        parts.append(part)
    return {**turn, "content": parts}


def _quoted(keys: list[str]) -> str:
    return " and ".join(f'"{key}"' for key in keys)
