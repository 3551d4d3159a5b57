"""Captions by a running server: a small real one, that speaks OpenAI's form, fails in every way, and counts."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl.errors import ConfigError
from vl.jobs import JobError, caption_images, pipeline
from vl.jobs import served as served_module
from vl.jobs.served import Served

from .fakes import FakeModel, read
from .test_pipeline import AtOnce

Reply = tuple[int, dict[str, str], Any]


class Server:
    """Captions images with their sizes and the prompt. `trouble` is told of each request and may answer instead.

    `most` is how many requests were answered at once.
    """

    def __init__(self) -> None:
        self.trouble: Callable[[str], Reply | None] = lambda size: None
        self.models = ["served"]
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any], headers: Any) -> Reply:
        image, text = body["messages"][0]["content"]
        head, _, data = image["image_url"]["url"].partition(";base64,")
        with Image.open(BytesIO(base64.b64decode(data))) as picture:
            assert head == f"data:image/{(picture.format or '').lower()}"
            size = f"{picture.width} by {picture.height}"
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if (reply := self.trouble(size)) is not None:
                return reply
            choice = {"message": {"role": "assistant", "content": f"{text['text']} {size}"}, "finish_reason": "stop"}
            return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.reply(200, {}, {"data": [{"id": name} for name in state.models]})

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = state.answer(body, self.headers)
            if status:
                self.reply(status, headers, answer)
            else:
                self.close_connection = True  # a lost network

        def reply(self, status: int, headers: dict[str, str], answer: Any) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}"  # type: ignore[attr-defined]
        yield state
        http.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "_FIRST_WAIT", 0.01)


def run(server: Any, archive: Path, out: Path, **options: Any) -> Any:
    serving = {name: options.pop(name) for name in ("model", "key", "patience") if name in options}
    with Served(server.url, **serving) as served:
        return caption_images(served, [archive], out, **{"batch_size": 4, "prompt": "What?"} | options)


def assert_rows(archive: Path, out: Path) -> None:
    rows = read(out)
    assert len({row["image"] for row in rows}) == len(rows) == 13
    for row in rows:
        if row["image"].endswith("broken.jpg"):
            assert "broken.jpg" in row["error"]
        else:
            with Image.open(row["image"]) as image:
                assert row["caption"] == "What? {} by {}".format(*image.size)
                assert (row["width"], row["height"]) == image.size
            assert (row["prompt_tokens"], row["completion_tokens"], row["finish_reason"]) == (9, 4, "stop")
            assert (row["model"], row["tiles"], row["image_tokens"]) == ("served", None, None)


def test_rows(server: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(server, archive, out, key="secret", max_new_tokens=7, seed=3, stop="x").images == 13
    assert_rows(archive, out)
    assert len(server.requests) == 12, "the broken image is found here"
    sent = {name: value for name, value in server.requests[0].items() if name != "messages"}
    assert sent == {"model": "served", "max_tokens": 7, "temperature": 0.0, "seed": 3, "stop": ["x"]}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    assert run(server, archive, out, max_new_tokens=7, seed=3, stop="x").skipped == 13
    with pytest.raises(JobError, match=r"max_tokens 7, not 8.*--overwrite"):
        run(server, archive, out, max_new_tokens=8, seed=3, stop="x")


@pytest.mark.parametrize(
    "option", [{"top_p": 0.5}, {"seed": 1}, {"stop": "."}, {"min_p": 0.1}, {"logit_bias": {3: 1.0}}]
)
def test_an_option_that_is_no_longer_given_is_another_setting(
    server: Any, archive: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    (name,), out, few = option, tmp_path / "out.jsonl", archive / "shelf0"
    run(server, few, out, **option)
    assert run(server, few, out, **option).skipped == 4
    with pytest.raises(JobError, match=f"made with {name} .*--mix"):
        run(server, few, out)
    run(server, few, out, overwrite=True)
    with pytest.raises(JobError, match=f"made with {name} .*--mix"):
        run(server, few, out, **option)


def test_rows_of_earlier_versions_have_what_was_not_the_default(server: Any, archive: Path, tmp_path: Path) -> None:
    out, few = tmp_path / "out.jsonl", archive / "shelf0"
    run(server, few, out, max_new_tokens=7)
    before = [row | {"settings": {"max_tokens": 7, "temperature": 0.0}} for row in read(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in before))
    assert run(server, few, out, max_new_tokens=7).skipped == 4


def test_a_server_and_a_model_here_are_not_mixed(server: Any, archive: Path, tmp_path: Path) -> None:
    """Though both have the name: of the server's weights nothing is known."""
    few, here = archive / "shelf0", FakeModel()
    here.name = "served"
    for out in (tmp_path / "a.jsonl", tmp_path / "b.parquet"):
        run(server, few, out)
        with pytest.raises(JobError, match=r"engine 'a server', not 'a model'.*--mix"):
            caption_images(here, [few], out, prompt="What?")  # type: ignore[arg-type]
        assert caption_images(here, [few], out, prompt="What?", mix=True).skipped == 4  # type: ignore[arg-type]
        caption_images(here, [few], out, prompt="What?", overwrite=True)  # type: ignore[arg-type]
        with pytest.raises(JobError, match=r"engine 'a model', not 'a server'.*--mix"):
            run(server, few, out)


