"""What a server keeps does not grow with its visitors."""

from __future__ import annotations

from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image

import vl
from demo.app import build
from demo.serving import launch


def test_sessions_of_visitors_who_left_are_dropped(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.serving.MOST_SESSIONS", 2)
    page = build(vl.load(tiny_checkpoint, device="cpu"))
    address = launch(page)[0]
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "photo.png")
    for _ in range(4):
        client = Client(address, verbose=False)
        client.predict(handle_file(str(tmp_path / "photo.png")), max_new_tokens=1, api_name="/ask")
        client.close()
    assert 1 <= len(page.state_holder.session_data) <= 2
    page.close()
