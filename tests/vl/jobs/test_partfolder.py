"""Parquet part files: what other readers find in them, and that no kill, retry or full disk costs or doubles a row."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pytest
from PIL import Image

from vl.errors import InputError
from vl.jobs import JobError, Prompts, caption_images, expand_sources, open_rows, source_key
from vl.jobs.parquet import Parquet
from vl.jobs.partfolder import PartFolder
from vl.jobs.partsink import PartSink

from .fakes import FakeModel, run
from .test_kill import never_done, start_child


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts for thirteen images."""
    monkeypatch.setattr(PartSink, "part_rows", 5)


def parquet(out: Path) -> list[dict[str, Any]]:
    return duckdb.sql(f"SELECT * FROM '{out}/*.parquet'").df().to_dict("records")


def assert_whole(archive: Path, out: Path) -> None:
    """A row for each image, all in parts."""
    rows = parquet(out)
    assert sorted(row["image"] for row in rows) == sorted(map(source_key, expand_sources([archive])))
    for row in rows:
        if row["image"].endswith("broken.jpg"):
            assert pandas.isna(row["caption"])
            assert "broken.jpg" in row["error"]
        else:
            assert row["caption"] == "{} by {}".format(*Image.open(row["image"]).size)
            assert pandas.isna(row["error"])
    assert (out / "_journal.jsonl").read_bytes() == b""


