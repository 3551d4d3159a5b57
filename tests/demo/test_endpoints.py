"""The page's server as programs see it, through gradio_client and plain HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import vl
from demo.app import build
from demo.limits import MOST_CHARACTERS
from demo.serving import launch

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def client(model: vl.MiniMaxVL) -> Iterator[Client]:
    page = build(model)
    client = Client(launch(page)[0], verbose=False)
    yield client
    client.close()
    page.close()


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (640, 480), "teal").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_one_call_gives_the_answer(client: Client, model: vl.MiniMaxVL, photo: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    answer = client.predict(handle_file(photo), QUESTION, **settings, api_name="/ask")
    assert answer == model.caption(photo, QUESTION, **settings)


def test_settings_have_defaults(client: Client, model: vl.MiniMaxVL, photo: str) -> None:
    assert client.predict(image=handle_file(photo), api_name="/ask") == model.caption(photo)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"image": None}, "image must be an uploaded file"),
        ({"image": "photo.png"}, "image must be an uploaded file"),
        ({"question": None}, "question must be text"),
        ({"question": "x" * (MOST_CHARACTERS + 1)}, "please shorten it"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1"),
        ({"max_new_tokens": 5000}, "max_new_tokens must be at most 1,024"),
        ({"temperature": None}, "temperature is empty"),
        ({"top_p": 0}, "top_p must be a number, above 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
    ],
)
def test_errors_are_sentences(client: Client, photo: str, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(AppError, match=reason):
        client.predict(**{"image": handle_file(photo)} | wrong, api_name="/ask")


def test_a_file_that_is_no_image_is_named_without_a_path(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(AppError, match=r"^notes\.txt: not an image"):
        client.predict(handle_file(str(tmp_path / "notes.txt")), api_name="/ask")


def test_files_of_the_server_are_not_read(client: Client, photo: str) -> None:
    """Past gradio_client, which would upload the file."""
    number = next(i for i, event in enumerate(client.config["dependencies"]) if event["api_name"] == "ask")
    forged = {"path": photo, "meta": {"_type": "gradio.FileData"}}
    message = run_event(client, number, [forged, QUESTION, 8, 0, 1, None], uuid.uuid4().hex)
    assert not message["success"]
    assert "teal" not in json.dumps(message)


def test_every_event_has_a_name_and_only_ask_is_offered(client: Client) -> None:
    events = client.config["dependencies"]
    names = [event["api_name"] for event in events]
    assert len(set(names)) == len(names)
    assert [name for name in names if not name.startswith("page_")] == ["ask"]
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/ask"]


@pytest.mark.parametrize(
    "settings", [(0, 0, 1, None), (8, 9.5e6, 1, None), (8, 0, 0, None), (8, 0, 1, -1), (None, 0, 1, None)]
)
def test_a_setting_out_of_range_leaves_the_page_usable(client: Client, photo: str, settings: tuple[Any, ...]) -> None:
    """As the page does it: Gradio's own checks of its components come before a handler is asked."""
    numbers = {event["api_name"]: i for i, event in enumerate(client.config["dependencies"])}
    session, headers = uuid.uuid4().hex, client.headers
    with open(photo, "rb") as file:
        [path] = httpx.post(f"{client.src}gradio_api/upload", files={"files": file}, headers=headers).json()
    uploaded = {"path": path, "meta": {"_type": "gradio.FileData"}}
    run_event(client, numbers["page_upload"], [uploaded, None], session)
    for tried, wanted in ((settings, 'role=\\"alert\\"'), ((8, 0, 1, None), "8 tokens in")):
        run_event(client, numbers["page_ask"], [QUESTION, None], session)
        message = run_event(client, numbers["page_answer"], [None, *tried], session)
        assert message["success"], message
        assert wanted in json.dumps(message, ensure_ascii=False)


def run_event(client: Client, number: int, data: list[Any], session: str) -> dict[str, Any]:
    """What the event's last message says."""
    body = {"data": data, "fn_index": number, "session_hash": session, "event_data": None}
    address = f"{client.src}gradio_api/queue/"
    httpx.post(f"{address}join", json=body, headers=client.headers).raise_for_status()
    last = {}
    with httpx.stream("GET", f"{address}data", params={"session_hash": session}, timeout=200) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_generating":
                last = message["output"]
            if message.get("msg") == "process_completed":
                return message | {"last": last}
    raise AssertionError("the stream ended without an answer")
