"""`vl serve` as a process: nano answers OpenAI's own client and LangChain's, and ends as it should."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema
import openai
import pytest
from forkserver import Popen
from langchain_openai import ChatOpenAI
from playwright.sync_api import Browser, Error
from pydantic import BaseModel

import vl
from vl.cli.app import run

EXAMPLES = Path(vl.__file__).parents[1] / "demo" / "examples"
IMAGE = EXAMPLES / "place-320px.png"
KEY = "a-key"
Start = Callable[..., "Served"]


class Served:
    """A server's process, once it is ready."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "vl.cli", "serve", "--port", "0", *options]
        environment = os.environ | {"VL_API_KEYS": KEY, "PYTHONUNBUFFERED": "1"}
        self.process = Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        while not (ready := re.search(r"served at (http://127.0.0.1:\d+)/v1", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = ready[1]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=200)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(200)


class Pages(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of a site of pages."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def served(site: int) -> Iterator[Served]:
    server = Served("nano", "--quiet", "--api-key", "second", "--allow-origin", f"http://127.0.0.1:{site}")
    yield server
    assert server.end() == 0


def asked(text: str = "Describe this image.", image: Path | None = IMAGE) -> list[Any]:
    parts: list[Any] = [{"type": "text", "text": text}]
    if image is not None:
        url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def caption() -> str:
    return vl.load("nano", device="cpu").caption(IMAGE, "Describe this image.")


def test_openais_client(served: Served, caption: str) -> None:
    found = served.client.chat.completions.create(model="nano", messages=asked())
    assert found.choices[0].message.content == caption
    stream = served.client.chat.completions.create(
        model="nano", messages=asked(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == caption
    assert chunks[-1].usage is not None
    assert found.usage is not None
    assert chunks[-1].usage.total_tokens == found.usage.total_tokens
    assert [model.id for model in served.client.models.list()] == ["nano"]
    text = served.client.completions.create(model="nano", prompt="A red", max_tokens=4)
    assert text.usage is not None
    assert text.usage.completion_tokens == 4


def test_tools_go_there_and_back(served: Served) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
    messages: list[Any] = [
        *asked("What time is it?", None),
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    found = served.client.chat.completions.create(model="nano", messages=messages, tools=tools, max_tokens=8)
    assert found.choices[0].message.role == "assistant"
    with pytest.raises(openai.BadRequestError, match="cannot be made to call functions"):
        served.client.chat.completions.create(model="nano", messages=messages, tools=tools, tool_choice="required")


class Shape(BaseModel):
    colour: Literal["red", "green", "blue"]
    sides: int


def test_answers_are_read_by_their_schema(served: Served) -> None:
    found = served.client.chat.completions.parse(
        model="nano", messages=asked(), response_format=Shape, max_tokens=200, temperature=1.0, seed=1
    )
    assert isinstance(found.choices[0].message.parsed, Shape)


SCHEMAS: list[dict[str, Any]] = [
    Shape.model_json_schema() | {"additionalProperties": False},
    {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 20},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 4},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["title", "tags", "score"],
        "additionalProperties": False,
    },
    {
        "$defs": {"point": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9}, "maxItems": 3}},
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "boolean"}, {"type": "null"}]},
        "minItems": 1,
        "maxItems": 5,
    },
    {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "box": {
                "type": "object",
                "properties": {"width": {"type": "integer", "minimum": 1, "maximum": 4096}, "unit": {"const": "px"}},
                "required": ["width", "unit"],
                "additionalProperties": False,
            },
        },
        "required": ["id", "box"],
        "additionalProperties": False,
    },
]


def test_all_of_many_answers_follow_their_schemas(
    served: Served, record_property: Callable[[str, object], None]
) -> None:
    """Sampled ones, about images and texts, many at once. `VL_JSON_ANSWERS` in the environment says how many."""
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=600)
    places, schemas = asyncio.Semaphore(16), [*enumerate(SCHEMAS)]

    async def answer(seed: int) -> tuple[str, bool]:
        """Why it ended, and whether it is what its schema says."""
        number, schema = schemas[seed % len(schemas)]
        messages = asked("Describe it in JSON.", IMAGE if seed % 8 == 0 else None)
        form: Any = {"type": "json_schema", "json_schema": {"name": f"s{number}", "schema": schema, "strict": True}}
        async with places:
            found = await client.chat.completions.create(
                model="nano", messages=messages, response_format=form, seed=seed, temperature=1.0, max_tokens=400
            )
        choice = found.choices[0]
        try:
            jsonschema.validate(json.loads(choice.message.content or ""), schema)
        except (ValueError, jsonschema.ValidationError):
            return choice.finish_reason, False
        return choice.finish_reason, True

    async def answers() -> list[tuple[str, bool]]:
        async with client:
            return await asyncio.gather(*map(answer, range(int(os.environ.get("VL_JSON_ANSWERS", "12")))))

    found = Counter(asyncio.run(answers()))
    record_property("answers", str(found))
    assert set(found) == {("stop", True)}, found


