from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vl.training.batch import Skipped
from vl.training.curve import PICTURE, draw_curve, read_log
from vl.training.report import EVENTS, Report


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path)
    for step in (1, 2, 3):
        report.write("train", step, loss=4.0 / step, lr=0.1)
    report.write("eval", 3, records_loss=1.5, records_exact=0.25)
    report.close()
    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (r["step"], pytest.approx(r["loss"])) for r in read_log(tmp_path) if r["kind"] == "train"
    ]
    assert events.Scalars("eval/records_exact")[0].value == 0.25
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_resumed_report_drops_what_will_be_repeated(tmp_path: Path) -> None:
    report = Report(tmp_path)
    for step in (1, 2, 3):
        report.write("train", step, loss=1.0)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3]
    Report(tmp_path, resume_step=2)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]


def test_only_the_first_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, active=False)
    report.write("train", 1, loss=1.0)
    report.tell("hello")
    report.close()
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


def test_skipped_records_are_kept_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Report(tmp_path).skip([Skipped("a.jsonl:3", "truncated")])
    assert capsys.readouterr().out == "skipped a.jsonl:3: truncated\n"
    assert (tmp_path / "skipped.jsonl").read_text("utf-8") == '{"record": "a.jsonl:3", "cause": "truncated"}\n'


def test_the_curve_is_drawn_by_another_process(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report(tmp_path)
    report.write("train", 1, loss=1.0)
    assert draw_curve(tmp_path) is None
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.size == (1210, 440)


def test_a_curve_that_cannot_be_drawn_is_told_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / PICTURE).mkdir()
    Report(tmp_path).close()
    assert f"{tmp_path / PICTURE} was not drawn: IsADirectoryError" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl.training.curve.find_spec", lambda name: None)
    assert draw_curve(tmp_path) is None
    assert not list(tmp_path.iterdir())
