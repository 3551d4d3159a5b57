"""What `--out` leaves: files that scripts read, and a page that is opened in real headless Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser

import vl
from vl.evaluation import METRICS, OutFolder, Result, Row, Target, render_gallery

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


def row(number: int, reference: str, answer: str, *images: Any, metric: str = "ocr") -> Row:
    scores = METRICS[metric].score([reference], answer)
    sizes = tuple((60, 40) for _ in images)
    return Row(
        f"row-{number}",
        metric,
        metric,
        f"Read {EVIL}",
        (reference,),
        answer,
        "length",
        scores,
        sizes,
        line=number,
        pictures=lambda: list(images),
    )


@pytest.fixture
def results() -> list[Result]:
    red, wide = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (3000, 1500), "blue")
    unreadable = Row("9", "ocr", "ocr", error=f"not JSON {EVIL}", line=9)
    rows = (
        row(1, "right", "right", red),
        row(2, "kitten", 'The text reads "sitten".', red),
        row(3, EVIL, "nothing of it", wide, "gone.png"),
        unreadable,
    )
    counted = Result("counting", "counting", (row(4, "3", "many", red, metric="counting"),))
    return [Result(f"mine {EVIL}", "ocr", rows, (Target("cer", 0.02, most=True),)), counted]


def test_files_for_scripts(tmp_path: Path, results: list[Result]) -> None:
    with OutFolder(tmp_path / "new" / "out") as out:
        for result in results:
            out.append(result.rows)
        lines = (out.path / "examples.jsonl").read_text().splitlines()
        out.finish("tiny", results)
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 5, "on disk before the end"
    assert rows[1] == {
        "id": "row-2",
        "task": "ocr",
        "metric": "ocr",
        "line": 2,
        "prompt": f"Read {EVIL}",
        "references": ["kitten"],
        "sizes": [[60, 40]],
        "answer": 'The text reads "sitten".',
        "finish_reason": "length",
        "confidence": None,
        "scores": {"cer": pytest.approx(1 / 6), "wer": 1.0, "exact": 0.0},
        "right": False,
    }
    assert rows[3]["error"].startswith("not JSON")
    assert "answer" not in rows[3]
    scores = json.loads((out.path / "scores.json").read_text())
    assert scores["model"] == "tiny"
    first, second = scores["results"]
    assert first["targets"] == {"cer": {"at_most": 0.02, "met": False}}
    assert first["errors"] == [{"id": "9", "line": 9, "error": f"not JSON {EVIL}"}]
    assert second["scores"] == {"accuracy": 0.0, "mean_absolute_error": 3.0}


def test_an_earlier_evaluation_is_kept_until_there_is_another(tmp_path: Path, results: list[Result]) -> None:
    with OutFolder(tmp_path) as out:
        out.append(results[0].rows)
        out.finish("tiny", results)
    with pytest.raises(vl.ConfigError, match=r"holds an earlier evaluation .*--overwrite"):
        OutFolder(tmp_path)
    again = OutFolder(tmp_path, overwrite=True)
    assert (tmp_path / "failures.html").stat().st_size
    with again:
        assert not (tmp_path / "scores.json").exists(), "scores never stand beside other examples"
    (tmp_path / "file").touch()
    with pytest.raises(vl.ConfigError, match="cannot write into"):
        OutFolder(tmp_path / "file")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    bad = Row("\udcff", "ocr", "ocr", error="cannot read \udcff.png")
    with OutFolder(tmp_path) as out:
        out.append([bad])
        out.finish("tiny", [Result("\udcff", "ocr", (bad,))])
    assert json.loads((tmp_path / "examples.jsonl").read_bytes())["id"] == "\udcff"


def test_the_page_in_a_browser(tmp_path: Path, results: list[Result], browser: Browser) -> None:
    with OutFolder(tmp_path) as out:
        out.finish("tiny", results)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((tmp_path / "failures.html").as_uri())
    assert page.title() == "Failures of tiny", "nothing in the data runs"
    assert [url for url in requested if not url.startswith("data:")] == [page.url], "the page is all there is"
    cards = page.locator("article")
    assert cards.count() == 3
    assert cards.nth(0).locator("p").first.inner_text().startswith("row-3 (line 3)"), "the worst first"
    assert cards.nth(0).locator(".expected").inner_text() == EVIL
    assert "can no longer be read" in cards.nth(0).inner_text()
    assert cards.nth(1).locator(".expected mark").all_inner_texts() == ["k"]
    assert cards.nth(1).locator(".said mark").all_inner_texts() == ["s"]
    assert cards.nth(1).locator(".said").inner_text() == 'The text reads "sitten".'
    sizes = page.eval_on_selector_all("img", "images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[1024, 512], [60, 40], [60, 40]]
    assert page.locator(".errors li").all_inner_texts() == [f"line 9: not JSON {EVIL}"]
    table = page.locator("#scores").inner_text()
    assert "≤ 2%" in table
    assert "3.00" in table
    assert page.locator("#scores .missed").count() == 1
    assert "cut off" in cards.nth(1).inner_text()
    picture = cards.nth(1).locator("img")
    picture.click()
    assert picture.bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 900}
    picture.click()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_only_so_many_failures(results: list[Result]) -> None:
    page = render_gallery("tiny", results, most=1)
    assert page.count("<article>") == 2
    assert "1 of 2 wrong answers" in page
    assert "<article>" not in render_gallery("tiny", results, most=0)
