"""Small pictures of images by what rows call them, as data URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO

from preprocessing import load_image
from preprocessing.container import available_cpus
from preprocessing.formats import open_encoded
from preprocessing.sources import open_source
from vl.jobs.sources import Picture, as_known, expand_sources
from vl.jobs.sources.files import is_remote, remote
from vl.jobs.stored import Stored
from vl.pages import data_url

SIDE = 256  # px
_QUALITY = 70
_THREADS = 8

_MEMBER = re.compile(r"(.+?\.tar)/.+", re.S)
_LINE = re.compile(r"(.+?\.(?:parquet|csv|jsonl|ndjson)):\d+(?::(.+))?", re.I | re.S)

Read = Callable[[], bytes]


def thumbnails(rows: Iterable[Stored], column: str | None = None) -> Iterator[str]:
    """A data URL for each row, WebP of at most `SIDE` px; "" where the image is gone or cannot be read.

    Images are found where they were read from, or in the output if it has them.

    Args:
        column: of tables' images, as of `expand_sources`, where rows do not name it, as those of earlier versions.
    """
    held = list(rows)
    inside = dict(_contained({name for row in held if row.image is None for name in [row.row["image"]]}, column))
    with ThreadPoolExecutor(min(available_cpus(), _THREADS), "vl-images") as pool:
        yield from pool.map(partial(_thumbnail, inside), held)


def _thumbnail(inside: Mapping[str, Read], stored: Stored) -> str:
    name = stored.row["image"]
    with suppress(Exception):  # a damaged image, a lost network: a page is worth more than one picture in it
        content = (stored.image or inside.get(name) or partial(_read, name))()
        with open_encoded(BytesIO(content), name) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG is decoded to about this size, which is quicker
            return data_url(load_image(image, background=_background(stored)), SIDE, _QUALITY)
    return ""


def _background(stored: Stored) -> str:
    """What the model had transparent images laid on; without that, what a page has."""
    return (stored.row.get("settings") or {}).get("background") or "white"


def _read(name: str) -> bytes:
    """Of an image that is a file. Raises a vl.Error, or OSError."""
    if is_remote(name) and name[:4].lower() not in ("http", "file"):
        return remote(name).read_all()
    with open_source(name, name[:200]) as file:
        return file.read()


def _contained(names: Iterable[str], column: str | None) -> Iterator[tuple[str, Read]]:
    """How to read those that are in shards and tables, each of which is gone through once."""
    by_container: dict[tuple[str, str | None], set[str]] = {}
    for name in names:
        if os.path.exists(name):
            continue
        if (found := _MEMBER.fullmatch(name)) is not None:
            by_container.setdefault((found[1], None), set()).add(name)
        elif (found := _LINE.fullmatch(name)) is not None:
            by_container.setdefault((found[1], found[2] or column), set()).add(name)
    for (container, images), wanted in by_container.items():
        with suppress(Exception):  # it is gone, or another by now
            for source in expand_sources([container], column=images):
                source = as_known(source, wanted.__contains__)
                if isinstance(source, Picture) and source.name in wanted:
                    yield source.name, source.read
                    wanted.discard(source.name)
                if not wanted:
                    break
