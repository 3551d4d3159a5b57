"""What a user says to the model: messages in the OpenAI and transformers content-part style, checked and normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from preprocessing.errors import InputError, brief
from preprocessing.sources import ImageSource
from preprocessing.tools import read_tool_calls, read_tools
from preprocessing.unicode import well_formed

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""`[{"role": "user", "content": "text" | [part, ...]}, ...]`, each part one of

    {"type": "text", "text": "What is this?"}
    {"type": "image", "image": X}
    {"type": "image_url", "image_url": {"url": X}}

with X an `ImageSource`: a path, URL, bytes, PIL image, array and more. Roles are system, user and assistant, and where
functions are called as OpenAI writes it:

    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Paris"}'}}]}
    {"role": "tool", "tool_call_id": "call_1", "content": "12:30"}

or, older, an assistant's `function_call` and `{"role": "function", "name": "get_time", "content": "12:30"}`.

What an assistant thought before its text is `"reasoning_content": "..."` beside its content. Models learn from it; it
is not shown to them when they answer what comes after.
"""

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Descriptions of the functions that the model may call: JSON objects, OpenAI's or the model card's."""

RESULT_ROLES = ("function", "tool")
"""The roles in which a function gives back what it found."""

ROLES = ("system", "user", "assistant", *RESULT_ROLES)

IMAGE_PARTS = ("image", "image_url")
"""The types of parts that are images."""

_MEDIA = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "input_audio")
_IMAGE_FIELD = '"image": <path, URL, bytes, PIL image or array>'
_IMAGE_PART = f'{{"type": "image", {_IMAGE_FIELD}}}'
_PARTS = 'expected {"type": "text", "text": ...}, {"type": "image", "image": ...} or {"type": "image_url", ...}'


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages: what the template sees, and the images apart.

    `messages`: each `{"role": str, "content": [{"type": "text", "text": str} | {"type": "image"}, ...]}`, never with
    two text parts in a row; an assistant's may have `tool_calls`, those of the roles function and tool have one text
    part and `name`, others may have `name`; an assistant's may have `reasoning_content`. `images`: their sources, in
    the order of the image parts. `tools`: descriptions of functions, as plain JSON.
    """

    messages: list[dict[str, Any]]
    images: list[ImageSource]
    tools: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Messages | Conversation, tools: Tools | None = None) -> Conversation:
        """Check and normalise. Raises InputError naming the message, part, call or tool at fault, counted from 1."""
        checked_tools = [] if tools is None else read_tools(tools)
        if isinstance(messages, Conversation):
            return messages if tools is None else replace(messages, tools=checked_tools)
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
            raise InputError(
                'messages must be a non-empty list such as [{"role": "user", "content": "Hello"}], '
                f"got {type(messages).__name__ if not isinstance(messages, list) else 'an empty list'}"
            )
        images: list[ImageSource] = []
        called: dict[str, str] = {}
        checked = [_read_message(message, f"message {i}", images, called) for i, message in enumerate(messages, 1)]
        return cls(checked, images, checked_tools)

    def map_text(self, change: Callable[[str], str]) -> Conversation:
        """The conversation with every string that its author wrote (texts, names, calls, tools) changed."""
        return replace(
            self,
            messages=[_map_message(message, change) for message in self.messages],
            tools=_map_json(self.tools, change),
        )

    def texts(self) -> list[str]:
        """Every string that `map_text` would change."""
        found: list[str] = []

        def keep(text: str) -> str:
            found.append(text)
            return text

        self.map_text(keep)
        return found


def image_source(part: Mapping[str, Any]) -> ImageSource | None:
    """Where the image of an image part comes from; None if the part does not say."""
    key = next((key for key in ("image", "image_url", "url", "path") if part.get(key) is not None), "")
    source = part.get(key)
    return source.get("url") if key == "image_url" and isinstance(source, Mapping) else source