def test_errors_are_those_that_the_client_knows(served: Served) -> None:
    create = served.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="no model 'gpt' here"):
        create(model="gpt", messages=asked())
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        create(model="nano", messages=asked(), temperature=-3)
    with pytest.raises(openai.BadRequestError, match="image 1: expected a data URL"):
        create(
            model="nano",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": str(IMAGE)}}]}],
        )
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="another", max_retries=0).models.list()
    openai.OpenAI(base_url=f"{served.url}/v1", api_key="second", max_retries=0).models.list()  # of the command line


ASKS = """async ({url, key}) => {
    const ask = (key, more) => fetch(url + "/v1/chat/completions", {
        method: "POST",
        headers: {"Content-Type": "application/json", "Authorization": "Bearer " + key, "X-Stainless-Lang": "js"},
        body: JSON.stringify({messages: [{role: "user", content: "Hello"}], max_tokens: 3, ...more}),
    });
    const refused = await ask("none", {});
    const wrong = await ask(key, {n: 0});
    const streamed = await (await ask(key, {stream: true})).text();
    return [refused.status, (await refused.json()).error.code, (await wrong.json()).error.param, streamed.slice(-14)];
}"""


def test_a_page_of_an_origin_that_is_allowed_may_ask(served: Served, site: int, browser: Browser) -> None:
    """As Chromium has it, which asks first whether it may send a key."""
    page, given = browser.new_page(), {"url": served.url, "key": KEY}
    page.goto(f"http://127.0.0.1:{site}")
    assert page.evaluate(ASKS, given) == [401, "invalid_api_key", "n", "data: [DONE]\n\n"]
    page.goto(f"http://localhost:{site}")  # another origin
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(ASKS, given)
    page.close()


@pytest.mark.parametrize(("options", "there"), [([], ""), ([], " , "), (["--api-key", " "], "one")])
def test_keys_that_are_none_do_not_open_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], there: str
) -> None:
    """As VL_API_KEYS is where a secret is missing."""
    monkeypatch.setenv("VL_API_KEYS", there)
    assert run(["serve", "no-such-model", *options]) == 2
    assert re.search("holds no key|an API key is empty", " ".join(capsys.readouterr().err.split()))


def test_langchain(served: Served, caption: str) -> None:
    model = ChatOpenAI(model="nano", base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)  # type: ignore[arg-type]
    assert model.invoke(asked()).content == caption
    assert "".join(str(piece.content) for piece in model.stream(asked())) == caption


def test_sigterm_finishes_what_runs() -> None:
    served = Served("nano")
    stream = served.client.chat.completions.create(model="nano", messages=asked(), stream=True)
    chunks = [next(stream), next(stream)]
    served.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until nobody is let in
        try:
            openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=60).models.list()
        except openai.APIConnectionError:
            break
    else:
        raise AssertionError("it goes on to take requests")
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert served.process.wait(200) == 0


def test_an_address_that_cannot_be_had(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = served.url.rpartition(":")[2]
    assert run(["serve", "nano", "--port", port]) == 3
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert run(["serve", "nano", "--host", "no.such.host.example"]) == 3


@pytest.mark.parametrize("host", ["http://a.com", "a.com/b", "me@a.com", "a.com:http", "*.*.com", "a b", "[::1]", "*"])
def test_hosts_that_no_url_has_are_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "no-such-model", "--allow-image-hosts", f"images.example.com:8080,{host}"]) == 2
    assert "is no host to fetch images from" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "origin",
    ["a.com", "https://a.com/", "https://A.com", "http://a.com:80", "https://*.a.com", "null", "", "http://é.com"],
)
def test_origins_that_no_page_has_are_refused(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "no-such-model", "--allow-origin", "http://[::1]:3000", "--allow-origin", origin]) == 2
    assert "is no origin of a page" in " ".join(capsys.readouterr().err.split())


def test_what_a_model_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its folder's name, `.` too; and never by nothing."""
    names: list[tuple[str, ...]] = []
    monkeypatch.setattr("vl.server.running.Server", lambda _, config: names.append(config.names))
    monkeypatch.setattr("vl.server.running.serve", lambda _, bound, **__: bound.close())
    monkeypatch.setattr("vl.cli.loading.Loading.load", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.chdir(tmp_path)
    for model, *options in (["."], ["./"], ["org/model"], ["x", "--name", "a", "--name", "b"]):
        assert run(["serve", model, "--port", "0", *options]) == 0
    assert names == [(tmp_path.name,), (tmp_path.name,), ("model",), ("a", "b")]
    assert run(["serve", "x", "--port", "0", "--name", " "]) == 2


def test_a_model_of_random_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the layers and settings that were asked for."""
    seen: list[Any] = []
    monkeypatch.setattr("vl.server.running.Server", lambda model, _: seen.append(model))
    monkeypatch.setattr("vl.server.running.serve", lambda _, bound, **__: bound.close())
    options = ["--port", "0", "--device", "cpu", "--batch-size", "2", "--cache-tokens", "2048"]
    assert run(["serve", "nano", "--random-weights", "--layers", "2", "--quantization", "int8", *options]) == 0
    (model,) = seen
    assert (len(model.config.text.attn_type_list), model.config.quantization) == (2, "int8")
    assert model.engine.config.cache_tokens == 2048
    assert run(["serve", "nano", "--layers", "2"]) == 2
    assert run(["serve", "nano", "--random-weights", "--spill", "1"]) == 2
    assert "not with --random-weights" in " ".join(capsys.readouterr().err.split())
