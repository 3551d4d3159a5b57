"""Who may ask, and for how much; whatever is refused says why, and is never an error of the server."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

import vl
from preprocessing import allowed
from vl.engine.runner import Runner
from vl.server import body as body_module
from vl.server.errors import ApiError
from vl.server.openai import CHOICES, ChatRequest, CompletionRequest, TokenizeRequest

from .conftest import Serve, ask, picture, with_image

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def refused(client: TestClient, body: Any, status: int, said: str, path: str = CHAT, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = client.post(path, content=content, headers={"Content-Type": "application/json", **headers})
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(said, error["message"]), error["message"]
    return found


DEEP = json.dumps(ask(tools=[{"type": "function", "function": {"name": "f", "parameters": 5}}])).replace(
    "5", '{"a":' * 900 + "1" + "}" * 900
).encode()  # fmt: skip
WRONG: list[tuple[Any, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"a": "\xff"}', "not in UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"n": 1, "n": 2}', "an object has 'n' twice"),
    (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "an object has 'content' twice"),
    (b"[]", "must be a JSON object"),
    (b"5", "must be a JSON object"),
    (b'{"a": NaN}', "NaN is no number"),
    (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
    ({}, "messages"),
    ({"messages": []}, "non-empty list"),
    ({"messages": None}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": ["Hello"]}, "message 1"),
    ({"messages": [{"role": "user"}]}, "message 1"),
    ({"messages": [{"role": "king", "content": ""}]}, "role must be one of"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "message 1, part 1"),
    ({"messages": [{"role": "tool", "content": "12", "tool_call_id": "x"}]}, "needs the function's name"),
    (ask(max_tokens=0), "max_tokens must be 1 to 2,000 here, not 0"),
    (ask(max_tokens=10**30), "max_tokens must be 1 to 2,000 here"),
    (ask(max_tokens=None, max_completion_tokens=-1), "max_completion_tokens must be 1 to 2,000 here, not -1"),
    (ask(tools=[{}]), "tool 1 needs a name"),
    (ask(tools=[{"type": "function", "function": {"name": ""}}]), "tool 1 needs a name"),
    (ask(max_tokens="8"), "^max_tokens must be a whole number, not a string$"),
    (ask(max_tokens=8.5), "^max_tokens must be a whole number, not a number with a point$"),
    (ask(max_tokens=3, max_completion_tokens=4), "two names of one limit"),
    (ask(temperature=-1), "temperature must be"),
    (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature must be"),
    (ask(top_p=0), "top_p must be"),
    (ask(n=0), "^n must be 1 to 8 here, not 0$"),
    (ask(n=9), "^n must be 1 to 8 here, not 9$"),
    (ask(stop=[5]), "^stop must be a string or a list of strings, not a list of a whole number$"),
    (ask(tool_choice=[[{}]]), "^tool_choice must be a string or an object, not a list of a list of an object$"),
    (ask(logit_bias={"5": "x"}), r"^logit_bias\[5\] must be a number, not a string$"),
    (ask(modalities=["audio"]), r"^modalities\[0\] must be 'text', not 'audio'$"),
    (ask(top_p=10**400), "^top_p is a number of too many digits$"),
    (b"null", "must be a JSON object, not null"),
    (ask(stop=["a"] * 65), "stop must be at most 64"),
    (ask(seed=2**64), "seed must be"),
    (ask(top_logprobs=3), "top_logprobs"),
    *((ask(logit_bias={name: 1}), "logit_bias") for name in ("x", "05", " 5", "5_0", "٥", "-1")),
    (ask(logit_bias={"99999999": 1}), "logit_bias|vocabulary"),
    (ask(stream_options={"include_usage": True}), "goes with stream"),
    (ask(stream=True, stream_options={"chunks": 5}), "not chunks"),
    (ask(stream="yes"), "stream"),
    (ask(sing=True), "'sing' is not a field"),
    (ask(audio={"voice": "x"}), "'audio' is not a field"),
    (ask(priority=5), "'priority' is not a field"),
    (ask("a" * 40_000), "more than the 4,096 of a request"),
    (ask("a" * 400_000), "a text of 400,000 characters is more than the 4,096 tokens of a request"),
    (ask() | {"messages": [{"role": "user", "content": ""}] * 5000}, "5,000 messages are more than the 4,096 tokens"),
    (ask(tools=[{"type": "function", "function": {"name": "f", "description": "x" * 10**6}}]), "more than the 4,096"),
    (DEEP, "nested too deeply"),
]


@pytest.mark.parametrize(("body", "said"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_bad_input_names_the_cause(client: TestClient, body: Any, said: str) -> None:
    found = refused(client, body, 400, said)
    named = isinstance(body, dict) or b'"temperature"' in body
    assert (found.json()["error"]["param"] is not None) == named


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "^prompt is missing$"),
        ({"prompt": [1, "a"]}, "list of such lists, not a list of a whole number and a string$"),
        ({"prompt": [[1, None]]}, "not a list of a list of a whole number and null$"),
        (
            {"prompt": {}},
            "^prompt must be a string, .* or a list of such lists, not an object$",
        ),
        (
            {"prompt": json.loads("[" * 500 + "]" * 500)},
            ", not a list of a list of a list of a list$",
        ),
        ({"prompt": []}, "empty list"),
        ({"prompt": ""}, "the prompt is empty: give at least a token"),
        ({"prompt": "a b " * 10**5}, "a text of 400,000 characters is more than"),
        ({"prompt": [[]]}, "the prompt is empty: give at least a token"),
        *(({"prompt": [token]}, "^prompt: token ids must be .* from 0 to [0-9]+$") for token in (-5, 10**6, 2**70)),
        ({"prompt": [True]}, "not a list of true or false$"),
        ({"prompt": ["a"] * 9}, "9 answers"),
        ({"prompt": "<image>"}, "^prompt has the token [0-9]+, .*: ask about images at /v1/chat/completions$"),
        ({"prompt": "a", "suffix": "b"}, "'suffix' is not a field"),
        ({"prompt": "a", "best_of": 4}, "best_of is not supported"),
        ({"prompt": "a", "logprobs": 3, "echo": True}, "leave echo out"),
        ({"prompt": "a", "logprobs": 21}, "^logprobs must be a whole number, 0 to 20, not 21$"),
    ],
)
def test_bad_completions_name_the_cause(client: TestClient, body: Any, said: str) -> None:
    refused(client, body, 400, said, COMPLETE)


def test_what_may_take_several_forms_has_words_for_them() -> None:
    """Or else a fault would be told by pydantic's names for these."""
    several = {
        name
        for kind in (ChatRequest, CompletionRequest, TokenizeRequest)
        for name, field in kind.model_fields.items()
        if isinstance(field.annotation, UnionType) and len(set(get_args(field.annotation)) - {type(None)}) > 1
    }
    assert several == set(CHOICES)