def test_as_many_requests_at_once_as_are_asked_for(
    server: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = threading.Event()

    def trouble(size: str) -> None:
        """The first wait for each other."""
        if server.now == 4:
            four.set()
        four.wait(60)

    server.trouble = trouble
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)
    run(server, archive, tmp_path / "out.jsonl")
    assert server.most == 4


def test_several_prompts(server: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(server, archive, out, prompt={"a": "A", "b": "B"})
    rows = [row for row in read(out) if "error" not in row]
    assert all(row["a"][2:] == row["b"][2:] and row["prompt_tokens"] == 18 for row in rows)


@pytest.mark.parametrize(
    "reply",
    [
        (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}),
        (503, {}, b"busy"),
        (0, {}, b""),
        (500, {}, b""),
    ],
)
def test_what_passes_is_tried_again(server: Any, archive: Path, tmp_path: Path, reply: Reply) -> None:
    tries: dict[str, int] = {}

    def trouble(size: str) -> Reply | None:
        with server.lock:
            tries[size] = tries.get(size, 0) + 1
        return reply if tries[size] < 3 else None

    server.trouble = trouble
    run(server, archive, tmp_path / "out.jsonl")
    assert_rows(archive, tmp_path / "out.jsonl")
    assert set(tries.values()) == {3}


def test_the_server_says_how_long_to_wait(server: Any, archive: Path, tmp_path: Path) -> None:
    told, waited = dict[str, float](), list[float]()

    def trouble(size: str) -> Reply | None:
        if size not in told:
            told[size] = time.monotonic()
            return 429, {"Retry-After": "1"}, {}
        waited.append(time.monotonic() - told[size])
        return None

    server.trouble = trouble
    run(server, archive, tmp_path / "out.jsonl", batch_size=16)
    assert len(waited) == 12
    assert min(waited) >= 0.95
    assert_rows(archive, tmp_path / "out.jsonl")


def test_what_is_wrong_with_one_image_is_its_row(server: Any, archive: Path, tmp_path: Path) -> None:
    answers: dict[str, Reply] = {
        "3 by 5": (400, {}, {"error": {"message": "too small"}}),
        "4 by 5": (500, {}, b"crash"),
        "5 by 5": (200, {}, {"choices": []}),
    }
    server.trouble = answers.get
    run(server, archive, tmp_path / "out.jsonl")
    errors = {Path(row["image"]).stem: row["error"] for row in read(tmp_path / "out.jsonl") if "error" in row}
    assert errors.pop("broken")
    assert sorted(errors) == ["03", "04", "05"]
    assert "400: too small" in errors["03"]
    assert "500: crash" in errors["04"]
    assert "no chat completion" in errors["05"]


def test_odd_answers_are_taken_for_what_they_are_or_end_it(server: Any, archive: Path, tmp_path: Path) -> None:
    """Counts that are none, half a character; and what no parser can read ends the job with a reason."""
    choice = {"message": {"content": "a\ud800b"}, "finish_reason": None}
    server.trouble = lambda size: (200, {}, {"choices": [choice], "usage": {"prompt_tokens": "x"}})
    run(server, archive, tmp_path / "out.jsonl")
    good = [row for row in read(tmp_path / "out.jsonl") if "error" not in row]
    assert {(row["caption"], row["prompt_tokens"], row["finish_reason"]) for row in good} == {("a\ufffdb", 0, "stop")}
    assert len(good) == 12
    server.trouble = lambda size: (200, {}, b"[" * 100_000)
    with pytest.raises(JobError, match=r"not JSON but '\[\["):
        run(server, archive, tmp_path / "deep.jsonl")
    server.trouble = lambda size: (200, {"Content-Encoding": "gzip"}, b"no gzip")
    with pytest.raises(JobError, match="at last: DecodingError"):
        run(server, archive, tmp_path / "gzip.jsonl", patience=0.1)
    server.trouble = lambda size: (429, {"Retry-After": "nan"}, b"busy")
    with pytest.raises(JobError, match="at last: 429: busy"):
        run(server, archive, tmp_path / "nan.jsonl", patience=0.1)


