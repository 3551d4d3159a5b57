"""The page's behaviour without a browser, on a real (small, random) model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

import vl
from demo.gallery import GalleryItem
from demo.handlers import Handlers
from demo.limits import MOST_CHARACTERS, MOST_CHARACTERS_OF_TALK
from demo.talk import Session, Talk
from demo.text import describe_answer, describe_grid, note
from preprocessing import Patcher
from vl.engine import Timings, Usage

TOKENS = 8
SETTINGS = (TOKENS, 0, 1, None)


@pytest.fixture
def handlers(tiny_model: vl.MiniMaxVL) -> Handlers:
    return Handlers(tiny_model)


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.new("RGB", (640, 480), "teal").save(path)
    return str(path)


def begin(handlers: Handlers, photo: str, question: str = "What?") -> Session:
    session = Session()
    handlers.show(photo, session)
    handlers.ask(question, session)
    return session


def is_error(html: Any) -> bool:
    return 'role="alert"' in html


def test_an_image_is_shown_with_its_tiles_and_tokens(handlers: Handlers, photo: str) -> None:
    session = Session()
    shown, overlay, layout, chat, status = handlers.upload({"path": photo}, session)
    assert shown == photo
    assert overlay["value"].size == (672, 672)
    assert "640 × 480 → 672 × 672, 4 tiles + thumbnail" in layout
    assert "640 × 480" in overlay["alt_text"]
    assert (chat, status) == ([], "")
    assert session.talk == Talk(photo)


def test_token_count_is_the_models(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    assert session.talk is not None
    inputs = handlers.model.processor(session.talk.prompt())
    assert f"{inputs.image_tokens:,} tokens" in handlers.show(photo, Session())[2]


def test_formats_that_browsers_do_not_show_are_shown_as_decoded(handlers: Handlers, tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    Image.new("L", (50, 40), 7).save(path)
    session = Session()
    shown, *_ = handlers.upload({"path": str(path)}, session)
    assert shown.size == (50, 40)
    assert session.talk == Talk(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.png", b"just some text"),
        ("empty.jpg", b""),
        ("cut.png", None),
        ("<b>bold</b>.png", b"text"),
    ],
)
def test_a_bad_file_is_a_message_and_the_page_goes_on(
    handlers: Handlers, photo: str, tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name.replace("/", "")
    path.write_bytes(Path(photo).read_bytes()[:200] if content is None else content)
    session = begin(handlers, photo)
    shown, overlay, layout, chat, status = handlers.upload({"path": str(path)}, session)
    assert (shown, overlay, chat, status, session.talk) == (None, None, [], "", None)
    assert is_error(layout)
    assert str(tmp_path) not in layout
    assert "<b>" not in layout
    assert "Traceback" not in layout
    assert session.talk is None
    assert "640 × 480" in handlers.upload({"path": photo}, session)[2]


def test_files_of_the_server_are_not_shown(
    handlers: Handlers, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uploads").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for path in (photo, str(tmp_path / "uploads" / ".." / "photo.png")):
        session = Session()
        shown, overlay, layout, *_ = handlers.upload({"path": path}, session)
        assert (shown, overlay, session.talk) == (None, None, None)
        assert is_error(layout)


@pytest.mark.parametrize(("background", "pixel"), [("white", (255, 255, 255)), (None, (0, 0, 0))])
def test_transparent_images_are_shown_on_the_models_background(
    tiny_model: vl.MiniMaxVL, tmp_path: Path, monkeypatch: Any, background: Any, pixel: tuple[int, ...]
) -> None:
    monkeypatch.setattr(tiny_model.processor, "background", background)
    Image.new("RGBA", (336, 336)).save(tmp_path / "clear.png")
    overlay = Handlers(tiny_model).show(str(tmp_path / "clear.png"), Session())[1]
    assert overlay["value"].getpixel((100, 100)) == pixel


def test_removing_the_image_ends_the_talk(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    assert handlers.upload(None, session) == (None, None, "", [], "")
    assert session.talk is None


def test_example_fills_question_and_image(handlers: Handlers, photo: str) -> None:
    session = Session()
    question, shown, overlay, *_ = handlers.example(GalleryItem(Path(photo), "Photo", "What is it?"), session)
    assert (question, shown) == ("What is it?", photo)
    assert overlay["value"].size == (672, 672)


def test_an_answer_streams_and_ends_with_its_figures(handlers: Handlers, photo: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("demo.handlers.SECONDS_BETWEEN_UPDATES", 0)
    session = begin(handlers, photo)
    results = list(handlers.answer(session, *SETTINGS))
    texts = [chat[1]["content"] for _, chat, _ in results]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[0] == ""
    assert len(set(texts)) > 2
    assert session.talk is not None
    assert session.talk.asked is None
    expected = handlers.model.chat(Talk(photo, asked="What?").prompt(), max_new_tokens=TOKENS)
    assert session.talk.turns == [("What?", expected)]
    assert texts[-1] == expected
    for word in (f"{TOKENS} tokens", "tok/s", "preprocess", "vision", "prefill", "decode"):
        assert word in results[-1][2]


def test_the_second_question_remembers_the_first(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    list(handlers.answer(session, *SETTINGS))
    handlers.ask("And now?", session)
    assert session.talk is not None
    prompt = session.talk.prompt()
    assert [m["role"] for m in prompt] == ["user", "assistant", "user"]
    assert [p["type"] for m in prompt for p in m["content"]] == ["image", "text", "text", "text"]
    *_, (_, chat, _) = handlers.answer(session, *SETTINGS)
    assert [m["role"] for m in chat] == ["user", "assistant"] * 2


def test_markup_in_answers_is_shown_as_written() -> None:
    talk = Talk("photo.png", [("Is 1 < 2?", "<b>& so on</b>")])
    assert [m["content"] for m in talk.shown()] == ["Is 1 &lt; 2?", "&lt;b&gt;&amp; so on&lt;/b&gt;"]
    talk.asked = "And?"
    assert talk.prompt()[1]["content"] == [{"type": "text", "text": "<b>& so on</b>"}]


def test_no_question_asks_for_a_description(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo, "  ")
    assert session.talk is not None
    assert session.talk.asked == vl.DEFAULT_PROMPT


def test_a_question_needs_an_image(handlers: Handlers) -> None:
    session = Session()
    _, _, status = handlers.ask("What?", session)
    assert is_error(status)
    assert list(handlers.answer(session, *SETTINGS)) == [(gr.skip(), gr.skip(), gr.skip())]


def test_a_question_during_an_answer_is_not_taken(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo, "First?")
    handlers.ask("Second?", session)
    assert session.talk is not None
    assert session.talk.asked == "First?"
    assert "submit_btn" not in handlers.rest(session)
    list(handlers.answer(session, *SETTINGS))
    assert handlers.rest(session)["submit_btn"] == "Ask"


def test_stop_keeps_what_was_written(handlers: Handlers, photo: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("demo.handlers.SECONDS_BETWEEN_UPDATES", 0)
    session = begin(handlers, photo)
    results = []
    for result in handlers.answer(session, 40, 0, 1, None):
        results.append(result)
        if len(results) == 4:
            handlers.stop(session)
    assert len(results) == 5
    assert "stopped" in results[-1][2]
    assert session.talk is not None
    assert session.talk.turns[0][1].startswith(results[-2][1][1]["content"])
    assert handlers.model.engine.scheduler.running == []


def test_stop_before_the_first_word(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    handlers.stop(session)
    *_, (_, chat, status) = handlers.answer(session, *SETTINGS)
    assert chat[1]["content"] == ""
    assert "0 tokens" in status
    handlers.ask("Again?", session)
    *_, (_, chat, status) = handlers.answer(session, *SETTINGS)
    assert len(chat) == 4
    assert f"{TOKENS} tokens" in status


def test_a_new_image_ends_the_answer_about_the_old_one(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    answer = handlers.answer(session, 40, 0, 1, None)
    next(answer)
    handlers.show(photo, session)
    assert list(answer) == []
    assert session.talk == Talk(photo)
    assert handlers.model.engine.scheduler.running == []


def test_clearing_keeps_the_image(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    list(handlers.answer(session, *SETTINGS))
    assert handlers.clear(session) == ""
    assert session.talk == Talk(photo)


GOOD: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 0, "top_p": 1, "seed": None}
NO_NUMBERS: list[Any] = [float("nan"), float("inf"), -float("inf"), "", "a", True, [], {}]
OUT_OF_RANGE: dict[str, list[Any]] = {
    "max_new_tokens": [None, 0, -1, 0.5, 1025, 10**30, *NO_NUMBERS],
    "temperature": [None, -0.1, 1e300, *NO_NUMBERS],
    "top_p": [None, 0, -1, 1.01, *NO_NUMBERS],
    "seed": [-1, -3.0, 0.5, 2**64, *NO_NUMBERS],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_setting_out_of_range_gives_the_question_back(handlers: Handlers, photo: str, name: str, value: Any) -> None:
    session = begin(handlers, photo)
    [(question, chat, status)] = handlers.answer(session, **GOOD | {name: value})
    assert (question, chat) == ("What?", [])
    assert is_error(status)
    assert name in status
    assert "answer failed" not in status
    assert handlers.rest(session)["submit_btn"] == "Ask"
    handlers.ask(question, session)
    *_, (_, chat, _) = handlers.answer(session, **GOOD)
    assert len(chat) == 2


def test_whole_numbers_may_come_as_floats(handlers: Handlers, photo: str) -> None:
    session = begin(handlers, photo)
    *_, (_, _, status) = handlers.answer(session, **GOOD | {"max_new_tokens": 3.0, "temperature": 1, "seed": 7.0})
    assert "3 tokens in" in status


@pytest.mark.parametrize("length", [MOST_CHARACTERS + 1, 98_000])
def test_a_question_that_is_too_long_stays_in_its_box(handlers: Handlers, photo: str, length: int) -> None:
    session = Session()
    handlers.show(photo, session)
    question, chat, status = handlers.ask("x" * length, session)
    assert (question, chat) == (gr.skip(), gr.skip())
    assert is_error(status)
    assert f"{length:,} characters" in status
    assert f"{MOST_CHARACTERS:,}" in status
    assert session.talk == Talk(photo)
    handlers.ask("x" * MOST_CHARACTERS, session)
    assert session.talk.asked == "x" * MOST_CHARACTERS


def test_a_conversation_that_is_too_long_can_be_cleared(handlers: Handlers, photo: str) -> None:
    session = Session()
    handlers.show(photo, session)
    assert session.talk is not None
    session.talk.turns = [("x" * MOST_CHARACTERS, "y")] * (MOST_CHARACTERS_OF_TALK // MOST_CHARACTERS)
    _, _, status = handlers.ask("And now?", session)
    assert is_error(status)
    assert "clear it" in status
    handlers.clear(session)
    handlers.ask("And now?", session)
    assert session.talk.asked == "And now?"


def test_a_failing_model_gives_the_question_back(handlers: Handlers, photo: str, monkeypatch: Any) -> None:
    def fail() -> None:
        raise RuntimeError("out of <memory>\nTraceback: a long story")

    session = begin(handlers, photo)
    monkeypatch.setattr(handlers.model.engine, "step", fail)
    *_, (question, chat, status) = handlers.answer(session, *SETTINGS)
    assert (question, chat) == ("What?", [])
    assert "RuntimeError: out of &lt;memory&gt;" in status
    assert "Traceback" not in status
    monkeypatch.undo()
    handlers.ask("What?", session)
    *_, (_, chat, _) = handlers.answer(session, *SETTINGS)
    assert len(chat) == 2


def test_sessions_do_not_mix(handlers: Handlers, photo: str, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (300, 400), "navy").save(other)
    sessions = begin(handlers, photo, "One?"), begin(handlers, str(other), "Two?")
    answers = [handlers.answer(session, *SETTINGS) for session in sessions]
    last: list[Any] = [None, None]
    for _ in range(2 * TOKENS + 4):  # in turns, as two visitors' events would run
        for i, answer in enumerate(answers):
            last[i] = next(answer, last[i])
    for session, path, question, (_, chat, _) in zip(
        sessions, (photo, str(other)), ("One?", "Two?"), last, strict=True
    ):
        alone = handlers.model.chat(Talk(path, asked=question).prompt(), max_new_tokens=TOKENS)
        assert chat == Talk(path, [(question, alone)]).shown()
        assert session.talk == Talk(path, [(question, alone)])


def test_text_only_checkpoint_is_refused(tiny_text_checkpoint: Path) -> None:
    with pytest.raises(vl.InputError, match="text-only"):
        Handlers(vl.load(tiny_text_checkpoint, device="cpu"))


def test_layout_is_put_in_words() -> None:
    assert describe_grid(Patcher().grid(1920, 1080)) == "1920 × 1080 → 2016 × 1008, 18 tiles + thumbnail, 9,864 tokens"
    assert describe_grid(Patcher().grid(336, 336)) == "336 × 336 → 336 × 336, 1 tile + thumbnail, 1,176 tokens"


def test_figures_are_put_in_words() -> None:
    timings = Timings(preprocess=0.012, vision=0.34, prefill=0.6, decode=2.0)
    assert describe_answer("length", Usage(2352, 2340, 41), timings) == (
        "41 tokens in 3.0 s (20.0 tok/s), cut at the token limit · prompt 2,352 tokens, 2,340 of the image"
        " · preprocess 12 ms · vision 340 ms · prefill 600 ms · decode 2.0 s"
    )
    assert describe_answer("stop", Usage(9, 8, 1), Timings()).startswith("1 token in 0 ms · prompt 9 tokens")


def test_notes_are_escaped() -> None:
    assert "<script>" not in note("<script>", "error")
    assert note("") == ""
