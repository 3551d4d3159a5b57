"""One visitor's conversation about one image, kept on the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass
class Talk:
    """Questions and answers about `image`.

    Attributes:
        image: path of the image.
        turns: (question, answer) pairs so far.
        asked: the question that is being answered, if one is.
        stopped: the visitor wants no more of this answer.
    """

    image: str
    turns: list[tuple[str, str]] = field(default_factory=list)
    asked: str | None = None
    stopped: bool = False

    @property
    def length(self) -> int:
        """Characters of what was said so far."""
        return sum(len(text) for turn in self.turns for text in turn)

    def prompt(self) -> list[dict[str, Any]]:
        """What the model is asked: the image, what was said, and the question."""
        messages: list[dict[str, Any]] = []
        for question, answer in self.turns:
            messages += [_message("user", question), _message("assistant", answer)]
        messages.append(_message("user", self.asked or ""))
        messages[0]["content"].insert(0, {"type": "image", "image": self.image})
        return messages

    def shown(self, answer: str | None = None) -> list[dict[str, str]]:
        """What the page shows: what was said, the question, and as much of its answer as there is.

        Escaped: the page would take `<b>` that was read from an image for markup.
        """
        said = [text for turn in self.turns for text in turn]
        said += [text for text in (self.asked, answer) if text is not None]
        return [
            {"role": "assistant" if i % 2 else "user", "content": escape(text, quote=False)}
            for i, text in enumerate(said)
        ]


@dataclass
class Session:
    """What handlers of one page share. A new image begins a new talk; whoever still writes to the old one notices."""

    talk: Talk | None = None

    def begin(self, image: str | None) -> None:
        if self.talk is not None:
            self.talk.stopped = True
        self.talk = Talk(image) if image is not None else None


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
