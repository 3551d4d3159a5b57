"""What a job would do, found out without doing it: its sources counted, headers opened, tokens and time foreseen."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from random import Random
from threading import Lock
from typing import Any

from preprocessing import LazyImage, Patcher, Processor, image_size
from preprocessing.fetch import MAX_BYTES
from preprocessing.sources import open_source
from vl.errors import Error
from vl.jobs.captioning import caption_rows
from vl.jobs.duplicates import digest_of
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.item import Cut
from vl.jobs.prompts import Prompts
from vl.jobs.sources import Asked, Picture, Source, as_known, source_key, work_key
from vl.jobs.statistics import cause_of

HEADERS = 10_000
"""Images that are opened at most: all of them, or a random sample."""

READ_BYTES = 1 << 30
"""Bytes of whole files that are read at most, to find those that are equal."""

_NAMES = 1_000_000  # that are remembered, to find those that come again
_SEED = 1


@dataclass(frozen=True)
class Look:
    """What is known of an image that was opened. Tokens are of all its prompts, as its row would have them.

    Attributes:
        text_tokens: of the prompts, without the image; None without a tokenizer.
        digest: of the file and its prompt, if the file was read.
    """

    width: int = 0
    height: int = 0
    tiles: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None
    digest: str | None = None
    cause: str = ""


class Looker:
    """Opens images as the job would, without decoding them.

    Args:
        prompts: what is asked.
        processor: makes the prompts' tokens; None if that cannot be known here.
        patcher: chooses tiles; None if that cannot be known here.
        read_bytes: as `READ_BYTES`.
    """

    def __init__(
        self, prompts: Prompts, processor: Processor | None, patcher: Patcher | None, read_bytes: int = READ_BYTES
    ) -> None:
        self._prompts, self._patcher, self._left = prompts, patcher, read_bytes
        self._lock = Lock()
        self._text_tokens = None if processor is None else lru_cache(4096)(partial(_text_tokens, processor))

    def __call__(self, source: Source) -> Look:
        name, image = source_key(source), source.image if isinstance(source, Asked) else source
        prompt = source.prompt if isinstance(source, Asked) else self._prompts.told()
        try:
            content = self._content(image, name)
            width, height = image_size(image if content is None else {"bytes": content, "path": name})  # type: ignore[arg-type]
        except Error as error:
            return Look(cause=cause_of(name, str(error)))
        except Exception as error:  # as of the job, which goes on
            return Look(cause=f"{type(error).__name__}: {error}"[:300])
        texts = [prompt] if isinstance(prompt, str) else list((prompt or {}).values())
        grid = None if self._patcher is None else self._patcher.grid(width, height)
        return Look(
            width,
            height,
            None if grid is None else grid.tiles,
            None if grid is None else grid.tokens,
            None if self._text_tokens is None else sum(map(self._text_tokens, texts)),
            None if content is None else digest_of(content + repr(prompt).encode("utf-8", "replace")),
        )

    def _content(self, image: str | Picture, name: str) -> bytes | None:
        """The whole file, where it has to be read or there is room in the budget."""
        if isinstance(image, Picture):
            return image.read()
        with self._lock:
            if self._left <= 0:
                return None
        with open_source(image, name) as file:
            content = file.read(MAX_BYTES + 1)
        with self._lock:
            self._left -= len(content)
        return content if len(content) <= MAX_BYTES else None


def _text_tokens(processor: Processor, text: str) -> int:
    """Of a prompt besides its image's, which stands among them as many times as its size says."""
    image: LazyImage = Cut((336, 336))
    inputs = processor(
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
    )
    return len(inputs) - inputs.grids[0].tokens


@dataclass
class Survey:
    """What the sources of a job are.

    Attributes:
        inputs: sources, each name once as far as it is remembered; `again` counts names that came again.
        done: those that have a row, or a text that is left as it is.
        looks: of the images that were opened, all that are to be done or a random sample.
        some: a few of those that are to be done, at random, to be captioned for a measurement.
    """

    inputs: int = 0
    again: int = 0
    done: int = 0
    looks: list[Look] = field(default_factory=list)
    some: list[Source] = field(default_factory=list)

    @property
    def due(self) -> int:
        return self.inputs - self.done

    @property
    def exact(self) -> bool:
        """Whether all that are due were opened."""
        return len(self.looks) == self.due

    @property
    def good(self) -> list[Look]:
        return [look for look in self.looks if not look.cause]

    @property
    def causes(self) -> Counter[str]:
        return Counter(look.cause for look in self.looks if look.cause)

    @property
    def compared(self) -> int:
        """Images whose files were read whole."""
        return sum(look.digest is not None for look in self.good)

    @property
    def copies(self) -> int:
        """Those of them that are equal to another, of which the job captions one."""
        return self.compared - len({look.digest for look in self.good if look.digest is not None})

    @property
    def captions(self) -> float:
        """Images that the model would see: scaled from the sample, without copies if all files were compared."""
        whole = self.exact and self.compared == len(self.good)
        return self.due * len(self.good) / max(len(self.looks), 1) - (self.copies if whole else 0)

    def mean(self, name: str) -> float | None:
        """Of an attribute of `Look`; None where it is not known."""
        values = [getattr(look, name) for look in self.good]
        return None if not values or None in values else sum(values) / len(values)