def test_half_a_surrogate_pair_can_be_said_back(client: TestClient) -> None:
    refused(client, b'{"model": "\\ud800", "messages": []}', 404, r"\\ud800")
    refused(client, b'{"messages": [{"role": "\\ud800"}]}', 400, "role")


def test_other_models_and_paths_are_not_found(client: TestClient) -> None:
    found = refused(client, ask(model="gpt"), 404, "no model 'gpt' here")
    assert found.json()["error"]["code"] == "model_not_found"
    for path in ("/v1/models/gpt", "/v1/nothing", "/docs", "/health/"):
        assert client.get(path, follow_redirects=False).status_code == 404
    told = client.post("/v1/embeddings", json={}).json()["error"]["message"]
    assert "no /v1/embeddings here" in told
    assert CHAT in told
    wrong = client.get(CHAT)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert f"{CHAT} does not take GET: use POST" in wrong.json()["error"]["message"]
    assert client.get("/v1/models/other").json()["id"] == "other"


def test_only_json_is_read(client: TestClient) -> None:
    """A page of another site can have a browser send text, and nothing else, without asking."""
    refused(client, ask(), 415, "Content-Type", **{"Content-Type": "text/plain"})
    refused(client, ask(), 415, "Content-Type", **{"Content-Type": ""})
    refused(client, ask(), 415, "without Content-Encoding", **{"Content-Encoding": "gzip"})


def test_a_body_has_its_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(max_body=1000)
    refused(client, ask("a" * 2000), 413, "larger than the limit")
    refused(client, b" " * 1001, 413, "larger than the limit")
    assert client.post(CHAT, json=ask()).status_code == 200


def test_images_have_their_limits(serve: Serve) -> None:
    client = serve(max_images=2, max_pixels=10_000)
    fine = with_image(picture(100, 100))
    assert client.post(CHAT, json=ask() | {"messages": fine}).status_code == 200
    refused(client, {"messages": with_image(picture(101, 100))}, 400, "image 1: 101 x 100, over the limit")
    refused(client, {"messages": fine * 3}, 400, "3 images are more than the 2")