def test_rows_as_others_read_them(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.parquet"
    run(archive, out)
    assert_whole(archive, out)
    assert len(list(out.glob("part-*.parquet"))) == 2, "after two batches of 4 each, and at the end"
    frame = pandas.read_parquet(out)  # by itself it passes over the journal and the manifest
    lines = tmp_path / "out.jsonl"
    run(archive, lines)
    expected = [json.loads(line) for line in lines.read_text().splitlines()]
    assert frame["id"].is_unique
    expected.sort(key=lambda row: row["image"])
    for found, row in zip(frame.sort_values("image").to_dict("records"), expected, strict=True):
        assert json.loads(found.pop("settings")) == row.pop("settings")
        del found["id"]
        resolution = found.pop("resolution")
        assert (None if resolution is None else list(resolution)) == row.pop("resolution")
        assert {name: None if pandas.isna(value) else value for name, value in found.items()} == {
            name: row.get(name) for name in found
        }


def test_a_second_run_reads_no_part(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(archive, out)
    for part in out.glob("part-*"):
        part.write_bytes(b"not looked at")
    model = FakeModel()
    tally = run(archive, out, model)
    assert (tally.images, tally.skipped, model.processor.prepared) == (0, 13, 0)


def test_another_prompt_is_refused_and_overwrite_starts_again(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(archive, out)
    for changed, message in (({"prompt": "Colours?"}, "prompt"), ({"top_k": 3}, "top_k 0, not 3")):
        with pytest.raises(JobError, match=f"{message}.*--overwrite"):
            run(archive, out, **changed)
    with pytest.raises(RuntimeError), open_rows(out, model="fake", prompt="Colours?", overwrite=True):
        raise RuntimeError("no row was made")
    assert_whole(archive, out)
    run(archive, out, prompt="Colours?", overwrite=True)
    assert_whole(archive, out)
    assert {row["prompt"] for row in parquet(out)} == {"Colours?"}


def test_a_folder_that_was_given_the_name_of_another_kind_is_refused(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "out.parquet")
    (tmp_path / "out.parquet").rename(tmp_path / "out.wds")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(
            JobError, match=r"parts of another kind, such as part-00000\.parquet: give it the name back"
        ):
            run(archive, tmp_path / "out.wds", **options)


def test_foreign_folders_and_other_runs_are_left_alone(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.mkdir()
    (out / "part-00000.parquet").write_bytes(b"somebody's")
    with pytest.raises(JobError, match="something else"):
        run(archive, out)
    assert os.listdir(out) == ["part-00000.parquet"]
    (tmp_path / "file.parquet").write_bytes(b"somebody's")
    with pytest.raises(JobError, match="cannot write"):
        run(archive, tmp_path / "file.parquet")
    mine = tmp_path / "mine.parquet"
    with open_rows(mine, model="fake", prompt="p"), pytest.raises(JobError, match="another run"):
        run(archive, mine)


def killed_before(action: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that is killed before its `action`-th change to a disk; whether it came to that."""

    def counted() -> None:
        left = action

        def guard(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        for name in ("write", "fsync", "replace", "unlink", "ftruncate"):
            setattr(os, name, guard(getattr(os, name)))
        Path.unlink = guard(Path.unlink)  # type: ignore[method-assign]
        work()

    return os.WIFSIGNALED(os.waitpid(start_child(counted), 0)[1])


@pytest.mark.parametrize("retry", [False, True])
def test_killed_before_every_change_of_the_disk(archive: Path, tmp_path: Path, retry: bool) -> None:
    """Whenever it ends, no reader finds a row twice, and the next run makes it whole."""

    def unlucky(size: str) -> None:
        if retry and int(size.split()[0]) % 3:
            raise InputError("no luck")

    for action in range(1000):
        out = tmp_path / str(action) / "out.parquet"
        if retry:
            run(archive, out, FakeModel(unlucky))
        killed = killed_before(action, lambda out=out: run(archive, out, retry_errors=retry))  # type: ignore[misc]
        if list(out.glob("*.parquet")):
            names = [row["image"] for row in parquet(out)]
            assert len(names) == len(set(names))
        run(archive, out, retry_errors=retry)
        assert_whole(archive, out)
        if not killed:
            break
    assert action > 15


def test_killed_at_random_moments(archive: Path, tmp_path: Path) -> None:
    out, kills = tmp_path / "out.parquet", 0
    moments = random.Random(1)
    for _ in range(8):
        child = start_child(lambda: run(archive, out, FakeModel(never_done), batch_size=2))
        time.sleep(moments.uniform(0.001, 0.1))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills == 8
    run(archive, out)
    assert_whole(archive, out)


def test_a_full_disk_loses_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.parquet"

    def full(self: Any, path: Path, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vl.jobs.parquet.Parquet.write", full)
        with pytest.raises(JobError, match=r"No space left.*run the same command again"):
            run(archive, out)
    model = FakeModel()
    run(archive, out, model)
    assert model.processor.prepared == 5, "the 8 in the journal are not captioned again"
    assert_whole(archive, out)


def test_an_error_that_stays_is_retried_once_a_run(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(archive, out)
    broken = next(archive.glob("**/broken.jpg"))
    for _ in range(2):
        tally = caption_images(FakeModel(), [broken, broken], out, retry_errors=True, batch_size=1)
        assert (tally.errors, tally.skipped) == (1, 1)
        assert_whole(archive, out)
    assert len(list(out.glob("part-*"))) > 2


def test_counts_before_a_retried_row_is_in_a_part(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(archive, out)
    bad = next(row for row in parquet(out) if row["image"].endswith("broken.jpg"))
    made = {name: bad[name] for name in ("model", "prompt")}
    with open_rows(out, **made, retry_errors=True) as rows:
        assert (rows.rows, rows.failures) == (13, 1)
        for ending, failures in (({"error": "still"}, 1), ({"caption": "at last"}, 0)):
            rows.append([{"image": bad["image"], "settings": {}} | made | ending])
            assert (rows.rows, rows.failures) == (13, failures)


def test_memory_is_flat_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartSink, "part_rows", 500)

    def rows(start: int, count: int) -> Iterator[dict[str, Any]]:
        for n in range(start, start + count):
            yield {"image": f"{n}.png", "caption": "x", "model": "m", "prompt": "p", "settings": {}}

    with PartFolder(tmp_path / "out.parquet", Parquet(Prompts.of("p")), model="m", prompt="p") as folder:
        tracemalloc.start()
        held = []
        for part in range(8):
            names = [row["image"] for row in rows(part * 500, 500)]
            assert list(folder.pending(names)) == names
            folder.append(rows(part * 500, 500))
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert held[-1] - held[1] < 50_000, "3,000 names alone would be 180 kB"
        assert list(folder.pending(["7.png", "3999.png", "4000.png"])) == ["4000.png"]
        assert folder.rows == 4000
    with contextlib.closing(sqlite3.connect(tmp_path / "out.parquet" / "_manifest.sqlite")) as manifest:
        assert manifest.execute("SELECT SUM(rows) FROM parts").fetchone() == (4000,)