def test_a_server_that_stays_away_ends_the_job_and_the_next_run_does_the_rest(
    server: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    server.trouble = lambda size: (503, {}, b"starting") if size == "12 by 5" else None
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", AtOnce)  # or images before it could be late
    with pytest.raises(JobError, match=r"could not be used for 0 s, at last: 503: starting.*same command again"):
        run(server, archive, out, batch_size=1, patience=0.2)
    assert 0 < len(read(out)) < 13
    server.trouble = lambda size: None
    run(server, archive, out)
    assert_rows(archive, out)


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_address_ends_it_at_once(server: Any, archive: Path, tmp_path: Path, status: int) -> None:
    server.trouble = lambda size: (status, {}, {"error": {"message": "no"}})
    with pytest.raises(JobError, match=f"{status}: no: check the address, the key and the model"):
        run(server, archive, tmp_path / "out.jsonl")


def test_which_model(server: Any, archive: Path, tmp_path: Path) -> None:
    server.models = ["a", "b"]
    with pytest.raises(ConfigError, match=r"has a, b: say which with --model"):
        run(server, archive, tmp_path / "out.jsonl")
    run(server, archive, tmp_path / "out.jsonl", model="b")
    assert {request["model"] for request in server.requests} == {"b"}
    with pytest.raises(ConfigError, match="no address of a server"):
        Served("localhost:8000")


def test_formats_that_servers_may_not_know_go_as_png(server: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for kind in ("tiff", "bmp", "gif", "webp", "jpeg"):
        Image.new("RGB", (6, 5), "red").save(folder / f"a.{kind}")
    run(server, folder, tmp_path / "out.jsonl")
    assert all(row["caption"] == "What? 6 by 5" for row in read(tmp_path / "out.jsonl"))
    kinds = [
        request["messages"][0]["content"][0]["image_url"]["url"][11:].partition(";")[0] for request in server.requests
    ]
    assert sorted(kinds) == ["jpeg", "png", "png", "png", "webp"]


def test_a_schema_that_the_server_cannot_do_ends_the_job(server: Server, archive: Path, tmp_path: Path) -> None:
    """It would be every row's error; and it is the server's to say, not this project's engine's."""
    server.trouble = lambda size: (400, {}, {"error": {"message": "no look-around", "param": "response_format"}})
    schema = {"properties": {"a": {"type": "string", "pattern": "(?=b)b"}}, "required": ["a"]}
    with pytest.raises(JobError, match=r"cannot hold answers to the schema.*no look-around"):
        run(server, archive, tmp_path / "out.jsonl", schema=schema)
    server.trouble = lambda size: (400, {}, {"error": {"message": "no picture", "param": "messages"}})
    assert run(server, archive, tmp_path / "out.jsonl", schema=schema).captions == 0


def test_a_schema_is_sent_and_answers_are_held_to_it(server: Server, archive: Path, tmp_path: Path) -> None:
    """Some servers pass over `response_format`: what is not of the schema is an error."""

    def say(size: str) -> Reply | None:
        text = json.dumps({"across": int(size.split()[0])}) if size < "3" else "It is wide."
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}

    server.trouble = say
    schema = {"type": "object", "properties": {"across": {"type": "integer"}}, "additionalProperties": False}
    run(server, archive, tmp_path / "out.jsonl", schema=schema)
    sent = server.requests[0]["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    rows = read(tmp_path / "out.jsonl")
    held = [row for row in rows if "error" not in row]
    assert {row["across"] for row in held} == {1, 2, 10, 11, 12}
    wrong = [row for row in rows if "caption" in row and "error" in row]
    assert {row["caption"] for row in wrong} == {"It is wide."}
    assert all("the answer is no JSON" in row["error"] for row in wrong)
    assert "max_tokens" in held[0]["settings"]
    assert held[0]["settings"]["schema"]