@pytest.mark.parametrize("side", [9000, 60_000])
def test_the_limit_that_is_named_is_the_one_that_holds(client: TestClient, side: int) -> None:
    """Also for an image that Pillow does not open any more."""
    file = BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    png = file.getvalue()
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    bomb = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    url = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    refused(client, {"messages": with_image(url)}, 400, "image 1: .*over the limit of 64 million pixels")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{file}", "expected a data URL"),
        ("file://{file}", "expected a data URL"),
        ("~/a.png", "expected a data URL"),
        ("", "expected a data URL"),
        ({"path": "{file}"}, "not an object"),
        ([], "not a list"),
        (5, "not a whole number"),
        (
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==",
            "data URL",
        ),
        ("data:image/png;base64,!", "invalid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png", "no comma"),
        ("data:image/svg+xml,<svg/>", "not an image"),
        ("data:image/png;base64,\ud800", "half a surrogate pair"),
        ("http://127.0.0.1/a.png", "fetches no images"),
        ("https://example.com/a.png", "fetches no images"),
        ("ftp://example.com/a.png", "expected a data URL"),
    ],
)
def test_nothing_but_data_is_an_image(client: TestClient, tmp_path: Path, url: Any, said: str) -> None:
    """Not a path, of a file that is there, in whatever form."""

    file = tmp_path / "a.png"
    file.write_bytes(base64.b64decode(picture().partition(",")[2]))
    filled = json.loads(json.dumps(url).replace("{file}", str(file)))
    for part in (
        {"type": "image_url", "image_url": {"url": filled}},
        {"type": "image_url", "image_url": filled},
        {"type": "image", "image": filled},
        {"type": "image", "path": filled},
        {"type": "image", "url": filled},
    ):
        refused(client, {"messages": [{"role": "user", "content": [part]}]}, 400, f"{said}|has no image")
    beside = {"role": "user", "content": "", "image": filled or "a.png"}
    refused(client, {"messages": [beside]}, 400, "stands where nothing is read")


class Pictures(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:

        self.asked.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://evil.example/")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(base64.b64decode(picture().partition(",")[2]))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[int]:
    """The port of a server of images on this machine."""
    Pictures.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_private_address_is_not_asked(serve: Serve, pictures: int) -> None:
    """Preprocessing's own tests try the other ways to one."""
    client = serve(image_hosts=(f"localhost:{pictures}", f"127.0.0.1:{pictures}"))
    for host in ("localhost", "127.0.0.1"):
        refused(client, {"messages": with_image(f"http://{host}:{pictures}/a.png")}, 400, "image 1: .*not public")
    refused(client, {"messages": with_image(f"http://other.example:{pictures}/")}, 400, "may not be fetched from")
    assert not Pictures.asked


def test_named_hosts_are_asked(
    serve: Serve, pictures: int, model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowed, "is_public", lambda address: True)
    client = serve(image_hosts=(f"localhost:{pictures}",))
    found = client.post(CHAT, json=ask() | {"messages": with_image(f"http://localhost:{pictures}/a.png")})
    local = client.post(CHAT, json=ask() | {"messages": with_image(picture())})
    assert found.json()["choices"] == local.json()["choices"]
    refused(client, {"messages": with_image(f"http://localhost:{pictures}/elsewhere")}, 400, "evil.example")
    assert Pictures.asked == ["/a.png", "/elsewhere"]


def test_keys(serve: Serve) -> None:
    client = serve(api_keys=("one", "zwölf"))
    for headers in ({}, {"Authorization": "Bearer two"}, {"Authorization": "one"}, {"Authorization": "Basic one"}):
        found = refused(client, ask(), 401, "API key", **headers)
        assert found.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/openapi.json", headers=headers).status_code == 401
    for key in ("one", "zwölf"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()}).status_code == 200
    assert client.get("/health").status_code == client.head("/health").status_code == 200


def test_a_full_server_says_when_to_come_again(
    serve: Serve, model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch, until_idle: Callable[..., None]
) -> None:
    call, full, looked = Runner.__call__, threading.Event(), threading.Event()

    def held(self: Runner, batch: Any, running: Any) -> Any:
        if len(running) == 4:
            full.set()
            assert looked.wait(200)
        elif not full.is_set():
            time.sleep(0.3)  # until all have come, for which there is a minute
        return call(self, batch, running)

    monkeypatch.setattr(Runner, "__call__", held)
    client = serve(max_waiting=0)  # beside the four that run
    never = {str(end): -100 for end in model.end_ids}
    statuses: list[int] = []

    def post() -> None:
        statuses.append(client.post(CHAT, json=ask(max_tokens=200, logit_bias=never)).status_code)

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert full.wait(200)
    found = client.post("/tokenize", json={"prompt": "a"})
    assert found.status_code == 429
    assert 1 <= int(found.headers["Retry-After"]) <= 60
    assert found.json()["error"]["type"] == "rate_limit_error"
    assert client.get("/health").status_code == 200
    looked.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200
    until_idle(model)


def test_a_body_that_does_not_come_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(body_module, "SECONDS", 0.1)
    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(ApiError, match=r"did not come within 0\.1 s") as found:
        asyncio.run(body_module.read_body(Request(scope, receive), 1000))
    assert found.value.status == 408


def test_what_fails_in_the_engine_is_told(
    client: TestClient, model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch, until_idle: Callable[..., None]
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Runner, "__call__", fail)
    error: Exception = MemoryError("no more")
    refused(client, ask(), 503, "ran out of memory")
    error = ValueError("a secret of the server")
    found = refused(client, ask(), 500, "the server failed on this request .ValueError.")
    assert "secret" not in found.text
    streamed = client.post(CHAT, json=ask(stream=True))
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    monkeypatch.undo()
    until_idle(model)
    assert client.post(CHAT, json=ask()).status_code == 200
