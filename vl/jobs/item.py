"""One image on its way to a row: read and cut once, then asked one prompt after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from PIL import Image

from preprocessing import Inputs, LazyImage, Processor
from vl.engine import Generation
from vl.errors import Error
from vl.jobs.prompts import Prompts
from vl.jobs.rowfile import Row
from vl.jobs.sources import Asked, Picture, Source, source_key

_UNKNOWN = (
    *("width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens", "completion_tokens"),
    *("finish_reason", "seconds"),
)


@dataclass
class Item:
    """An image on its way to a row: `inputs` until it has all its answers, None once its row says how it ended."""

    row: Row
    inputs: Any = None
    columns: deque[str] = field(default_factory=deque)  # of the answers that are still to come
    later: deque[Any] = field(default_factory=deque)  # of the prompts after the one that is asked now
    answers: dict[str, str] = field(default_factory=dict)

    def fail(self, error: Exception) -> None:
        self._finish({"error": str(error) or type(error).__name__})

    def succeed(self, generation: Generation) -> None:
        usage, row = generation.usage, self.row
        self.answers[self.columns.popleft()] = generation.text.strip()
        first = row["seconds"] is None
        row["prompt_tokens"] = usage.prompt_tokens + (0 if first else row["prompt_tokens"])
        if row["image_tokens"] is not None:  # which a server keeps to itself
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


Ask = Callable[["str | Picture", Sequence[str]], tuple[Sequence[Any], Row]]
"""From an image and the prompts about it to what the engine takes for each, and the columns that are then known."""


def prepare(ask: Ask, prompts: Prompts, known: Row, source: Source) -> Item:
    """Read an image and make it ready to be asked about. Whatever goes wrong with it is its own row's error.

    Args:
        known: what every row says: `model` and `settings`.
    """
    prompt = source.prompt if isinstance(source, Asked) else prompts.told()
    row = {"image": source_key(source)} | dict.fromkeys(_UNKNOWN) | known
    item = Item(row | {"prompt": prompt}, columns=deque(prompts.columns))
    try:
        texts = [prompt] if isinstance(prompt, str) else list((prompt or {}).values())
        (item.inputs, *later), found = ask(source.image if isinstance(source, Asked) else source, texts or [""])
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(RuntimeError(f"cannot prepare {row['image']}: {type(error).__name__}: {error}"))
    else:
        item.later.extend(later)
        item.row.update(found)
    return item


def ask_here(processor: Processor, source: str | Picture, texts: Sequence[str]) -> tuple[list[Inputs], Row]:
    """The inputs of each prompt about one image, whose tiles they share: `Ask` for an engine of this program."""

    def ask(image: Any, text: str) -> Inputs:
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        return processor([{"role": "user", "content": content}])

    image = {"bytes": source.read(), "path": source.name} if isinstance(source, Picture) else source
    first = ask(image, texts[0])
    grid = first.grids[0]
    cut = _Cut((grid.width, grid.height))
    later = [Inputs(ask(cut, text).input_ids, first.tiles, first.grids) for text in texts[1:]]
    size = {"width": grid.width, "height": grid.height, "resolution": list(grid.resolution), "tiles": grid.tiles}
    return [first, *later], size | {"prompt_tokens": len(first), "image_tokens": grid.tokens}


class _Cut(LazyImage):
    """Stands for an image whose tiles are there already: it has a size and is never made."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.name, self.size, self.digest = "", size, b""

    def make(self) -> Image.Image:
        raise AssertionError("its tiles are there")


def batches(items: Generator[Item, None, None], size: int) -> Generator[list[Row], None, None]:
    """The rows of items, up to `size` at a time."""
    with contextlib.closing(items):
        while batch := list(islice(items, size)):
            yield [item.row for item in batch]