def survey(
    sources: Iterable[Source],
    look: Looker,
    *,
    is_done: Callable[[Source], bool] = lambda source: False,
    headers: int = HEADERS,
    sample: int = 0,
) -> Survey:
    """Go through sources once, and open images of a random sample while doing so.

    Memory is that of the sample and of a million names' hashes, whatever the number of sources.

    Args:
        is_done: whether a source needs no row any more.
        headers: as `HEADERS`.
        sample: how many sources are kept for a measurement.
    """
    found, seen, random = Survey(), set[int](), Random(_SEED)
    looking: deque[tuple[int, Future[Look]]] = deque()

    def settle(most: int) -> None:
        while len(looking) > most:
            place, future = looking.popleft()
            if place == len(found.looks):
                found.looks.append(future.result())
            else:
                found.looks[place] = future.result()

    with ThreadPoolExecutor(thread_name_prefix="vl-images") as pool:
        for source in sources:
            name = hash(work_key(source))
            if name in seen:
                found.again += 1
                continue
            if len(seen) < _NAMES:
                seen.add(name)
            found.inputs += 1
            if is_done(source):
                found.done += 1
                continue
            if (place := _place(random, found.due - 1, headers)) is not None:
                looking.append((place, pool.submit(look, source)))
                settle(64)
            if (place := _place(random, found.due - 1, sample)) is not None:
                found.some[place : place + 1] = [source]
        settle(0)
    return found


def _place(random: Random, number: int, most: int) -> int | None:
    """Where item `number` goes in a sample in which all items before are equally likely to be; None: nowhere."""
    place = number if number < most else random.randrange(number + 1)
    return place if place < most else None


@dataclass(frozen=True)
class Measured:
    """A short run: images whose time was taken, in seconds, and tokens written for each that has a caption."""

    images: int
    seconds: float
    tokens: float


def measure(model: Any | Elsewhere, sources: Sequence[Source], prompts: Prompts, **options: Any) -> Measured | None:
    """Caption images and forget the captions. The first batch is not counted, where there are more: what is loaded,
    compiled and filled with it is not done again.

    Args:
        options: as of `caption_rows`.

    Returns:
        None if there is no image.
    """
    begun = time.monotonic()
    batches = caption_rows(model, sources, prompt=prompts, **options)
    first = next(batches, [])
    warm = time.monotonic()
    rows = list(chain.from_iterable(batches))
    ended = time.monotonic()
    counted, since = (rows, warm) if rows else (first, begun)
    if not counted:
        return None
    written = [row["completion_tokens"] for row in [*first, *rows] if row["completion_tokens"] is not None]
    return Measured(len(counted), ended - since, sum(written) / max(len(written), 1))


def finished(out: str | os.PathLike[str], made: dict[str, Any], *, retry_errors: bool, mix: bool) -> Any:
    """Which sources an output has rows of: a function of a source. It reads all rows and changes none.

    Args:
        made: as of `vl.jobs.made.made_with`.

    Raises:
        JobError: as the job would, if the rows are of another run.
    """
    from vl.jobs.made import check_run
    from vl.jobs.manifest import Manifest
    from vl.jobs.parts import id_of
    from vl.jobs.stored import stored_rows

    manifest, batch, checked = Manifest(None), dict[bytes, bool](), None
    for number, stored in enumerate(stored_rows(out)):
        run = tuple(stored.row.get(name) for name in ("model", "prompt", "settings"))
        if run != checked:
            check_run(os.fspath(out), stored.row, made, mix)
            checked = run
        batch[stored.id] = stored.failed
        if len(batch) == 10_000:
            manifest.add(number, batch, [])
            batch = {}
    manifest.add(manifest.next_part, batch, [])

    def is_done(source: Source) -> bool:
        id = id_of(work_key(as_known(source, lambda key: manifest.has(id_of(key)))))
        return manifest.has(id) and not (retry_errors and manifest.failed(id))

    return is_done
