"""Captioning jobs: every source exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import Inputs, Patcher, load_image
from vl.engine import Generation, SamplingParams, Timings, Usage
from vl.errors import DeviceError, InputError
from vl.jobs import JobError, RowFile, Tally, caption_images, caption_rows, expand_sources


class FakeProcessor:
    background = None

    def __init__(self) -> None:
        self.prepared = 0
        self._lock = threading.Lock()

    def __call__(self, messages: Sequence[dict[str, Any]]) -> Inputs:
        with self._lock:
            self.prepared += 1
        image = load_image(messages[0]["content"][0]["image"])
        grid = Patcher().grid(image.width, image.height)
        return Inputs(torch.zeros(7, dtype=torch.int64), torch.zeros(0, 3, 1, 1, dtype=torch.uint8), [grid])


class FakeRequest:
    def __init__(self, inputs: Inputs) -> None:
        self.size = f"{inputs.grids[0].width} by {inputs.grids[0].height}"
        self.done = False
        self.error: Exception | None = None

    def result(self) -> Generation:
        if self.error is not None:
            raise self.error
        return Generation(f" {self.size}\n", [1], "stop", Usage(7, 3, 1), Timings())


class FakeModel:
    """Its own engine: captions an image with its size. `trouble` is called with that size and may raise."""

    name = "fake"
    config = SimpleNamespace(vision=object())

    def __init__(self, trouble: Callable[[str], None] = lambda size: None, check: Any = lambda params: None) -> None:
        self.trouble = trouble
        self.check = check
        self.processor = FakeProcessor()
        self.engine = self
        self.queue: list[FakeRequest] = []
        self.most = 0  # requests at once

    def submit(self, inputs: Inputs, params: SamplingParams) -> FakeRequest:
        self.queue.append(FakeRequest(inputs))
        self.most = max(self.most, len(self.queue))
        return self.queue[-1]

    def step(self) -> None:
        for request in self.queue:
            try:
                self.trouble(request.size)
            except Exception as error:
                request.error = error
            request.done = True
        self.queue.clear()

    def cancel(self, request: FakeRequest) -> None:
        if request in self.queue:
            self.queue.remove(request)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good images of widths 1 to 12 and a broken one, in nested folders."""
    folder = tmp_path_factory.mktemp("archive")
    for width in range(1, 13):
        path = folder / f"shelf{width % 3}" / f"{width:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (width, 5)).save(path)
    (folder / "shelf1" / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not an image")
    (folder / "shelf0" / "._01.png").write_bytes(b"a dot file")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def run(archive: Path, out: Path, model: Any = None, **options: Any) -> Tally:
    return caption_images(model or FakeModel(), [archive], out, **{"batch_size": 4} | options)


def assert_complete(archive: Path, out: Path) -> None:
    rows = read(out)
    assert sorted(row["image"] for row in rows) == sorted(expand_sources([archive]))
    for row in rows:
        if row["image"].endswith("broken.jpg"):
            assert "caption" not in row
            assert "broken.jpg" in row["error"]
        else:
            width, height = Image.open(row["image"]).size
            assert row["caption"] == f"{width} by {height}"
            assert "error" not in row


def test_rows(archive: Path, tmp_path: Path) -> None:
    seen = []
    tally = run(archive, tmp_path / "new" / "out.jsonl", on_row=lambda row, tally: seen.append(row))
    rows = read(tmp_path / "new" / "out.jsonl")
    assert seen == rows
    assert_complete(archive, tmp_path / "new" / "out.jsonl")
    assert (tally.captions, tally.errors, tally.skipped) == (12, 1, 0)
    good = rows[0]
    assert good == {
        "image": str(archive / "shelf0" / "03.png"),
        "caption": "3 by 5",
        "width": 3,
        "height": 5,
        "resolution": list(Patcher().resolution(3, 5)),
        "tiles": Patcher().grid(3, 5).tiles,
        "prompt_tokens": 7,
        "image_tokens": 3,
        "completion_tokens": 1,
        "finish_reason": "stop",
        "model": "fake",
        "prompt": "Describe this image.",
        "settings": {
            "max_new_tokens": 256,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "seed": None,
            "stop": [],
            "background": None,
        },
    }
    bad = next(row for row in rows if "error" in row)
    assert set(bad) == set(good) - {"caption"} | {"error"}
    assert bad["width"] is None


def test_a_second_run_does_nothing(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    model = FakeModel()
    tally = run(archive, out, model)
    assert (tally.images, tally.skipped, model.processor.prepared) == (0, 13, 0)
    assert out.read_bytes() == before


def test_duplicates_are_one_row(archive: Path, tmp_path: Path) -> None:
    path = archive / "shelf0" / "03.png"
    twice = [path, f"{archive}//shelf0/./03.png", archive / "shelf0"]
    tally = caption_images(FakeModel(), twice, tmp_path / "out.jsonl", batch_size=2)
    rows = read(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == [str(archive / "shelf0" / f"{n:02}.png") for n in (3, 6, 9, 12)]
    assert tally.skipped == 2


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        child = start_child(lambda: run(archive, out, FakeModel(lambda size: time.sleep(0.005)), batch_size=2))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills
    run(archive, out)
    assert_complete(archive, out)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_retry_keeps_rows_that_were_not_asked_for(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    missing = tmp_path / "later.png"
    caption_images(FakeModel(), [missing, archive / "shelf1"], out)
    Image.new("RGB", (30, 20)).save(missing)
    out.chmod(0o640)
    tally = caption_images(FakeModel(), [missing], out, retry_errors=True)
    assert (tally.captions, tally.errors) == (1, 0)
    rows = {row["image"]: row for row in read(out)}
    assert len(rows) == len(read(out)) == 6
    assert rows[str(missing)]["caption"] == "30 by 20"
    assert "error" in rows[str(archive / "shelf1" / "broken.jpg")]
    assert out.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path).count("out.jsonl.tmp") == 0


@pytest.mark.parametrize("end", [b'{"image": "a.png", "capt', b'{"im', b"\0" * 50, b'{"image": "a\n', b"{"])
def test_a_torn_end_is_dropped(archive: Path, tmp_path: Path, end: bytes) -> None:
    out = tmp_path / "out.jsonl"
    run(archive / "shelf0", out)
    out.write_bytes(out.read_bytes() + end)
    run(archive, out)
    assert_complete(archive, out)


def test_a_whole_row_without_its_newline_is_torn(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    out.write_bytes(out.read_bytes()[:-1])
    run(archive, out)
    assert_complete(archive, out)


def test_damage_inside_is_not_cut(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    lines = out.read_bytes().splitlines(keepends=True)
    content = lines[0] + b'{"image": "half\n' + lines[1]
    out.write_bytes(content)
    with pytest.raises(JobError, match=f"byte {len(lines[0])}"):
        run(archive, out)
    assert out.read_bytes() == content


def test_another_prompt_or_model_is_refused(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    with pytest.raises(JobError, match=r"prompt 'Describe this image\.', not 'Colours\?'.*--overwrite"):
        run(archive, out, prompt="Colours?")
    other = FakeModel()
    other.name = "other"
    with pytest.raises(JobError, match="model 'fake', not 'other'"):
        run(archive, out, other)
    assert out.read_bytes() == before
    run(archive, out, prompt="Colours?", overwrite=True)
    assert {row["prompt"] for row in read(out)} == {"Colours?"}
    assert_complete(archive, out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 16}, "max_new_tokens 256, not 16"),
        ({"temperature": 0.5}, r"temperature 0\.0, not 0\.5"),
        ({"top_p": 0.9}, r"top_p 1\.0, not 0\.9"),
        ({"top_k": 3}, "top_k 0, not 3"),
        ({"seed": 1}, "seed None, not 1"),
        ({"stop": "."}, r"stop \[\], not \['\.'\]"),
    ],
)
def test_other_sampling_is_another_run(archive: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()
    with pytest.raises(JobError, match=f"{message}.*--overwrite"):
        run(archive, out, **changed)
    assert out.read_bytes() == before
    run(archive, out, temperature=0, max_new_tokens=256)  # the same, spelled out
    assert out.read_bytes() == before
    run(archive, out, overwrite=True, **changed)
    run(archive, out, **changed)
    assert_complete(archive, out)


def test_another_background_is_another_run(archive: Path, tmp_path: Path) -> None:
    out, white = tmp_path / "out.jsonl", FakeModel()
    white.processor.background = (255, 255, 255)  # type: ignore[assignment]
    run(archive, out, white)
    assert {row["settings"]["background"] for row in read(out)} == {"#ffffff"}
    with pytest.raises(JobError, match="background '#ffffff', not None"):
        run(archive, out)
    white.processor.background = "white"  # type: ignore[assignment]
    assert run(archive, out, white).skipped == 13


def test_rows_of_earlier_versions_are_continued(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive / "shelf0", out)
    rows = [{key: value for key, value in row.items() if key != "settings"} for row in read(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(archive, out).skipped == len(rows)
    assert_complete(archive, out)


def test_overwrite_cuts_nothing_before_there_are_new_rows(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(archive, out)
    before = out.read_bytes()

    def refuse(params: SamplingParams) -> None:
        raise InputError("no room")

    def interrupt(size: str) -> None:
        raise KeyboardInterrupt

    for model, options in (
        (FakeModel(), {"top_p": 0}),
        (FakeModel(), {"batch_size": 0}),
        (FakeModel(check=refuse), {}),
        (FakeModel(interrupt), {}),
    ):
        with pytest.raises((InputError, KeyboardInterrupt)):
            run(archive, out, model, overwrite=True, **options)
        assert out.read_bytes() == before
    run(archive / "shelf0", out, overwrite=True)
    assert len(read(out)) == 4
    caption_images(FakeModel(), [], out, overwrite=True)  # type: ignore[arg-type]
    assert read(out) == []


def test_two_runs_do_not_share_a_file(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with RowFile(out, model="fake", prompt="Describe this image."), pytest.raises(JobError, match="another run"):
        run(archive, out)
    run(archive, out)
    assert_complete(archive, out)


def test_an_answer_that_fails_costs_its_row(archive: Path, tmp_path: Path) -> None:
    def trouble(size: str) -> None:
        if size == "6 by 5":
            raise DeviceError("too large")

    run(archive, tmp_path / "out.jsonl", FakeModel(trouble))
    rows = read(tmp_path / "out.jsonl")
    errors = {Path(row["image"]).name: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"06.png", "broken.jpg"}
    assert errors["06.png"] == "too large"
    assert len(rows) == 13


def test_a_bug_while_generating_stops_the_job_with_what_is_done(archive: Path, tmp_path: Path) -> None:
    def trouble(size: str) -> None:
        if size == "11 by 5":  # the last of 13: at most two others are answered with it
            raise AssertionError("a bug")

    out = tmp_path / "out.jsonl"
    with pytest.raises(AssertionError, match="a bug"):
        run(archive, out, FakeModel(trouble), batch_size=3)
    names = [row["image"] for row in read(out)]
    assert names == list(expand_sources([archive]))[: len(names)]
    assert len(names) >= 9
    run(archive, out)
    assert_complete(archive, out)


def test_ctrl_c_leaves_whole_rows(archive: Path, tmp_path: Path) -> None:
    def trouble(size: str) -> None:
        if size == "12 by 5":
            raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(archive, out, FakeModel(trouble), batch_size=1)
    assert len(read(out)) == 3
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


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (9, 4)).save(tmp_path / "ok.png")
    os.rename(tmp_path / "ok.png", tmp_path / name)
    out = tmp_path / "out.jsonl"
    assert caption_images(FakeModel(), [tmp_path], out).captions == 1
    assert caption_images(FakeModel(), [tmp_path], out).skipped == 1
    assert read(out)[0]["image"] == str(tmp_path / name)


def test_memory_is_bounded_by_the_batch(archive: Path) -> None:
    """A stream of sources is read no further ahead than two batches."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(archive / "shelf0" / "03.png")

    batches = caption_rows(FakeModel(), endless(), batch_size=3)  # type: ignore[arg-type]
    for done in range(1, 6):
        assert len(next(batches)) == 3
        assert taken <= 3 * done + 2 * 3 + 1


def test_unusable_models_and_options_are_errors_of_the_job(archive: Path, tmp_path: Path) -> None:
    text_only = FakeModel()
    text_only.config = SimpleNamespace(vision=None)
    with pytest.raises(InputError, match="text-only"):
        run(archive, tmp_path / "out.jsonl", text_only)
    with pytest.raises(InputError, match="temperature"):
        run(archive, tmp_path / "out.jsonl", temperature=-1.0)
    with pytest.raises(InputError, match="batch_size"):
        run(archive, tmp_path / "out.jsonl", batch_size=0)
