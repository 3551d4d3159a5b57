"""The page about a job's rows: its numbers against a plain count, and the page itself in real headless Chromium."""

from __future__ import annotations

import itertools
import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, Page

from vl.cli.app import run as command
from vl.jobs import JobError, expand_sources, source_key, write_report
from vl.jobs.statistics import Histogram, Repeated, Spread, Statistics, cause_of, evenly
from vl.jobs.stored import Stored

from .fakes import run

EVIL = "</script></title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def row(number: int, **more: Any) -> dict[str, Any]:
    made = {"model": "m", "prompt": "What?", "settings": {}, "width": 8, "height": 8, "tiles": 2, "prompt_tokens": 9}
    made |= {"image_tokens": 5, "completion_tokens": 4, "finish_reason": "stop", "seconds": 0.1}
    return {"image": f"{number}.png", "caption": f"Picture {number}."} | made | more


def output(folder: Path, rows: list[dict[str, Any]]) -> Path:
    out = folder / "out.jsonl"
    out.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return out


def visible(page: Page) -> list[str]:
    return page.locator("article:visible h3").all_text_contents()  # an inner text is empty before it is laid out


def test_the_page_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (900, 300), "red").save(picture)
    rows = [
        row(1, image=str(picture), seconds=2.0, caption="A red field."),
        row(2, image=f"x/{EVIL}.png", caption=EVIL, prompt=EVIL, model=EVIL, finish_reason="length"),
        row(3, caption="A red field.", seconds=0.0),
        {"image": EVIL, "error": f"{EVIL}: no such file {EVIL}", "model": "m", "prompt": "p", "seconds": None},
        row(5, image="\udcff.png", caption="A red field.", colour="red", tags=["a", EVIL]),
    ]
    page_file = tmp_path / "report.html"
    write_report(output(tmp_path, rows), page_file)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    troubles: list[Any] = []
    page.on("pageerror", lambda error: troubles.append(error))
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(page_file.as_uri())
    assert page.title() == f"Captions in {tmp_path / 'out.jsonl'}", "nothing in the rows runs"
    assert [url for url in requested if not url.startswith("data:")] == [page.url], "the page is all there is"
    assert page.locator("#count").inner_text() == "5 shown"
    evil = page.locator("article").nth(1)
    assert evil.locator(".caption").inner_text() == EVIL
    page.wait_for_function("[...document.querySelectorAll('article img')].every(i => i.naturalWidth)")  # they are lazy
    assert page.eval_on_selector_all("article img", "all => all.map(i => [i.naturalWidth, i.alt])") == [
        [256, "red.png"]
    ]
    assert "can no longer be read" in page.locator("article").nth(2).inner_text()
    assert page.locator("#repeated tr").nth(1).inner_text().split("\t") == ["2", "A red field."], "but for the copy"
    page.fill("#search", "red FIELD")
    assert visible(page) == ["red.png", "3.png", "?.png"]
    assert page.locator("#count").inner_text() == "3 shown"
    page.fill("#search", "")
    for kind, names in (("error", 1), ("cut", 1), ("copy", 1), ("caption", 4)):
        page.select_option("#show", kind)
        assert page.locator("article:visible").count() == names
    page.select_option("#show", "")
    page.select_option("#order", "-seconds")
    assert visible(page)[0] == "red.png"
    page.select_option("#order", "place")
    assert visible(page)[-1] == "?.png"
    labelled = "all => all.every(e => e.labels.length || e.getAttribute('aria-label'))"
    assert page.eval_on_selector_all("input, select", labelled)
    assert page.locator("figure[role=img]").first.get_attribute("aria-label") == (
        f"caption length: mean {(3 * 12 + len(EVIL)) / 4:g}, most {len(EVIL)} characters"
    )
    dark = browser.new_page(color_scheme="dark", viewport={"width": 390, "height": 844})
    dark.goto(page_file.as_uri())
    assert dark.evaluate("document.documentElement.scrollWidth") <= 390, "a phone need not scroll sideways"
    colours = dark.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.forms[0]).backgroundColor]"
    )
    assert colours[0] == "rgb(255, 255, 255)"
    assert colours[1] != "rgb(255, 255, 255)"
    assert troubles == []


