"""Rows are written by a thread of their own, while the engine goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from vl.jobs import JobError, Prompts, RowFile
from vl.jobs.committing import UNDER_WAY, Committer
from vl.jobs.made import made_with

from .fakes import FakeModel, FakeRequest, assert_complete, read, read_so_far, run

PATIENCE = 60.0  # seconds until what should come is given up


class Waiting(FakeModel):
    """Knows how many images it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)

    def submit(self, inputs: Any, params: Any) -> FakeRequest:
        self.asked.release()
        return super().submit(inputs, params)


def test_the_engine_does_not_wait_for_the_disk(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is on its way to the disk until the engine has been asked about the next ones."""
    model, real, batches, told = Waiting(), RowFile.append, list[int](), list[str]()

    def append(self: RowFile, rows: Any) -> Any:
        if not batches:  # the broken image is the ninth, and the engine is not asked about it
            assert all(model.asked.acquire(timeout=PATIENCE) for _ in range(2 * (1 + UNDER_WAY) - 1))
        batches.append(len(rows))
        return real(self, rows)

    def on_row(row: dict[str, Any], tally: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert row in read_so_far(tmp_path / "out.jsonl")
        told.append(row["image"])

    monkeypatch.setattr(RowFile, "append", append)
    run(archive, tmp_path / "out.jsonl", model, batch_size=2, on_row=on_row)
    assert_complete(archive, tmp_path / "out.jsonl")
    assert batches == [2] * 6 + [1]
    assert told == [row["image"] for row in read(tmp_path / "out.jsonl")]


def test_after_a_failure_nothing_is_written(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = RowFile.append, list[int]()

    def append(self: RowFile, rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise JobError("no room")
        return real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "append", append)
        with pytest.raises(JobError, match="no room"):
            run(archive, tmp_path / "out.jsonl", batch_size=1)
    assert len(calls) == 2
    assert len(read(tmp_path / "out.jsonl")) == 1
    run(archive, tmp_path / "out.jsonl")
    assert_complete(archive, tmp_path / "out.jsonl")


def test_what_was_taken_is_written_however_often_ctrl_c_is_pressed(tmp_path: Path) -> None:
    """Leaving waits for the thread: the file is closed next."""
    made = made_with("fake", Prompts.of("Look."), None)
    pressed, done = threading.Event(), list[str]()

    class Sink:
        def append(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            assert pressed.wait(PATIENCE)
            done.append(rows[0]["image"])
            return rows

        def find(self, key: bytes) -> None:
            return None

    committer = Committer(Sink())
    joined = committer._pool.shutdown

    def shutdown() -> None:
        if not pressed.is_set():
            pressed.set()
            raise KeyboardInterrupt
        joined()

    committer._pool.shutdown = shutdown  # type: ignore[method-assign, assignment]
    row = {"image": "a.png", "digest": "00" * 16, "caption": "A", "settings": {}} | made

    def work() -> None:
        with committer:
            committer.append([row])
            committer.append([row | {"image": "b.png"}])
            assert committer.find(bytes(16)) == row | {"image": "b.png"}, "also before it is written"

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["a.png", "b.png"]
    assert committer.find(bytes(16)) is None
