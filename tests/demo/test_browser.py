"""The page in real headless Chromium, on a small random model.

`VL_SCREENSHOT=docs/images/demo.png pytest tests/demo/test_browser.py -k screenshot` renders the picture in the README
with the embedded model.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

import vl
from demo.app import build
from demo.handlers import Handlers
from demo.limits import MOST_CHARACTERS
from demo.serving import launch

SCREENSHOT = os.environ.get("VL_SCREENSHOT")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
STEP_SECONDS = 0.02
PATIENCE = 90_000  # milliseconds
CHAT = "#chat [data-testid=bot]"
WATCH = """() => {
    window.lengths = [];
    new MutationObserver(() => {
        const answer = document.querySelector("#chat [data-testid=bot]");
        if (answer) window.lengths.push(answer.innerText.trim().length);
    }).observe(document.querySelector("#chat"), {childList: true, subtree: true, characterData: true});
}"""
"""Notes the length of the answer whenever the conversation changes."""
IS_DARK = """dark => {
    const [channel] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g);  // rgb(24, 24, 27)
    return (channel < 64) === dark;
}"""

expect.set_options(timeout=PATIENCE)

OpenPage = Callable[..., Page]


class Pace:
    """How fast the server's model goes: a test that watches an answer lets it go on once it has seen enough.

    Attributes:
        steps: those taken so far.
        seconds: what each takes at least.
    """

    def __init__(self) -> None:
        self.steps, self.seconds = 0, STEP_SECONDS
        self._changed, self._last = threading.Condition(), math.inf

    def allow(self, steps: float = math.inf) -> None:
        """So many from now on, until more are allowed."""
        with self._changed:
            self._last = self.steps + steps
            self._changed.notify_all()

    def wait(self) -> None:
        """Until one more may be taken."""
        time.sleep(self.seconds)
        with self._changed:
            self._changed.wait_for(lambda: self.steps < self._last)
            self.steps += 1


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    Image.new("RGB", (1920, 1080), "tomato").save(folder / "wide-scene.png")
    Image.new("RGB", (336, 336), "teal").save(folder / "small.webp")
    records = [{"image": name, "prompt": "Describe this image."} for name in ("wide-scene.png", "small.webp")]
    (folder / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return vl.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def served_pace() -> Pace:
    return Pace()


@pytest.fixture
def pace(served_pace: Pace) -> Iterator[Pace]:
    """Of the server's model, which goes on freely after the test."""
    yield served_pace
    served_pace.seconds = STEP_SECONDS
    served_pace.allow()