def test_a_page_is_bounded_and_its_numbers_are_of_all(tmp_path: Path) -> None:
    rows = [
        {"image": f"{n}.png", "error": f"{n}.png: broken at byte {n}", "model": "m", "prompt": "p"}
        if n % 4 == 0
        else row(n, seconds=n / 100, caption="same" if n % 3 == 0 else f"Picture {n}.")
        for n in range(400)
    ]
    found = write_report(output(tmp_path, rows), tmp_path / "report.html", images=50)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<article") == 50
    assert (found.rows, found.errors, found.captions) == (400, 100, 300)
    assert found.causes == {"broken at byte N": 100}
    assert found.completion_tokens == 4 * 300
    shown = [place for place, _ in found.shown()]
    assert sum(place % 4 == 0 for place in shown) == 10
    assert {399, 398, 397} <= set(shown), "the slowest"
    gaps = [after - before for before, after in itertools.pairwise(shown)]
    assert max(gaps) < 60
    assert len(write_report(output(tmp_path, rows), tmp_path / "report.html").shown()) == 400
    assert write_report(output(tmp_path, rows), tmp_path / "report.html", images=0).shown() == []
    assert "same" in (tmp_path / "report.html").read_text()


def test_pictures_are_found_where_they_were_read(archive: Path, tmp_path: Path) -> None:
    images = sorted((archive / "shelf1").glob("0*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for image in images:
            tar.add(image, f"b/{image.name}")
    with Image.open(images[0]) as image:
        image.save(tmp_path / "one.bmp")
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"image": str(images[0])}) + "\n")
    sources = [str(tmp_path / "a.tar"), str(table), str(tmp_path / "one.bmp")]
    names = [source_key(source) for source in expand_sources(sources)]
    rows = [row(n, image=name) for n, name in enumerate([*names, str(tmp_path / "a.tar/none.png"), "data:,sha256:0"])]
    write_report(output(tmp_path, rows), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/webp') == len(names) == len(images) + 2
    assert page.count("can no longer be read") == 2


def test_commands(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = str(tmp_path / "out.jsonl"), tmp_path / "page.html"
    run(archive, Path(out))
    assert command(["report", out, str(page), "--report-images", "3"]) == 0
    assert "13 rows, 1 error" in capsys.readouterr().out
    assert page.read_text().count("<article") == 3
    assert command(["report", str(tmp_path / "none.jsonl")]) == 3
    for wrong in (str(tmp_path / "no" / "page.html"), out):
        assert command(["report", out, wrong]) == 2
        assert command(["caption", str(archive), "--out", str(tmp_path / "new.jsonl"), "--report", wrong]) == 2
    for options in (["--report", str(page)], ["--report-images", "3"]):
        assert command(["caption", "a.png", *options]) == 2
    with pytest.raises(JobError, match="is no output"):
        write_report(archive, page)
    with pytest.raises(JobError, match="holds the rows"):
        write_report(out, out)
    with pytest.raises(JobError, match="cannot write"):
        write_report(out, tmp_path / "no" / "page.html")


@given(st.lists(st.floats(0, 1e6), max_size=60), st.sampled_from([1, 8, 1 / 32]))
@settings(deadline=None, max_examples=40)
def test_a_histogram_counts_all(values: list[float], step: float) -> None:
    histogram = Histogram(step)
    for value in values:
        histogram.add(value)
    expected = Counter(int(value / histogram.step) for value in values)
    assert [number for _, _, number in histogram.bars] == [expected[i] for i in range(len(histogram.bars))]
    assert sum(histogram.counts) == len(values) == histogram.number
    assert histogram.sum == pytest.approx(sum(values))
    assert histogram.most == max(values, default=0)


@given(st.integers(0, 500), st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_a_spread_is_even(count: int, most: int) -> None:
    spread: Spread[int] = Spread(most)
    for number in range(count):
        spread.add(number)
    kept = evenly(spread.items, most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    if count > most:
        assert max(b - a for a, b in zip([-1, *kept], [*kept, count], strict=True)) <= 4 * count / most + 1


def test_texts_are_counted_as_a_counter_does() -> None:
    texts = [f"caption {n % 700}" if n % 3 else "" for n in range(2500)]
    repeated = Repeated()
    for text in texts:
        repeated.add(text)
    found = repeated.most_common(10_000)
    assert dict(found) == {text: number for text, number in Counter(texts).items() if number > 1}
    assert found[0][0] == ""
    repeated.close()


def test_causes_are_without_names_and_numbers() -> None:
    assert cause_of("a/7.png", "a/7.png: 13 of 20 bytes at 0x7f of a/7.png") == "N of N bytes at N of …"


def test_memory_is_flat_in_rows() -> None:
    found = Statistics(20)
    tracemalloc.start()
    held = []
    for start in range(0, 12_000, 3_000):
        for number in range(start, start + 3_000):
            error = {"error": f"{number} " + "x" * (number % 3000)} if number % 2 else {}
            found.add(Stored.of(row(number) | error))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    found.repeated.close()
    assert held[-1] < 1.3 * held[1]
