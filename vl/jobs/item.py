"""One image on its way to a row: read and cut once, then asked one prompt after the other."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from preprocessing import Inputs, LazyImage
from vl.engine import Generation
from vl.errors import Error
from vl.jobs.prompts import Prompts
from vl.jobs.rowfile import Row
from vl.jobs.sources import Asked, Picture, Source, source_key

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

_UNKNOWN = (
    *("width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens", "completion_tokens"),
    *("finish_reason", "seconds"),
)


@dataclass
class Item:
    """An image on its way to a row: `inputs` until it has all its answers, None once its row says how it ended."""

    row: Row
    inputs: Inputs | None = None
    columns: deque[str] = field(default_factory=deque)  # of the answers that are still to come
    later: deque[Inputs] = field(default_factory=deque)  # of the prompts after the one that is asked now
    answers: dict[str, str] = field(default_factory=dict)

    def fail(self, error: Exception) -> None:
        self._finish({"error": str(error) or type(error).__name__})

    def succeed(self, generation: Generation) -> None:
        usage, row = generation.usage, self.row
        self.answers[self.columns.popleft()] = generation.text.strip()
        first = row["seconds"] is None
        row["prompt_tokens"] = usage.prompt_tokens + (0 if first else row["prompt_tokens"])
        row["image_tokens"] = usage.image_tokens
        row["completion_tokens"] = usage.completion_tokens + (0 if first else row["completion_tokens"])
        row["finish_reason"] = "length" if row["finish_reason"] == "length" else generation.finish_reason
        row["seconds"] = round(sum(dataclasses.astuple(generation.timings)) + (row["seconds"] or 0.0), 4)
        self.inputs = self.later.popleft() if self.later else None
        if self.inputs is None:
            self._finish(self.answers)

    def _finish(self, outcome: Row) -> None:
        """Readers of the file see the image and what came of it first, so these keys lead."""
        self.inputs = None
        self.later.clear()
        self.row = {"image": self.row["image"]} | outcome | self.row


def prepare(model: MiniMaxVL, prompts: Prompts, known: Row, source: Source) -> Item:
    """Read and cut one image. Whatever goes wrong with it is its own row's error.

    Args:
        known: what every row says: `model` and `settings`.
    """
    prompt = source.prompt if isinstance(source, Asked) else prompts.told()
    row = {"image": source_key(source)} | dict.fromkeys(_UNKNOWN) | known
    item = Item(row | {"prompt": prompt}, columns=deque(prompts.columns))
    try:
        texts = [prompt] if isinstance(prompt, str) else list((prompt or {}).values())
        item.inputs, *later = _inputs(model, source.image if isinstance(source, Asked) else source, texts)
        item.later.extend(later)
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(RuntimeError(f"cannot prepare {row['image']}: {type(error).__name__}: {error}"))
    else:
        grid = item.inputs.grids[0]
        item.row.update(
            width=grid.width,
            height=grid.height,
            resolution=list(grid.resolution),
            tiles=grid.tiles,
            prompt_tokens=item.inputs.input_ids.numel(),
            image_tokens=grid.tokens,
        )
    return item


def _inputs(model: MiniMaxVL, source: str | Picture, texts: list[str]) -> list[Inputs]:
    """The inputs of each prompt about one image, whose tiles they share."""

    def ask(image: Any, text: str) -> Inputs:
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        return model.processor([{"role": "user", "content": content}])

    image = {"bytes": source.read(), "path": source.name} if isinstance(source, Picture) else source
    first = ask(image, texts[0] if texts else "")
    grid = first.grids[0]
    cut = _Cut((grid.width, grid.height))
    return [first, *(Inputs(ask(cut, text).input_ids, first.tiles, first.grids) for text in texts[1:])]


class _Cut(LazyImage):
    """Stands for an image whose tiles are there already: it has a size and is never made."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.name, self.size, self.digest = "", size, b""

    def make(self) -> Image.Image:
        raise AssertionError("its tiles are there")
