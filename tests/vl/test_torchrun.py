"""What several processes under torchrun say."""

from __future__ import annotations

import pytest
import typer
from torch.distributed import TCPStore

import vl
from vl.cli.torchrun import told_once


def test_an_error_of_all_processes_is_told_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(message: str) -> None:
        with told_once():
            raise vl.ConfigError(message)

    with pytest.raises(vl.ConfigError, match="alone"):
        end("alone")
    store = TCPStore("127.0.0.1", 0, is_master=True)  # as torchrun's agent has one
    for name, value in {"ADDR": "127.0.0.1", "PORT": str(store.port)}.items():
        monkeypatch.setenv(f"MASTER_{name}", value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for message in ("of all", "of one"):
        with pytest.raises(vl.ConfigError, match=message):
            end(message)
    for _ in range(2):
        with pytest.raises(typer.Exit) as ended:
            end("of all")
        assert ended.value.exit_code == 3
    monkeypatch.setenv("MASTER_PORT", "none")
    with pytest.raises(vl.ConfigError, match="of all"):
        end("of all")
