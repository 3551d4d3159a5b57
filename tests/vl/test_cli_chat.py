"""`vl chat`: one question, or a conversation by pipe and by terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import sys
from pathlib import Path

import pytest
from forkserver import Popen
from PIL import Image

import vl
import vl.cli.app as vl_app
from vl.cli.chat import split_arguments

ROOT = Path(vl.__file__).parents[1]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "red.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return path


def turn(role: str, text: str, *images: Path) -> dict[str, object]:
    return {"role": role, "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}]}


def converse(
    lines: str, args: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code = vl_app.run(["chat", *map(str, args), "--max-new-tokens", "5"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "images", "question"),
    [
        (["{image}", "What is this"], ["{image}"], "What is this"),
        (["{image}", "describe"], ["{image}"], "describe"),
        (["{image}", "{image}"], ["{image}", "{image}"], None),
        (["{image}"], ["{image}"], None),
        (["{image}", "typo.jpg"], ["{image}", "typo.jpg"], None),
        (["{image}", "what is in photo.jpg"], ["{image}"], "what is in photo.jpg"),
        (["https://x.org/a", "Why?"], ["https://x.org/a"], "Why?"),
        (["{image}", "data:image/png;base64,AAAA"], ["{image}", "data:image/png;base64,AAAA"], None),
        (["photo"], ["photo"], None),
        (["Why?"], [], "Why?"),
        (["Tell me a story"], [], "Tell me a story"),
        ([], [], None),
    ],
)
def test_what_is_the_question(image: Path, arguments: list[str], images: list[str], question: str | None) -> None:
    def named(texts: list[str]) -> list[str]:
        return [text.format(image=image) for text in texts]

    assert split_arguments(named(arguments), None) == (named(images), question)
    assert split_arguments(named(arguments), "Q") == (named(arguments), "Q")


@pytest.mark.parametrize("line", [["chat", "-q", ""], ["ask", "nowhere", " "]])
def test_an_empty_question_is_none(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(line) == 2
    assert "the question is empty" in " ".join(capsys.readouterr().err.split())


def test_one_question(
    image: Path, tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(tiny_checkpoint), "--max-new-tokens", "5", "--system", "Be brief."]
    messages = [turn("system", "Be brief."), turn("user", "Which colour?", image)]
    expected = tiny_model.generate([messages], max_new_tokens=5)[0]
    assert vl_app.run(["chat", str(image), "Which colour?", *common]) == 0
    assert capsys.readouterr().out == expected.text + "\n"
    assert vl_app.run(["chat", str(image), "-q", "Which colour?", "--json", *common]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == expected.text
    assert told["usage"] == {
        "prompt_tokens": expected.usage.prompt_tokens,
        "image_tokens": expected.usage.image_tokens,
        "completion_tokens": 5,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert set(told["timings"]) == {"preprocess", "vision", "prefill", "decode"}


def test_a_missing_image(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["chat", "nowhere.png", "Why?", "--model", str(tiny_checkpoint)]) == 3
    captured = capsys.readouterr()
    assert "nowhere.png" in captured.err
    assert captured.err.count("\n") == 1


def test_conversation_by_pipe(
    image: Path,
    tiny_checkpoint: Path,
    tiny_model: vl.MiniMaxVL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = f"One?\n\nTwo?\n/image {image}\nThree?\n/reset\nOne?\n/quit\nnever\n"
    args = [image, "--model", tiny_checkpoint]
    code, out, err = converse(lines, args, monkeypatch, capsys)
    assert code == 0
    history: list[dict[str, object]] = []
    expected = []
    for question, shown in (("One?", [image]), ("Two?", []), ("Three?", [image])):
        history.append(turn("user", question, *shown))
        expected.append(tiny_model.chat(history, max_new_tokens=5))
        history.append(turn("assistant", expected[-1]))
    assert out == "".join(answer + "\n" for answer in [*expected, expected[0]])
    assert "64 x 48" in err


def test_a_failed_turn_does_not_end_the_conversation(
    image: Path,
    tiny_checkpoint: Path,
    tiny_model: vl.MiniMaxVL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = "/image nowhere.png\n/dance\nOne?\n"
    code, out, err = converse(lines, [image, "--model", tiny_checkpoint], monkeypatch, capsys)
    assert code == 1
    assert "nowhere.png" in err
    assert "/quit" in err
    assert out == tiny_model.chat([turn("user", "One?", image)], max_new_tokens=5) + "\n"


def test_conversation_in_a_terminal(image: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vl.cli", "chat", str(image), "--model", str(tiny_checkpoint)]
    child = Popen(
        [*command, "--max-new-tokens", "5"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], 100)[0], f"no {text!r} after {seen!r}"
            seen += os.read(ours, 4096)
        seen = seen.partition(text)[2]

    wait_for(b"64 x 48")
    wait_for(b"/quit")
    wait_for(b"> ")
    os.write(ours, b"One?\n")
    wait_for(b"One?\r\n")
    wait_for(b"> ")
    os.write(ours, b"\x04")
    assert child.wait(120) == 0
    os.close(ours)
