"""`vl demo` and its server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import typer

import vl
from demo import ports
from demo.app import build
from demo.command import register
from demo.gallery import examples
from demo.handlers import Handlers
from demo.serving import launch
from demo.talk import Session

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_named(taken: int) -> None:
    with pytest.raises(vl.Error, match=rf"port {taken} .* in use.*--port"):
        ports.free_port("127.0.0.1", taken)


def test_without_a_port_the_next_free_one_is_used(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "FIRST_PORT", taken)
    chosen = ports.free_port("127.0.0.1")
    assert taken < chosen < taken + ports.PORTS_TRIED


def test_a_port_that_another_takes_meanwhile_is_not_insisted_on(
    taken: int, tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter((taken, ports.free_port("127.0.0.1")))
    monkeypatch.setattr("demo.serving.free_port", lambda host, port: next(found))
    page = build(tiny_model)
    address = launch(page)[0]
    assert address != f"http://127.0.0.1:{taken}/"
    assert b"<gradio-app" in urlopen(address, timeout=120).read()
    page.close()


def test_options_of_gradio_go_before_the_pages_own() -> None:
    given: dict[str, Any] = {}
    page: Any = SimpleNamespace(
        queue=lambda **_: None, launch=lambda **options: given.update(options) or (None, "here", None)
    )
    assert launch(page, server_port=7999, quiet=False) == ("here",)
    assert (given["server_port"], given["quiet"], given["server_name"]) == (7999, False, "127.0.0.1")


def test_a_wrong_host_is_named() -> None:
    with pytest.raises(vl.Error, match=r"cannot listen on 203\.0\.113\.7:7860"):
        ports.free_port("203.0.113.7", 7860)


def test_entry_point_is_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["vl.commands"]["demo"].split(":")
    assert callable(getattr(import_module(module), name))


def test_analytics_are_off(tiny_model: vl.MiniMaxVL) -> None:
    assert build(tiny_model).analytics_enabled is False


def test_examples_come_in_the_order_of_their_records(tmp_path: Path) -> None:
    records = [{"image": "two-words-300px.png", "prompt": "Read."}, {"image": "photo.WEBP", "prompt": "What?"}]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [(e.label, e.path.name, e.question) for e in examples(tmp_path)] == [
        ("Two words, 300 px", "two-words-300px.png", "Read."),
        ("Photo", "photo.WEBP", "What?"),
    ]


def test_shipped_examples_are_there(tiny_model: vl.MiniMaxVL) -> None:
    shipped = examples()
    assert len(shipped) >= 6
    for example in shipped:
        assert "tokens" in Handlers(tiny_model).example(example, Session())[3]


def test_the_command_serves_the_page_and_calls_nobody(tiny_checkpoint: Path) -> None:
    program = (
        "from demo.command import register; from vl.cli.app import app, run; register(app);"
        f"raise SystemExit(run(['demo', '-m', {str(tiny_checkpoint)!r}, '--device', 'cpu', '--no-browser']))"
    )
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        network = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), address) | {"NO_PROXY": "127.0.0.1"}
        network |= {name.lower(): value for name, value in network.items()}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO", "HF_"))} | network
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                said = server.stdout.readline()
                found = re.search(r"http://127\.0\.0\.1:\d+", said)
                assert found, said
                assert b"<gradio-app" in urlopen(found[0], timeout=120).read()
                with pytest.raises(TimeoutError):
                    proxy.accept()
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=120) == 0
            finally:
                server.kill()


def test_a_taken_port_ends_the_command_before_the_model_is_loaded(taken: int) -> None:
    commands = typer.Typer()
    register(commands)
    with pytest.raises(vl.Error, match=str(taken)):
        typer.main.get_command(commands)(["-m", "no-such-model", "--port", str(taken)], standalone_mode=False)
