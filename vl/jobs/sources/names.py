"""An image of a job, and what rows call it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from preprocessing.sources import kind_of
from preprocessing.unicode import name_bytes
from vl.errors import InputError

_LONGEST_NAME = 255


@dataclass(frozen=True)
class Picture:
    """An image inside of something else: a shard, a table, a bucket.

    Args:
        name: what its row calls it; the same in every run.
        read: its encoded file; called in a worker thread or another process, to which it is pickled, when the image is
            due. Raises a `vl.Error` naming the cause.
        earlier: what rows of earlier versions call it, if that is something else.
    """

    name: str
    read: Callable[[], bytes]
    earlier: str = ""


@dataclass(frozen=True)
class Asked:
    """An image of a table's row whose columns are in the prompts.

    Args:
        image: as other sources.
        prompt: what is asked about it, as its row will have it; None if that cannot be known.
    """

    image: str | Picture
    prompt: str | dict[str, str] | None


Source: TypeAlias = str | Picture | Asked
"""A path, URL, data URL or base64 text, as `preprocessing.load_image` takes it, a `Picture`, or `Asked`."""


def broken(name: str, cause: str, earlier: str = "") -> Picture:
    """A part of a source that cannot be read: its row will be an error, so that the loss is seen."""
    return Picture(name, partial(_refuse, f"{name}: {cause}"), earlier)


def held(name: str, content: bytes, earlier: str = "") -> Picture:
    """An image that is in memory already."""
    return Picture(name, partial(bytes, content), earlier)


def _refuse(message: str) -> bytes:
    raise InputError(message)


def source_key(source: Source) -> str:
    """What a row calls its image: the source itself, or the digest of data that are too long for a name."""
    if isinstance(source, Asked):
        source = source.image
    if isinstance(source, Picture):
        return source.name
    is_data = source[:5].lower() == "data:"
    if not is_data and len(source) <= _LONGEST_NAME:
        return source
    kind = kind_of(source)
    if kind == "path" or (kind == "url" and not is_data):
        return source
    digest = hashlib.sha256(name_bytes(source)).hexdigest()
    start = source[:100].partition(",")[0] if is_data else "base64"
    return f"{start},sha256:{digest}"


def work_key(source: Source) -> str:
    """What tells a source from all others of a job: its name, and where the prompt is the row's own, that too."""
    name = source_key(source)
    return _asked_key(name, source.prompt) if isinstance(source, Asked) else name


def as_known(source: Source, has: Callable[[str], bool]) -> Source:
    """The source by the name that earlier versions gave it, if there is a row of that; else as it is.

    Args:
        has: whether there is a row of a `work_key`.
    """
    image = source.image if isinstance(source, Asked) else source
    if not isinstance(image, Picture) or not image.earlier:
        return source
    before = replace(image, name=image.earlier, earlier="")
    found = replace(source, image=before) if isinstance(source, Asked) else before
    return found if has(work_key(found)) else source


def row_key(row: dict[str, Any]) -> str:
    """`work_key` of the source that a row was made of."""
    own = "template" in (row.get("settings") or {})
    return _asked_key(row["image"], row["prompt"]) if own else row["image"]


def _asked_key(name: str, prompt: str | dict[str, str] | None) -> str:
    return f"{name}\n{json.dumps(prompt)}"
