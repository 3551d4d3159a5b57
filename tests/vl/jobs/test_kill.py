"""Jobs that end in the middle: killed, interrupted or out of disk, whole rows stay and the next run adds the rest."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vl.errors import InputError
from vl.jobs import JobError

from .fakes import FakeModel, assert_complete, read, run


def start_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which is quick and can be killed at any instruction; returns its id."""
    while any(thread.name.startswith("vl-images") for thread in threading.enumerate()):
        time.sleep(0.001)  # a fork must not copy locks that threads of an earlier job hold
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def never_done(size: str) -> None:
    """What keeps a job on the archive busy for as long as it may live: the answer to its last image does not come."""
    time.sleep(300.0 if size == "11 by 5" else 0.005)


def killed_at_byte(archive: Path, out: Path, limit: int, **options: Any) -> int:
    """The job, killed with SIGKILL in the middle of a write: after `limit` more bytes."""

    def work() -> None:
        real, left = os.write, limit

        def write(fd: int, data: bytes) -> int:
            nonlocal left
            if len(data) > left:
                real(fd, bytes(data)[:left])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= len(data)
            return real(fd, data)

        os.write = write  # type: ignore[assignment]
        run(archive, out, **options)

    return os.waitpid(start_child(work), 0)[1]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(limits=st.lists(st.integers(0, 2500), min_size=1, max_size=4), batch_size=st.integers(1, 5))
def test_killed_in_the_middle_of_writes(archive: Path, tmp_path: Path, limits: list[int], batch_size: int) -> None:
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    for limit in limits:
        status = killed_at_byte(archive, out, limit, batch_size=batch_size)
        assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    run(archive, out, batch_size=batch_size)
    assert_complete(archive, out)


def test_killed_at_any_moment(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    kills = 0
    for delay in (0.001, 0.004, 0.007, 0.011, 0.015, 0.02, 0.03, 0.04):
        child = start_child(lambda: run(archive, out, FakeModel(never_done), batch_size=2))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills == 8
    run(archive, out)
    assert_complete(archive, out)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(limits=st.lists(st.integers(0, 6000), min_size=1, max_size=3))
def test_killed_while_errors_are_retried(archive: Path, tmp_path: Path, limits: list[int]) -> None:
    out = tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)

    def all_bad(size: str) -> None:
        raise InputError("no luck")

    run(archive, out, FakeModel(all_bad))
    assert all("error" in row for row in read(out))
    for limit in limits:
        killed_at_byte(archive, out, limit, retry_errors=True)
    run(archive, out, retry_errors=True)
    assert_complete(archive, out)


def test_ctrl_c_leaves_whole_rows(archive: Path, tmp_path: Path) -> None:
    answered: list[str] = []  # three, of those that were read first

    def trouble(size: str) -> None:
        if len(answered) == 3:
            raise KeyboardInterrupt
        answered.append(size)

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(archive, out, FakeModel(trouble), batch_size=1)
    in_order = takewhile(answered.__contains__, ["3 by 5", "6 by 5", "9 by 5"])
    assert [row["caption"] for row in read(out)] == list(in_order)
    run(archive, out)
    assert_complete(archive, out)


@pytest.mark.parametrize("written", [0, 1, 400, 10**6])
def test_ctrl_c_in_the_middle_of_a_write(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Rows that are whole on disk stay, even before their fsync; others vanish."""
    out = tmp_path / "out.jsonl"
    real = os.write

    def write(fd: int, data: bytes) -> int:
        real(fd, data[:written])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(archive, out, batch_size=2)
    assert len(read(out)) == (2 if written > 1000 else 0)
    run(archive, out)
    assert_complete(archive, out)


def test_a_full_disk_is_an_error_that_loses_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    real, room = os.write, 1500

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        written = real(fd, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(JobError, match=r"No space left on device.*run the same command again"):
            run(archive, out, batch_size=2)
    assert len(read(out)) > 0
    run(archive, out)
    assert_complete(archive, out)
