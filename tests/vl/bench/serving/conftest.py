"""A real server of a tiny model, in a process of its own; and one that says whatever a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vl.bench.serving.malformed import LIMITS
from vl.bench.serving.process import started

CACHE = ("--batch-size", "4", "--cache-tokens", "8192", "--prefix-memory", "16", "--max-waiting", "30")


@pytest.fixture(scope="package")
def url(tiny_checkpoint: Path) -> Iterator[str]:
    with started(str(tiny_checkpoint), (*LIMITS, *CACHE)) as url:
        yield url


class Scripted:
    """A server of the model `scripted`. Each request is answered by `status` and `said`, of which a number is a pause.

    What is said is sent as events; a dictionary, in one piece.
    """

    def __init__(self) -> None:
        self.status = 200
        self.said: list[Any] | dict[str, Any] = []
        self.models: Any = {"data": [{"id": "scripted"}]}
        self.models_status = 200
        self.url = ""


def piece(text: str = "", reason: str | None = None) -> dict[str, Any]:
    """A chunk of a stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    """The last chunk of a stream."""
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer(script.models_status, script.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not body.get("stream"):  # by which the words of a token are counted
                count = len(body["messages"][0]["content"].split())
                self.answer(200, {"choices": [], "usage": usage(count, 1)["usage"]})
            elif isinstance(script.said, dict):
                self.answer(script.status, script.said)
            else:
                self.stream(script.said)

        def answer(self, status: int, content: Any) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def stream(self, said: list[Any]) -> None:
            self.send_response(200)
            self.end_headers()
            for each in said:
                if isinstance(each, float):
                    time.sleep(each)
                else:
                    text = each if isinstance(each, str) else json.dumps(each)
                    self.wfile.write(f"data: {text}\n\n".encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()
