"""One image on its way to a row: read and cut once, then asked one prompt after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from preprocessing import Inputs, LazyImage, Processor
from preprocessing.cut import CutImage, image_digest
from preprocessing.fetch import MAX_BYTES
from preprocessing.lazy import LazyTiles
from preprocessing.sources import open_source
from vl.errors import Error, InputError
from vl.jobs.duplicates import Duplicates, digest_of
from vl.jobs.prompts import Prompts
from vl.jobs.rowfile import Row
from vl.jobs.sources import Asked, Picture, Source, source_key
from vl.jobs.sources.names import held

if TYPE_CHECKING:
    from vl.engine import Generation

_UNKNOWN = (
    *("digest", "width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens", "completion_tokens"),
    *("finish_reason", "seconds"),
)


@dataclass
class Item:
    """An image on its way to a row: `inputs` until it has all its answers, or `leader` until that has."""

    row: Row
    prompts: Prompts
    inputs: Any = None
    leader: Item | None = None  # of the same image, which is asked in its place
    columns: deque[str] = field(default_factory=deque)  # of the answers that are still to come
    later: deque[Any] = field(default_factory=deque)  # of the prompts after the one that is asked now
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether its row says how it ended."""
        if self.leader is not None and self.leader.done:
            self.copy(self.leader.row)
        return self.inputs is None and self.leader is None

    def copy(self, row: Row) -> None:
        """End as `row` did, whose image is the same."""
        self.leader = None
        own = {name: self.row[name] for name in ("image", "model", "prompt", "settings")}
        outcome = {name: row[name] for name in ("error", *self.prompts.answers) if name in row}
        if "error" in outcome and outcome["error"].startswith(told := f"{row['image']}: "):
            outcome["error"] = f"{own['image']}: {outcome['error'].removeprefix(told)}"
        self._finish(outcome)
        self.row |= {name: row[name] for name in _UNKNOWN} | {"seconds": 0.0} | own

    def fail(self, error: Exception) -> None:
        self._finish({"error": str(error) or type(error).__name__})

    def succeed(self, generation: Generation) -> None:
        usage, row = generation.usage, self.row
        column, text = self.columns.popleft(), generation.text.strip()
        self.answers[column] = text
        first = row["seconds"] is None
        row["prompt_tokens"] = usage.prompt_tokens + (0 if first else row["prompt_tokens"])
        if row["image_tokens"] is not None:  # which a server keeps to itself
            row["image_tokens"] = usage.image_tokens
        row["completion_tokens"] = usage.completion_tokens + (0 if first else row["completion_tokens"])
        row["finish_reason"] = "length" if row["finish_reason"] == "length" else generation.finish_reason
        row["seconds"] = round(sum(dataclasses.astuple(generation.timings)) + (row["seconds"] or 0.0), 4)
        try:
            self.answers |= self.prompts.read(column, text)
        except InputError as error:
            cut = f"was cut after {usage.completion_tokens:,} tokens, before its JSON was whole: raise max_new_tokens"
            told = cut if generation.finish_reason == "length" else str(error)
            self._finish({"error": f"{row['image']}: the answer {told}"} | self.answers)
            return
        self.inputs = self.later.popleft() if self.later else None
        if self.inputs is None:
            self._finish({name: self.answers[name] for name in self.prompts.answers})

    def _finish(self, outcome: Row) -> None:
        """Readers of the file see the image and what came of it first, so these keys lead."""
        self.inputs = None
        self.later.clear()
        self.row = {"image": self.row["image"]} | outcome | self.row


Ask = Callable[["str | Picture", Sequence[str]], tuple[Sequence[Any], Row]]
"""From an image and the prompts about it to what the engine takes for each, and the columns that are then known."""


def prepare(ask: Ask, prompts: Prompts, known: Row, duplicates: Duplicates[Item], source: Source) -> Item:
    """Read an image and make it ready to be asked about, unless it was. What goes wrong with it is its row's error.

    Args:
        known: what every row says: `model` and `settings`.
        duplicates: of the images of the job.
    """
    prompt = source.prompt if isinstance(source, Asked) else prompts.told()
    row = {"image": source_key(source)} | dict.fromkeys(_UNKNOWN) | known
    item = Item(row | {"prompt": prompt}, prompts, columns=deque(prompts.columns))
    texts = [prompt] if isinstance(prompt, str) else list((prompt or {}).values())
    try:
        image, item.row["digest"] = _read(source.image if isinstance(source, Asked) else source)
        if (written := duplicates.written(item.row)) is not None:
            item.copy(written)
        elif (leader := duplicates.coming(item.row)) is not None:
            item.leader = leader
        else:
            (item.inputs, *later), found = ask(image, texts or [""])
            item.later.extend(later)
            item.row.update(found)
            if (leader := duplicates.claim(item)) is not item:
                item.inputs, item.leader = None, leader
            elif (written := duplicates.written(item.row)) is not None:  # by one that came and went since
                item.copy(written)
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(RuntimeError(f"cannot prepare {row['image']}: {type(error).__name__}: {error}"))
    return item


def _read(source: str | Picture) -> tuple[str | Picture, str | None]:
    """The image with its file in memory, and its digest; of one that is too large, None."""
    name = source_key(source)
    if isinstance(source, Picture):
        content = source.read()
    else:
        with open_source(source, name) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return source, None
    return held(name, content), digest_of(content)


def ask_here(processor: Processor, source: str | Picture, texts: Sequence[str]) -> tuple[list[Inputs], Row]:
    """The inputs of each prompt about one image, whose tiles they share: `Ask` for an engine of this program.

    The tiles' digest is made here: a step that reads the image would wait for it, and all other answers with it.
    """

    def ask(image: Any, text: str) -> Inputs:
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        return processor([{"role": "user", "content": content}])

    image = {"bytes": source.read(), "path": source.name} if isinstance(source, Picture) else source
    first = ask(image, texts[0])
    grid = first.grids[0]
    cut, tiles = Cut((grid.width, grid.height)), first.tiles[:]
    done = CutImage(tiles, grid, image_digest(tiles, grid))
    ids = [first.input_ids, *(ask(cut, text).input_ids for text in texts[1:])]
    size = {"width": grid.width, "height": grid.height, "resolution": list(grid.resolution), "tiles": grid.tiles}
    return inputs_of(ids, done, processor), size | {"prompt_tokens": len(first), "image_tokens": grid.tokens}


def inputs_of(ids: Sequence[Tensor], image: CutImage, processor: Processor) -> list[Inputs]:
    """Of prompts about one image: int64 [T] of each."""
    assert processor.patcher is not None
    tiles = LazyTiles([image], [image.grid], processor.patcher)
    return [Inputs(each, tiles, [image.grid]) for each in ids]


class Cut(LazyImage):
    """Stands for an image whose tiles are there already: it has a size and is never made."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.name, self.size, self.digest = "", size, b""

    def make(self) -> Image.Image:
        raise AssertionError("its tiles are there")


def batches(items: Generator[Item, None, None], size: int, duplicates: Duplicates) -> Generator[list[Row], None, None]:
    """The rows of items, up to `size` at a time."""
    with contextlib.closing(items):
        while batch := list(islice(items, size)):
            yield [item.row for item in batch]
            duplicates.forget(batch)
