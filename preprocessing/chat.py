"""What a user says to the model: messages in the OpenAI and transformers content-part style, checked and normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from preprocessing.errors import InputError
from preprocessing.images import ImageSource

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""`[{"role": "user", "content": "text" | [part, ...]}, ...]`, each part one of

    {"type": "text", "text": "What is this?"}
    {"type": "image", "image": X}
    {"type": "image_url", "image_url": {"url": X}}

with X a path, URL, data URL, bytes, PIL image or uint8 array.
"""

ROLES = ("system", "user", "assistant")

_PARTS = 'expected {"type": "text", "text": ...}, {"type": "image", "image": ...} or {"type": "image_url", ...}'


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages: what the template sees, and the images apart.

    `messages`: each `{"role": str, "content": [{"type": "text", "text": str} | {"type": "image"}, ...]}`, never with
    two text parts in a row. `images`: their sources, in the order of the image parts.
    """

    messages: list[dict[str, Any]]
    images: list[ImageSource]

    @classmethod
    def of(cls, messages: Messages | Conversation) -> Conversation:
        """Check and normalise. Raises InputError naming the message and part at fault, counted from 1."""
        if isinstance(messages, Conversation):
            return messages
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
            raise InputError(
                'messages must be a non-empty list such as [{"role": "user", "content": "Hello"}], '
                f"got {type(messages).__name__ if not isinstance(messages, list) else 'an empty list'}"
            )
        images: list[ImageSource] = []
        return cls([_message(message, f"message {i}", images) for i, message in enumerate(messages, 1)], images)


def _message(message: Any, where: str, images: list[ImageSource]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InputError(f'{where}: expected {{"role": ..., "content": ...}}, got {_brief(message)}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise InputError(f"{where}: role must be one of {', '.join(ROLES)}, got {_brief(role)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise InputError(f"{where}: content must be a string or a list of parts, got {_brief(content)}")
    parts: list[dict[str, str]] = []
    for i, part in enumerate(content, 1):
        text = _text_or_image(part, f"{where}, part {i}", images)
        if text is None:
            parts.append({"type": "image"})
        elif parts and parts[-1]["type"] == "text":
            # MiniMax-Text-01's own template reads only the first part: texts in a row must not be lost to it.
            parts[-1]["text"] += text
        else:
            parts.append({"type": "text", "text": text})
    return {"role": str(role), "content": parts or [{"type": "text", "text": ""}]}


def _text_or_image(part: Any, where: str, images: list[ImageSource]) -> str | None:
    """The text of a text part; None for an image part, whose source goes to `images`."""
    if not isinstance(part, Mapping):
        raise InputError(f"{where}: {_PARTS}, got {_brief(part)}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise InputError(f'{where}: a text part needs "text", a string; got {_brief(text)}')
        return str(text)
    if kind == "image":
        source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
    elif kind == "image_url":
        source = part.get("image_url")
        source = source.get("url") if isinstance(source, Mapping) else source
    else:
        raise InputError(f"{where}: {_PARTS}, got type {_brief(kind)}")
    if source is None:
        needed = '"image": <path, URL, bytes, PIL image or array>' if kind == "image" else '"image_url": {"url": ...}'
        raise InputError(f"{where}: the {kind} part has no image; it needs {needed}")
    images.append(source)
    return None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
