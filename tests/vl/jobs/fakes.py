"""A model without weights for jobs, a job on it, and what must then be in the file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

from preprocessing import Inputs, LazyImage, Patcher, load_image
from vl.engine import Generation, SamplingParams, Timings, Usage
from vl.jobs import Tally, caption_images, expand_sources


@contextmanager
def s3_server() -> Iterator[Any]:
    """The file system of an S3 server that holds nothing yet, and which this process' environment names."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        settings = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(f"AWS_{name}", value)
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # servers share a store
        s3fs.S3FileSystem.clear_instance_cache()  # of a server that was here before
        yield s3fs.S3FileSystem()
    server.stop()


class FakeProcessor:
    background = None
    control_tokens_in_text = False
    patcher = Patcher()

    def __init__(self) -> None:
        self.prepared = 0
        self._lock = threading.Lock()

    def __call__(self, messages: Sequence[dict[str, Any]]) -> Inputs:
        with self._lock:
            self.prepared += 1
        image, text = (part["image"] if part["type"] == "image" else part["text"] for part in messages[0]["content"])
        size = image.size if isinstance(image, LazyImage) else load_image(image).size
        ids = torch.tensor(list(text.encode()), dtype=torch.int64)
        return Inputs(ids, torch.zeros(0, 3, 1, 1, dtype=torch.uint8), [Patcher().grid(*size)])


class FakeRequest:
    def __init__(self, inputs: Inputs) -> None:
        self.size = f"{inputs.grids[0].width} by {inputs.grids[0].height}"
        self.prompt = bytes(inputs.input_ids.tolist()).decode()
        self.done = False
        self.error: Exception | None = None

    def result(self) -> Generation:
        if self.error is not None:
            raise self.error
        text = f"{self.prompt} {self.size}" if self.prompt.endswith(":") else self.size
        return Generation(f" {text}\n", [1], "stop", Usage(7, 3, 1), Timings(decode=0.5))


class FakeModel:
    """Its own engine: captions an image with its size, after a prompt that ends with a colon.

    `trouble` is called with that size and may raise.
    """

    name = "fake"
    config = SimpleNamespace(vision=object(), quantization=None)
    dtype = torch.float32
    device = torch.device("cpu")
    fingerprint: str | None = None

    def __init__(self, trouble: Callable[[str], None] = lambda size: None, check: Any = lambda params: None) -> None:
        self.trouble = trouble
        self.check = check
        self.processor = FakeProcessor()
        self.engine = self
        self.queue: list[FakeRequest] = []
        self.most = 0  # requests at once

    def submit(self, inputs: Inputs, params: SamplingParams) -> FakeRequest:
        self.queue.append(FakeRequest(inputs))
        self.most = max(self.most, len(self.queue))
        return self.queue[-1]

    def step(self) -> None:
        for request in self.queue:
            try:
                self.trouble(request.size)
            except Exception as error:
                request.error = error
            request.done = True
        self.queue.clear()

    def cancel(self, request: FakeRequest) -> None:
        if request in self.queue:
            self.queue.remove(request)


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def read_so_far(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written: a reader may come between two halves of one."""
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def run(archive: Path, out: Path, model: Any = None, **options: Any) -> Tally:
    return caption_images(model or FakeModel(), [archive], out, **{"batch_size": 4} | options)


def assert_complete(archive: Path, out: Path) -> None:
    rows = read(out)
    assert sorted(row["image"] for row in rows) == sorted(expand_sources([archive]))
    for row in rows:
        if row["image"].endswith("broken.jpg"):
            assert "caption" not in row
            assert "broken.jpg" in row["error"]
        else:
            width, height = Image.open(row["image"]).size
            assert row["caption"] == f"{width} by {height}"
            assert "error" not in row
