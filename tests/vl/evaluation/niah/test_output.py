"""What is left on disk: rows that a later run goes on from, scores, and a picture of the right colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vl
from vl.evaluation.niah import NeedleFolder, Result, Row, draw_heat_map, short

SETTINGS = {"model": "m", "seed": 0, "dtype": None}


def row(number: int, length: int = 1024, depth: float = 0, **outcome: object) -> Row:
    return Row(f"text-{number}", length, depth, "?", "12345", 1024, **(outcome or {"answer": "12345", "score": 1.0}))  # type: ignore[arg-type]


def ids(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    with NeedleFolder(tmp_path / "a" / "out", SETTINGS) as out:
        assert out.done == {}
        out.append(row(0))
        out.append(row(1, error="out of memory"))
    file = out.path / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"id": "text-2", "sc')  # as a kill leaves it
    with NeedleFolder(out.path, SETTINGS) as again:
        assert again.done == {"text-0": row(0)}, "what failed is tried again"
        assert file.read_bytes() == whole
        again.append(row(1))
        again.append(row(2))
        again.finish(Result(SETTINGS, (row(0), row(1), row(2)), (0,)), "title")
    assert ids(out.path) == ["text-0", "text-1", "text-1", "text-2"]
    scores = json.loads((out.path / "scores.json").read_text())
    assert (scores["model"], scores["score"], scores["cells"]) == ("m", 1.0, [[1.0]])
    with NeedleFolder(out.path, SETTINGS) as third:
        assert list(third.done) == ["text-0", "text-1", "text-2"]
        assert not (out.path / "scores.json").exists(), "scores never stand beside other rows"
        assert not (out.path / "heatmap.png").exists()
    with NeedleFolder(out.path, SETTINGS | {"seed": 1}, overwrite=True) as anew:
        assert anew.done == {}
    assert ids(out.path) == []


def test_other_answers_are_not_mixed(tmp_path: Path) -> None:
    with NeedleFolder(tmp_path, SETTINGS) as out:
        out.append(row(0))
        with pytest.raises(vl.ConfigError, match="is being written by another run"), NeedleFolder(tmp_path, SETTINGS):
            pass
    with pytest.raises(vl.ConfigError, match="holds answers with seed 0, not 7: go on with"):
        NeedleFolder(tmp_path, SETTINGS | {"seed": 7})
    with pytest.raises(vl.ConfigError, match="with kind None, not 'pages'"):
        NeedleFolder(tmp_path, SETTINGS | {"kind": "pages"})
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(vl.ConfigError, match=r"settings\.json is not what a test writes"):
        NeedleFolder(tmp_path, SETTINGS)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(vl.ConfigError, match=r"holds rows\.jsonl of something else"):
        NeedleFolder(tmp_path, SETTINGS)
    assert ids(tmp_path) == ["text-0"]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(vl.ConfigError, match=r"cannot write into .*file"):
        NeedleFolder(tmp_path / "file", SETTINGS)
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "rows.jsonl").write_text('{"caption": "mine"}\n{"id": "x"}\n')
    with pytest.raises(vl.ConfigError, match="line 1 is no row of a test"), NeedleFolder(tmp_path, SETTINGS):
        pass
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_the_cells_have_the_colours_of_their_scores(tmp_path: Path) -> None:
    rows = (
        row(0, 1024, 0, score=1.0),
        row(1, 4096, 0, score=0.0),
        row(2, 1024, 100, error="too long"),
        row(3, 4096, 100, score=0.0),
        row(4, 4096, 100, score=1.0),
    )
    result = Result({}, rows, (0, 100))
    assert result.cells() == [[1.0, 0.0], [None, 0.5]]
    draw_heat_map(result, tmp_path / "map.png", "title")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    wanted = {"green": (0, 104, 55), "red": (165, 0, 38), "yellow": (254, 254, 189), "hatched": (233, 236, 239)}
    wide = pixels[:, : int(0.72 * pixels.shape[1])]  # without the scale beside it
    places = {name: np.argwhere((np.abs(wide.astype(int) - colour) <= 3).all(-1)) for name, colour in wanted.items()}
    assert all(len(place) > 300 for place in places.values())
    centre = {name: np.median(place, axis=0) for name, place in places.items()}
    assert centre["green"][1] < centre["red"][1], "the longer prompts are to the right"
    assert centre["red"][0] < centre["yellow"][0], "the deeper needles are below"
    assert abs(centre["hatched"][0] - centre["yellow"][0]) < 12
    assert abs(centre["hatched"][1] - centre["green"][1]) < 12


@pytest.mark.parametrize(
    ("length", "text"),
    [(512, "512"), (1000, "1000"), (1024, "1K"), (131072, "128K"), (2**20, "1M"), (2**20 + 1024, "1025K")],
)
def test_lengths_are_written_short(length: int, text: str) -> None:
    assert short(length) == text
