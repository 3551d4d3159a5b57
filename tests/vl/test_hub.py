"""What the user names, to a folder: the embedded model, a folder, a hub id, or a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vl.hub
from vl.errors import CheckpointError
from vl.hub import resolve_source


def test_resolve_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl.hub, "NANO", tmp_path)
    with pytest.raises(CheckpointError, match="vl train"):
        resolve_source("nano")
    (tmp_path / "model.safetensors").touch()
    assert resolve_source("nano") == tmp_path


def test_resolve_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder wins over a hub id of the same spelling."""
    (tmp_path / "config.json").touch()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source(tmp_path) == tmp_path
    assert resolve_source("owner/name") == Path("owner/name")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_source(tmp_path / "config.json")


@pytest.mark.parametrize("source", ["nanoo", "./models/x", "/no/such/folder", "a/b/c", "../x", "owner/", "C:\\x"])
def test_resolve_mistyped_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        resolve_source(source)
    assert "downloaded" not in str(caught.value)


def test_resolve_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only configuration, tokenizer, template and safetensors are asked for; a failure names cause and fix."""
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_source("MiniMaxAI/MiniMax-VL-01") == tmp_path
    assert asked["repository"] == "MiniMaxAI/MiniMax-VL-01"
    assert set(asked["allow_patterns"]) == {"*.json", "merges.txt", "*.jinja", "*.safetensors"}

    def refuse(repository: str, **options: Any) -> str:
        raise RuntimeError("401 Client Error\nmany more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"no folder 'owner/name' here.*401 Client Error.*network") as caught:
        resolve_source("owner/name")
    assert "many more" not in str(caught.value)