def _read_message(message: Any, where: str, images: list[ImageSource], called: dict[str, str]) -> dict[str, Any]:
    """One message checked. `called` has the names of the functions called so far, by the calls' ids."""
    if not isinstance(message, Mapping) or "role" not in message:
        raise InputError(_describe_malformed(message, where))
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}: role must be one of {', '.join(ROLES)}, got {brief(role)}")
    _refuse_media(message, where)
    calls = read_tool_calls(message, where)
    thought = message.get("reasoning_content")
    if thought not in (None, "") and (role != "assistant" or not isinstance(thought, str)):
        raise InputError(f"{where}: reasoning_content is text beside an assistant's content, not {brief(thought)}")
    if calls and role != "assistant":
        raise InputError(f"{where}: only an assistant's message has tool_calls, not the {role}'s")
    called.update({call["id"]: call["function"]["name"] for call in calls if "id" in call})
    if "content" not in message and not calls:
        raise InputError(_describe_malformed(message, where))
    content = message.get("content")
    if content is None and calls:
        content = ""
    read: dict[str, Any] = {"role": str(role), "content": _read_content(content, where, images)}
    if calls:
        read["tool_calls"] = calls
    if thought:
        read["reasoning_content"] = well_formed(thought)
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            if not isinstance(message[key], str):
                raise InputError(f"{where}: {key} must be a string, got {brief(message[key])}")
            read[key] = well_formed(message[key])
    return _name_result(read, where, called) if role in RESULT_ROLES else read


def _describe_malformed(message: Any, where: str) -> str:
    return f'{where}: expected {{"role": ..., "content": ...}}, got {brief(message)}'


def _read_content(content: Any, where: str, images: list[ImageSource]) -> list[dict[str, str]]:
    """The parts of a message, texts in a row joined: MiniMax-Text-01's own template reads only the first part."""
    if isinstance(content, str):
        return [{"type": "text", "text": well_formed(content)}]
    if not isinstance(content, list | tuple):
        raise InputError(f"{where}: content must be a string or a list of parts, got {brief(content)}")
    runs: list[list[str] | None] = []  # texts in a row; None is an image
    for i, part in enumerate(content, 1):
        text = _read_part(part, f"{where}, part {i}", images)
        if text is None:
            runs.append(None)
        elif runs and runs[-1] is not None:
            runs[-1].append(text)
        else:
            runs.append([text])
    parts = [{"type": "image"} if run is None else {"type": "text", "text": well_formed("".join(run))} for run in runs]
    return parts or [{"type": "text", "text": ""}]


def _name_result(message: dict[str, Any], where: str, called: Mapping[str, str]) -> dict[str, Any]:
    """What a function gave back, with the function's name."""
    if any(part["type"] != "text" for part in message["content"]):
        raise InputError(f"{where}: what a function gives back must be text; put images into a user's message")
    name = message.get("name") or called.get(message.get("tool_call_id", ""))
    if not name:
        identity = message.get("tool_call_id")
        raise InputError(
            f"{where}: the {message['role']} message needs the function's name: give it as name"
            + (f", or the call with id {brief(identity)} in an assistant message before it" if identity else "")
        )
    return {**message, "name": name}


def _read_part(part: Any, where: str, images: list[ImageSource]) -> str | None:
    """The text of a text part; None for an image part, whose source goes to `images`."""
    if not isinstance(part, Mapping):
        raise InputError(f"{where}: {_PARTS}, got {brief(part)}")
    kind = part.get("type")
    if kind == "text":
        _refuse_media(part, where)
        text = part.get("text")
        if not isinstance(text, str):
            raise InputError(f'{where}: a text part needs "text", a string; got {brief(text)}')
        return text
    if kind not in IMAGE_PARTS:
        raise InputError(f"{where}: {_PARTS}, got type {brief(kind)}")
    source = image_source(part)
    if source is None:
        needed = _IMAGE_FIELD if kind == "image" else '"image_url": {"url": ...}'
        raise InputError(f"{where}: the {kind} part has no image; it needs {needed}")
    images.append(source)
    return None


def _refuse_media(given: Mapping[str, Any], where: str) -> None:
    """Media beside the text, where no template looks, must not be lost in silence."""
    for key in _MEDIA:
        if given.get(key) is not None and not (isinstance(given[key], list) and not given[key]):
            raise InputError(f"{where}: {key} stands where nothing is read; images are parts of content, {_IMAGE_PART}")


def _map_message(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed = {key: _map_json(value, change) for key, value in message.items() if key not in ("role", "content")}
    content = [
        {"type": "text", "text": change(part["text"])} if part["type"] == "text" else part
        for part in message["content"]
    ]
    return {"role": message["role"], "content": content, **changed}


def _map_json(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_json(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _map_json(item, change) for key, item in value.items()}
    return value
