"""What is asked, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from preprocessing import ImageSource, Messages
from preprocessing.chat import Conversation
from vl.evaluation.metrics import METRICS, Ratio

Pictures = Callable[[], list[ImageSource]]


@dataclass(frozen=True)
class Example:
    """A question with its right answers.

    `task` is the group whose scores it counts for, `metric` a name of `METRICS`, `line` that of the file it is from.
    `pictures` gets the question's images again: a thousand pictures of 2016 px are not kept in memory.
    """

    id: str
    task: str
    metric: str
    messages: Messages = field(repr=False)
    references: tuple[str, ...]
    pictures: Pictures = field(default=list, repr=False, compare=False)
    line: int | None = None

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        parts = Conversation.of(self.messages).messages[-1]["content"]
        return "".join(part["text"] for part in parts if part["type"] == "text").strip()


@dataclass(frozen=True)
class Row:
    """An example with the model's answer and its scores, or with the error that cost it.

    `finish_reason` is "length" where the answer was cut off. `reasoning` is what the model thought before the answer,
    and `confidence` the mean probability of all the tokens that it wrote, where that is known. `sizes`: (width, height)
    of each image in pixels. A record that could not even be read has no metric.
    """

    id: str
    task: str
    metric: str | None
    prompt: str = ""
    references: tuple[str, ...] = ()
    answer: str | None = None
    finish_reason: str | None = None
    scores: Mapping[str, Ratio] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()
    error: str | None = None
    line: int | None = None
    pictures: Pictures = field(default=list, repr=False, compare=False)
    reasoning: str = ""
    confidence: float | None = None

    @property
    def right(self) -> bool:
        """Whether the answer is all that the task asks for."""
        return self.metric is not None and self.error is None and METRICS[self.metric].right(self.scores)

    @property
    def badness(self) -> tuple[float, float]:
        """Sorts scored rows, the worst highest."""
        return METRICS[self.metric].badness(self.scores) if self.metric else (0.0, 0.0)

    @property
    def place(self) -> str:
        """What people find the example by."""
        if self.line is None:
            return self.id
        return f"line {self.line}" if self.id == str(self.line) else f"{self.id} (line {self.line})"

    def to_json(self) -> dict[str, Any]:
        """The row of the per-example file: `answer`, `scores` and `right`, or `error`."""
        head: dict[str, Any] = {"id": self.id, "task": self.task, "metric": self.metric}
        if self.line is not None:
            head["line"] = self.line
        asked = {"prompt": self.prompt, "references": list(self.references), "sizes": [list(s) for s in self.sizes]}
        if self.error is not None:
            return head | {"error": self.error} | asked
        scores = {name: ratio.value for name, ratio in self.scores.items()}
        said = {"answer": self.answer, "finish_reason": self.finish_reason, "confidence": self.confidence}
        if self.reasoning:
            said["reasoning"] = self.reasoning
        return head | asked | said | {"scores": scores, "right": self.right}
