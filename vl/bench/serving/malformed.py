"""Requests that a server has to refuse, each with a status of its own."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vl.bench.pictures import photograph_part

MAX_BODY, MAX_MEGAPIXELS, MAX_IMAGES, MAX_NEW_TOKENS = 1, 4, 4, 256
"""Limits of the server that these are for: MiB, millions of pixels, images of a request, and tokens of an answer."""

LIMITS = (
    *("--max-body", str(MAX_BODY), "--max-megapixels", str(MAX_MEGAPIXELS), "--max-images", str(MAX_IMAGES)),
    *("--max-new-tokens", str(MAX_NEW_TOKENS)),
)


@dataclass(frozen=True)
class Malformed:
    """A body, what it says it is, and the status with which it is refused."""

    name: str
    content: bytes
    status: int = 400
    kind: str = "application/json"


def malformed(model: str) -> list[Malformed]:
    """One of each kind, for the server's `model`."""
    said = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}

    def of(name: str, status: int = 400, **fields: Any) -> Malformed:
        return Malformed(name, json.dumps(said | fields).encode(), status)

    def with_parts(name: str, *parts: Any) -> Malformed:
        return of(name, messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}])

    return [
        Malformed("JSON that ends in the middle", json.dumps(said).encode()[:-9]),
        Malformed("no UTF-8", b'{"model": "\xff\xfe"}'),
        Malformed("no JSON by its type", json.dumps(said).encode(), 415, "text/plain"),
        Malformed("a list", b"[]"),
        of("body too large", 413, messages=[{"role": "user", "content": "a" * (MAX_BODY * 2**20 + 1)}]),
        of("unknown model", 404, model="no-such-model"),
        of("unknown field", best_effort=True),
        of("messages that are a number", messages=7),
        of("a message that is a list", messages=[[1, 2]]),
        of("temperature that is a text", temperature="warm"),
        of("temperature below 0", temperature=-1),
        of("no tokens", max_tokens=0),
        of("too many tokens", max_tokens=MAX_NEW_TOKENS + 1),
        of("too many answers", n=10**6),
        of("a schema that is none", response_format={"type": "json_schema", "json_schema": {"schema": {"type": 5}}}),
        with_parts("too many pixels", _image_part(_blank_image(MAX_MEGAPIXELS))),
        with_parts("too many images", *(photograph_part(32, 32, seed) for seed in range(MAX_IMAGES + 1))),
        with_parts("an image that is none", _image_part(b"no image")),
        with_parts("half an image", _image_part(_blank_image(1)[:60])),
        with_parts("a path of the server", {"type": "image_url", "image_url": {"url": "/etc/passwd"}}),
        with_parts("an address within", {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}),
    ]


def _image_part(content: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(content).decode()}"}}


def _blank_image(megapixels: int) -> bytes:
    """A PNG file of a few bytes for a thousand pixels, with somewhat more than so many millions."""
    buffer = io.BytesIO()
    Image.new("1", (1001, 1000 * megapixels)).save(buffer, "png")
    return buffer.getvalue()
