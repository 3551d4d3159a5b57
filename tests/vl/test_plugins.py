"""Sources and tasks of other packages: docs/plugins.md as it stands, installed as a package and run."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vl
import vl.cli.app as vl_app
from vl.evaluation import find_tasks
from vl.plugins import find_plugin, find_plugins
from vl.training import TrainConfig, train
from vl.training.curve import read_log

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, where Python finds it, with its entry points and recipe."""
    (source,) = blocks("python")
    points, recipe = blocks("toml")
    (tmp_path / "colours.py").write_text(source)
    (tmp_path / "colours.toml").write_text(recipe)
    information = tmp_path / "colours-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    groups = tomllib.loads(points)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in groups[group].items()) for group in groups
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    find_tasks.cache_clear()
    yield tmp_path
    find_tasks.cache_clear()
    sys.modules.pop("colours", None)


@pytest.mark.parametrize("name", ["colours", "colours:Colours"])
def test_a_source_is_trained_on(package: Path, tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    config = TrainConfig.read(package / "colours.toml")
    data = replace(config.data, source=name, batch_tokens=2000, workers=0)
    run = replace(config.run, init=str(tiny_checkpoint), steps=2, log_steps=1, eval_samples=2)
    train(replace(config, data=data, run=run), tmp_path / "run", device="cpu")
    records = read_log(tmp_path / "run")
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2]
    (held,) = [record for record in records if record["kind"] == "eval"][-1:]
    assert held["cards_loss"] > 0
    assert data.open_source().draw(1, 2, 0) == data.open_source().draw(1, 2, 0)
    with pytest.raises(vl.ConfigError, match="pink is none of red"):
        replace(data, mix={"colours": ["pink"]}).open_source()


def test_a_task_is_one_of_vl_eval(package: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "colours", "--count", "2", "--model", str(tiny_checkpoint), "--json"]
    assert vl_app.run(command) == 0
    assert '"task": "colours"' in capsys.readouterr().out
    assert {"colours", "scenes"} <= set(find_tasks())


def test_what_cannot_be_found_is_said(package: Path) -> None:
    with pytest.raises(vl.ConfigError, match="use nano, recall, colours or an import path"):
        find_plugin("vl.sources", "colour")
    with pytest.raises(vl.ConfigError, match="cannot import colours:Colour:"):
        find_plugin("vl.sources", "colours:Colour")
    (package / "colours.py").write_text("import nowhere")
    sys.modules.pop("colours", None)
    with pytest.raises(vl.ConfigError, match="cannot import colours:TASKS: No module named 'nowhere'"):
        find_plugins("vl.tasks")


def test_two_things_of_one_name_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them is meant would hang on the order of the installation."""
    points = package / "colours-1.0.dist-info" / "entry_points.txt"
    points.write_text("[vl.sources]\nnano = colours:Colours\n")
    with pytest.raises(vl.ConfigError, match=r"'nano' of vl.sources is vl.nano.*colours:Colours.*another name"):
        find_plugin("vl.sources", "nano")
    source = package / "colours.py"
    source.write_text(source.read_text() + '\nTASKS["scenes"] = next(iter(TASKS.values()))\n')
    points.write_text("[vl.tasks]\ncolours = colours:TASKS\n")
    with pytest.raises(vl.ConfigError, match=r"'colours' of vl\.tasks has a task 'scenes'"):
        find_tasks()
