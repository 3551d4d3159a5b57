"""Saved sessions: opened they answer the same, whatever ended the saving, and other models refuse them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forkserver import Popen

import vl
from preprocessing import Conversation
from vl.engine import session_file
from vl.engine.session_file import MANIFEST

from .sessions import NEW, QUESTIONS, TEXT, answers, ask, document, load

ROOT = Path(vl.__file__).parents[1]


@pytest.fixture(scope="module")
def expected(tiny_text_checkpoint: Path) -> list[str]:
    return answers(load(tiny_text_checkpoint, prefix_memory=0), document())


@pytest.fixture
def model(tiny_text_checkpoint: Path) -> vl.MiniMaxVL:
    return load(tiny_text_checkpoint)


@pytest.mark.parametrize("options", [{}, {"page_size": 3}, {"page_size": 64, "cache_tokens": 8}], ids=str)
@pytest.mark.parametrize("shard", [1, 2**12, 2**29])
def test_another_process_would_answer_the_same(
    model: vl.MiniMaxVL,
    tiny_text_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: list[str],
    options: dict[str, int],
    shard: int,
) -> None:
    monkeypatch.setattr(session_file, "SHARD_BYTES", shard)
    monkeypatch.setattr("vl.engine.session.SHARD_BYTES", shard)
    session = model.read(document())
    assert session.save(tmp_path / "s") == tmp_path / "s"
    opened = load(tiny_text_checkpoint, **options).open(tmp_path / "s")
    assert (opened.tokens, opened.total) == (session.tokens, session.total)
    assert [opened.ask(question, **NEW) for question in QUESTIONS] == expected
    opened.add(document("More."))
    session.add(document("More."))
    assert opened.ask("Hello", **NEW) == session.ask("Hello", **NEW)
    before = {path.name for path in (tmp_path / "s").glob("kv-*")}
    opened.save(tmp_path / "s")
    kept = before & {path.name for path in (tmp_path / "s").glob("kv-*")}
    if shard == 2**12:  # smaller files are whole, and a larger one is the only one
        assert len(kept) == len(before) - 1  # all but the last, which has grown
    assert model.open(tmp_path / "s").ask("Hello", **NEW) == session.ask("Hello", **NEW)


def test_images_of_a_saved_session(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"cache_tokens": 12000, "prefill_tokens": 512, "page_size": 64}
    model = load(tiny_checkpoint, **options)
    session = model.read(document(images=2))
    session.save(tmp_path)
    opened = load(tiny_checkpoint, **options).open(tmp_path)
    assert opened.ask("What?", **NEW) == session.ask("What?", **NEW)


def test_opening_ends_no_other_requests(model: vl.MiniMaxVL, tmp_path: Path, expected: list[str]) -> None:
    model.read(document()).save(tmp_path)
    alone = model.chat(ask(TEXT[:50]), **NEW)
    others = [model.engine.submit(model.processor(ask(TEXT[:50])), vl.SamplingParams(**NEW)) for _ in range(5)]
    model.engine.step()
    session = model.open(tmp_path)
    assert session.ask(QUESTIONS[0], **NEW) == expected[0]
    while not all(other.done for other in others):
        model.engine.step()
    assert [other.result().text for other in others] == [alone] * 5


def test_another_model_is_refused_by_what_differs(
    model: vl.MiniMaxVL, tiny_text_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model.read(document()).save(tmp_path)
    other = load(tiny_text_checkpoint)
    with torch.no_grad():
        other.language_model.layers[3].block_sparse_moe.gate.weight.add_(0.01)  # type: ignore[union-attr, operator]
    with pytest.raises(vl.CheckpointError, match=r"another model .* differs in weights; load"):
        other.open(tmp_path)
    with pytest.raises(vl.CheckpointError, match=r"differs in dtype \(float32, now bfloat16\), weights"):
        vl.load(tiny_text_checkpoint, device="cpu", dtype="bfloat16").open(tmp_path)
    with pytest.raises(vl.CheckpointError, match=r"differs in config, quantization \(none, now int8\), weights"):
        vl.load(tiny_text_checkpoint, device="cpu", quantization="int8").open(tmp_path)
    with pytest.raises(vl.CheckpointError, match="differs in config, weights"):
        vl.load(tiny_checkpoint, device="cpu").open(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    session = model.read(document())
    with pytest.raises(vl.CheckpointError, match="no session can be saved in"):
        session.save(tmp_path / "file")
    asked: list[vl.Reading] = []
    with pytest.raises(vl.CheckpointError, match="no session can be saved in"):
        model.read(document(), folder=tmp_path / "file", progress=asked.append)
    assert not asked, "it is said before anything is read"
    for nothing in ("", 3, "a\0b", "~no-such-user-here/x"):
        with pytest.raises(vl.CheckpointError, match="a session is saved in a folder"):
            session.save(nothing)  # type: ignore[arg-type]


def test_a_disk_without_room_is_told_of_before_anything_is_read(
    model: vl.MiniMaxVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = model.config.text
    tokens = model.read(document(), folder=tmp_path / "done").tokens
    token = 2 * text.attn_type_list.count(1) * text.num_key_value_heads * text.head_dim * model.dtype.itemsize
    progress = list[vl.Reading]()
    for free in (tokens * token - 1, 0):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(total=10**9, free=free))
        with pytest.raises(vl.CheckpointError, match=r"no session can be saved in .* GB are free; make room, or"):
            model.read(document(), folder=tmp_path / "s", progress=progress.append)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(vl.CheckpointError, match=r"no session can be saved in .*done \(.*denied"):
        model.read(document("else"), folder=tmp_path / "done", overwrite=True, progress=progress.append)
    assert progress == []
    assert model.read(document(), folder=tmp_path / "done").tokens == tokens  # nothing is to be written


def test_a_read_goes_on_from_its_last_save(
    model: vl.MiniMaxVL, tiny_text_checkpoint: Path, tmp_path: Path, expected: list[str]
) -> None:
    def stop(reading: vl.Reading) -> None:
        if reading.tokens > 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.read(document(), folder=tmp_path, save_every=30, progress=stop)
    part = model.open(tmp_path)
    assert part.tokens == 60 < part.total
    with pytest.raises(vl.InputError, match=rf"has read 60 of {part.total} tokens"):
        part.ask("Hello")
    other = load(tiny_text_checkpoint)
    told: list[vl.Reading] = []
    session = other.read(document(), folder=tmp_path, save_every=30, progress=told.append)
    assert told[0].tokens > 60
    assert told[-1].tokens == told[-1].total == session.tokens == session.total
    assert [session.ask(question, **NEW) for question in QUESTIONS] == expected
    again: list[vl.Reading] = []
    assert other.read(document(), folder=tmp_path, progress=again.append).ask(QUESTIONS[0], **NEW) == expected[0]
    assert not again
    with pytest.raises(vl.CheckpointError, match="has read something else"):
        other.read(document("Else."), folder=tmp_path)
    other.read(document("Else."), folder=tmp_path, overwrite=True)
    assert model.open(tmp_path).tokens < session.tokens


class Killed(BaseException):
    """As a signal would, at any renaming, and for all after it."""


def test_killed_at_every_renaming_and_removal(
    model: vl.MiniMaxVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = model.read(document("Old.")), model.read(document())
    sizes = {old.tokens, new.tokens}
    old.save(tmp_path / "old")
    found = []
    for number in range(1, 100):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        calls = [0]

        def counted(call: Callable[..., Any], calls: list[int] = calls, number: int = number) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:
                calls[0] += 1
                if calls[0] >= number:
                    raise Killed
                return call(*args, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            with contextlib.suppress(Killed):
                new.save(folder)
        session = model.open(folder)
        assert session.tokens in sizes
        found.append(session.tokens)
        session.close()
        new.save(folder)  # what was left behind is in nobody's way
        assert len(list(folder.iterdir())) == 4
        if calls[0] < number:
            break
    assert found[0] == old.tokens
    assert found == sorted(found, key=lambda tokens: tokens == new.tokens)
    assert found[-1] == new.tokens
    assert len(found) > 6


def test_killed_at_any_time_while_it_reads(
    tiny_text_checkpoint: Path, model: vl.MiniMaxVL, tmp_path: Path, expected: list[str]
) -> None:
    """SIGKILL, soon after one of the saves that a read makes on its way."""
    code = (
        "import sys, vl\n"
        f"model = vl.load({str(tiny_text_checkpoint)!r}, device='cpu', prefill_tokens=16, page_size=8)\n"
        f"def told(reading): print(reading.tokens, flush=True)\n"
        f"read = [{{'role': 'user', 'content': {TEXT!r}}}]\n"
        f"model.read(read, folder={str(tmp_path)!r}, save_every=32, progress=told)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for lines in (4, 7):
        process = Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert model.open(tmp_path).tokens > 0
    session = model.read(document(), folder=tmp_path)
    assert [session.ask(question, **NEW) for question in QUESTIONS] == expected


def test_saves_at_once_leave_one_of_them_whole(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    """Whichever comes last; and whoever opens meanwhile finds a whole one, too."""
    sessions = {session.tokens: session for session in (model.read(document("Old.")), model.read(document()))}
    next(iter(sessions.values())).save(tmp_path)
    failed: list[Exception] = []

    def often(work: Callable[[], object]) -> None:
        try:
            for _ in range(6):
                work()
        except Exception as error:
            failed.append(error)

    def opens() -> None:
        with model.open(tmp_path) as opened:
            assert opened.tokens in sessions

    work = [opens, *(partial(session.save, tmp_path) for session in sessions.values())]
    threads = [threading.Thread(target=often, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not failed
    opened = model.open(tmp_path)
    assert opened.ask("Hello", **NEW) == sessions[opened.tokens].ask("Hello", **NEW)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_save_waits_for_that_of_another_process(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    session = model.read(document())
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        thread = threading.Thread(target=session.save, args=(tmp_path,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not list(tmp_path.iterdir())
        other.communicate(b"\n")
    thread.join(200)
    assert model.open(tmp_path).tokens == session.tokens


def test_functions_described_to_the_model_are_of_the_session(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
    other: dict[str, Any] = {"type": "function", "function": {"name": "get_date"}}
    read = Conversation.of(document(), [tool])
    model.read(read).save(tmp_path)
    opened = model.open(tmp_path)
    whole = [*document(), *ask("Hello")]
    first = model.chat(whole, tools=[tool], **NEW)
    assert opened.ask("Hello", remember=True, **NEW) == first != model.chat(whole, **NEW)
    whole += [{"role": "assistant", "content": first}, *ask("And now?")]
    assert opened.ask("And now?", **NEW) == model.chat(whole, tools=[tool], **NEW)
    opened.add(Conversation.of(ask("More."), [other]))
    whole = [*whole[:-1], *ask("More."), *ask("And now?")]
    assert opened.ask("And now?", **NEW) == model.chat(whole, tools=[tool, other], **NEW)
    with pytest.raises(vl.CheckpointError, match="has read something else"):
        model.read(Conversation.of(document(), [other]), folder=tmp_path)
    path = tmp_path / MANIFEST
    saved = json.loads(path.read_text())
    assert saved.pop("tools") == [tool]
    del saved["digest"]
    path.write_text(json.dumps(saved | {"format": 1}))  # as earlier versions wrote it, which knew no tools
    assert model.open(tmp_path).ask("Hello", **NEW) == model.chat([*document(), *ask("Hello")], **NEW)


# What is refused


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_read_replaces_no_session_that_came_meanwhile(model: vl.MiniMaxVL, tmp_path: Path, overwrite: bool) -> None:
    """Two reads that begin at once, each into a folder where it saw nothing of the other."""
    if overwrite:
        model.read(document("Older."), folder=tmp_path)
    other = model.read(document("Else."))
    with pytest.raises(vl.CheckpointError, match="holds another session now, which was saved there meanwhile"):
        model.read(document(), folder=tmp_path, overwrite=overwrite, progress=lambda _: other.save(tmp_path) and None)
    assert model.open(tmp_path).ask("Hello", **NEW) == other.ask("Hello", **NEW)
    other.save(tmp_path)  # who asks for it by name replaces what is there
    model.read(document(), folder=tmp_path, overwrite=True)


@pytest.mark.parametrize("when", ["states_of", "stretch_of"])
def test_a_save_has_what_the_session_had_read_when_it_began(
    model: vl.MiniMaxVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[str], when: str
) -> None:
    """Another thread has it read more meanwhile, and the cache is used by others."""
    session, plain = model.read(document()), getattr(model.engine, when)
    tokens = session.tokens

    def later(*args: Any) -> Any:
        session.add(document("More."))
        model.read(document("Else.")).close()
        model.chat(ask("Hello"), **NEW)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, when, later)
        session.save(tmp_path)
    opened = model.open(tmp_path)
    assert session.tokens > opened.tokens == opened.total == tokens
    assert [opened.ask(question, **NEW) for question in QUESTIONS] == expected


def test_a_save_opened_twice_keeps_apart_what_each_has_read_since(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    model.read(document(), folder=tmp_path)
    first, second = model.open(tmp_path), model.open(tmp_path)
    first.add(ask("aaaa"))
    second.add(ask("bbbb"))
    assert first.tokens == second.tokens
    first.save(tmp_path)
    second.save(tmp_path)
    read, opened = (
        model.engine.stretch_of(each._known.held, 0, each.tokens) for each in (second, model.open(tmp_path))
    )
    for name, stretch in read.items():
        assert torch.equal(stretch, opened[name])


def test_a_changed_model_does_not_pass_for_the_one_that_read(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    session = model.read(document())
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(2)
    with pytest.raises(vl.InputError, match="the model has changed"):
        session.save(tmp_path)


def test_a_forked_process_does_not_save(model: vl.MiniMaxVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, process = model.read(document()), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)  # its parent's lock might never be given back
    with pytest.raises(vl.DeviceError, match="forked"):
        session.save(tmp_path)
