"""A tiny model that knows the token with which functions are called, behind a server in this process."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

import vl
from preprocessing.tools import FUNCTION_CALL
from vl.engine import Engine, Request
from vl.engine.choosing import Chosen
from vl.server.app import Server
from vl.server.config import ServerConfig

CONFIG = ServerConfig(names=("tiny", "other"), max_tokens=4096, max_new_tokens=2000)
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def calling_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with `<function_call>` in the place of a byte that no test writes."""
    folder = tmp_path_factory.mktemp("calling") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[FUNCTION_CALL] = vocabulary.pop("Ā")
    token = {**tokenizer["added_tokens"][-1], "id": vocabulary[FUNCTION_CALL], "content": FUNCTION_CALL}
    tokenizer["added_tokens"] = sorted([*tokenizer["added_tokens"], token], key=lambda each: each["id"])
    file.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def model(calling_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(calling_checkpoint, device="cpu", max_batch_size=4, cache_tokens=16384)


@pytest.fixture
def serve(model: vl.MiniMaxVL) -> Iterator[Serve]:
    """Starts a server of the model; its settings are those given, and else `CONFIG`'s."""
    clients = []

    def start(served: vl.MiniMaxVL = model, **settings: Any) -> TestClient:
        server = Server(served, replace(CONFIG, **settings))
        client = TestClient(server.app, raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


@pytest.fixture
def says(model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the model say a text, in which control tokens may be written out, and end."""

    push = Engine._push

    def say(text: str) -> None:
        ids = [*model.processor.tokenizer.encode(text), *model.end_ids]

        def scripted(self: Engine, request: Request, chosen: Chosen) -> None:
            push(self, request, chosen._replace(token_id=ids[request.written]))

        monkeypatch.setattr(Engine, "_push", scripted)

    return say


def ask(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat's request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


def picture(width: int = 40, height: int = 30, colour: str = "red") -> str:
    """A data URL."""
    file = BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def with_image(url: str, text: str = "Describe it.") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def events(response: Any) -> list[Any]:
    """The chunks of a stream, which ends as it should."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