@pytest.fixture(scope="module")
def address(model: Any, examples: Path, served_pace: Pace) -> Iterator[str]:
    """A server whose model takes its time, so that streaming can be watched."""
    patch = pytest.MonkeyPatch()
    patch.setattr("demo.gallery.FOLDER", examples)
    step, stop = model.engine.step, Handlers.stop

    def slow_step() -> None:
        served_pace.wait()
        step()

    def stopped(self: Handlers, session: Any) -> None:
        stop(self, session)
        served_pace.allow()

    patch.setattr(model.engine, "step", slow_step)
    patch.setattr(Handlers, "stop", stopped)
    page = build(model)
    yield launch(page, allowed_paths=[str(examples)], max_file_size="1mb")[0]
    page.close()
    patch.undo()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Opens the page as a new visitor; at the end, nothing may have been wrong or asked of other servers."""
    contexts, complaints = [], []
    host = urlsplit(address).netloc

    def route(request: Any) -> None:
        if urlsplit(request.request.url).netloc != host:
            complaints.append(f"external request: {request.request.url}")
            request.abort()
        else:
            request.continue_()

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**({"viewport": DESKTOP} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.route("**/*", route)
        page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
        page.goto(address)
        page.get_by_role("button", name="Ask").wait_for()
        page.wait_for_function(IS_DARK, arg=options.get("color_scheme") == "dark")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def is_complaint(message: ConsoleMessage) -> bool:
    """Browsers log every refused request as an error; that of a file over the upload limit is meant."""
    return message.type == "error" and not ("413" in message.text and message.location["url"].find("/upload") > 0)


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#image input[type=file]", path)


def saved(path: Path, size: tuple[int, int], colour: str = "teal") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def layout(page: Page) -> Any:
    return expect(page.locator("#layout"))


def limit(page: Page, tokens: int) -> None:
    page.get_by_role("button", name="Sampling").click()
    number = page.get_by_label("number input for Max new tokens")
    number.fill(str(tokens))
    number.press("Tab")
    page.wait_for_timeout(300)  # Gradio gathers changes before it sends them


def is_idle(page: Page) -> None:
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_image_question_answer(open_page: OpenPage, pace: Pace, tmp_path: Path) -> None:
    page = open_page()
    upload(page, saved(tmp_path / "photo.jpg", (640, 480)))
    layout(page).to_have_text("640 × 480 → 672 × 672, 4 tiles + thumbnail, 166 tokens")
    overlay = page.get_by_role("img", name="The image as the model sees it: 640 × 480")
    expect(overlay).to_be_visible()
    size = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert overlay.evaluate(size) == [672, 672]

    limit(page, 80)
    page.evaluate(WATCH)
    question = page.get_by_label("Question")
    question.fill("Is it <b>2 & 3</b>?")
    pace.allow(25)
    question.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator("#chat [data-testid=user]")).to_have_text("Is it <b>2 & 3</b>?")
    length = 0
    for _ in range(2):
        page.wait_for_function("length => (window.lengths.at(-1) || 0) > length", arg=length)
        length = page.evaluate("window.lengths.at(-1)")
        pace.allow(25)
    pace.allow()
    expect(page.locator("#status")).to_contain_text("decode")
    final = page.locator(CHAT).inner_text().strip()
    lengths = page.evaluate("window.lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) >= 3, "the text grows while it is written"
    assert len(final) >= lengths[-1] > 0
    assert question.input_value() == ""


def test_conversation_continues(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Small").click()
    layout(page).to_contain_text("1 tile + thumbnail")
    limit(page, 8)
    for turn in (1, 2):
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(CHAT)).to_have_count(turn)
        expect(page.locator("#status")).to_contain_text("decode")
        is_idle(page)
    upload(page, saved(tmp_path / "next.png", (100, 300)))
    layout(page).to_contain_text("100 × 300")
    expect(page.locator(CHAT)).to_have_count(0)


def test_stop(open_page: OpenPage, pace: Pace) -> None:
    page = open_page()
    page.get_by_role("button", name="Small").click()
    layout(page).to_contain_text("tokens")
    limit(page, 1000)
    pace.allow(50)  # until it is stopped
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Writing")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("stopped")
    is_idle(page)


def test_example_at_one_click(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Wide scene").click()
    layout(page).to_have_text("1920 × 1080 → 2016 × 1008, 18 tiles + thumbnail, 630 tokens")
    expect(page.get_by_label("Question")).to_have_value(vl.DEFAULT_PROMPT)
    expect(page.locator("#image img")).to_be_visible()
    assert page.locator("#overlay img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 1344


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60 000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_bad_files_get_a_message_and_the_page_goes_on(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    whole = saved(tmp_path / "whole.png", (640, 480)).read_bytes()
    for name, content in {"notes.png": b"no image at all", "cut.png": whole[:300], "bomb.png": bomb()}.items():
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        message = page.get_by_role("alert").filter(has_text=name)
        expect(message).to_be_visible()
        assert "Traceback" not in page.content()
        assert "/tmp" not in message.inner_text()
        upload(page, tmp_path / "whole.png")
        layout(page).to_contain_text("640 × 480")


def test_a_file_over_the_upload_limit(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "big.png").write_bytes(bytes(2_000_000))
    upload(page, tmp_path / "big.png")
    expect(page.get_by_text('maximum allowed size of 1.0 Mb: "big.png"')).to_be_visible()
    upload(page, saved(tmp_path / "photo.png", (640, 480)))
    layout(page).to_contain_text("640 × 480")


def test_question_without_an_image(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Question").press("Enter")
    hint = page.get_by_role("alert").filter(has_text="Add an image first")
    expect(hint).to_be_visible()
    page.wait_for_timeout(1500)
    expect(hint).to_be_visible()  # and stays


def test_a_setting_out_of_range_gives_the_question_back(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("button", name="Small").click()
    layout(page).to_contain_text("tokens")
    page.get_by_role("button", name="Sampling").click()
    seed, question = page.get_by_label("Seed"), page.get_by_label("Question")
    for value in ("-1", "0.5"):
        seed.fill(value)
        question.fill("What?")
        question.press("Enter")
        expect(
            page.get_by_role("alert").filter(
                has_text=f"seed must be a whole number, 0 or more, below 2^64, not {value}"
            )
        ).to_be_visible()
        expect(question).to_have_value("What?")
        is_idle(page)
    seed.fill("")
    page.get_by_label("number input for Max new tokens").fill("8")
    question.press("Enter")
    expect(page.locator("#status")).to_contain_text("decode")


def test_a_question_ends_at_its_limit(open_page: OpenPage) -> None:
    question = open_page().get_by_label("Question")
    question.fill("x" * MOST_CHARACTERS)
    question.press_sequentially("xyz")
    assert question.input_value() == "x" * MOST_CHARACTERS


def test_two_visitors_at_once(open_page: OpenPage) -> None:
    pages = open_page(), open_page()
    for page, name in zip(pages, ("Small", "Wide scene"), strict=True):
        page.get_by_role("button", name=name).click()
        layout(page).to_contain_text("tokens")
        limit(page, 12)
    for page, question in zip(pages, ("one", "two"), strict=True):
        page.get_by_label("Question").fill(question)
        page.get_by_label("Question").press("Enter")
    for page, question, tokens in zip(pages, ("one", "two"), ("78", "630"), strict=True):
        expect(page.locator("#status")).to_contain_text(f"{tokens} of the image")
        expect(page.locator("#chat [data-testid=user]")).to_have_text([question])


def test_a_visitor_who_leaves_frees_the_model(open_page: OpenPage, pace: Pace, model: Any) -> None:
    leaving, staying = open_page(), open_page()
    for page, tokens in ((leaving, 1000), (staying, 4)):
        page.get_by_role("button", name="Small").click()
        layout(page).to_contain_text("tokens")
        limit(page, tokens)
    pace.seconds = 0.1  # an answer takes 100 s
    leaving.get_by_role("button", name="Ask", exact=True).click()
    expect(leaving.locator("#status")).to_contain_text("Writing")
    leaving.close()
    before = pace.steps
    staying.get_by_role("button", name="Ask", exact=True).click()
    expect(staying.locator("#status")).to_contain_text("decode")
    while model.engine.scheduler.running:
        time.sleep(0.05)
    assert pace.steps - before < 700, "the answer that nobody reads was written to its end"


def test_phone(open_page: OpenPage) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    page.get_by_role("button", name="Wide scene").tap()
    layout(page).to_contain_text("tokens")
    limit(page, 8)
    page.get_by_role("button", name="Ask", exact=True).tap()
    expect(page.locator("#status")).to_contain_text("decode")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for part in ("#image", "#overlay", "#chat", "#question"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert PHONE["width"] * 0.8 <= box["width"] <= PHONE["width"]


@pytest.mark.skipif(SCREENSHOT is None, reason="VL_SCREENSHOT=FILE renders the README's picture")
def test_screenshot(browser: Browser) -> None:
    """The embedded model answering about an example: the first, or the one whose label holds VL_SCREENSHOT_EXAMPLE."""
    page_of_nano = build(vl.load("nano"))
    address = launch(page_of_nano)[0]
    page = browser.new_page(viewport=DESKTOP, device_scale_factor=1.5)
    page.goto(address)
    wanted = os.environ.get("VL_SCREENSHOT_EXAMPLE")
    cards = page.locator("#examples button")
    cards.first.wait_for()
    (cards.filter(has_text=wanted).first if wanted else cards.first).click()
    layout(page).to_contain_text("tokens")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#status")).to_contain_text("decode", timeout=120_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    assert SCREENSHOT is not None
    page.screenshot(path=SCREENSHOT, full_page=True)
    page.close()
    page_of_nano.close()
