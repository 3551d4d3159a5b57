"""Engines on a real Ray of this machine: the rows of one engine here, each once, though a worker is killed midway."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vl
from vl.engine import SamplingParams
from vl.errors import DeviceError, InputError
from vl.jobs import caption_images, open_rows, write_rows
from vl.jobs.captioning import settings_of_model
from vl.jobs.sources.names import Picture

from .fakes import read

ray = pytest.importorskip("ray", reason="needs ray[data]")
parquet = pytest.importorskip("pyarrow.parquet")

SAMPLING: dict[str, Any] = {"max_new_tokens": 4}


def init() -> None:
    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers' worth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it ends workers when others fill the memory
        try:
            init()
        except Exception:  # it gives itself 30 s, which may be too few beside other processes
            ray.shutdown()
            init()
        yield
        ray.shutdown()


def untimed(path: Path) -> list[dict[str, Any]]:
    """Rows by image, without what differs from run to run."""
    return sorted((row | {"seconds": None} for row in read(path)), key=lambda row: row["image"])


def test_rows_are_those_of_one_engine_though_a_worker_is_killed(
    archive: Path, tiny_model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vl.jobs import ray as jobs_ray
    from vl.jobs.ray import RayEngines

    monkeypatch.setattr(jobs_ray, "BLOCK", 2)
    monkeypatch.setattr(jobs_ray, "WINDOW_SOURCES", 9)
    sources: list[Any] = [str(path) for path in sorted(archive.glob("**/*.[jp][pn]g")) if path.name[0] != "."]
    there, here = tmp_path / "ray.jsonl", tmp_path / "here.jsonl"
    marker, image = str(tmp_path / "killed"), sources[5]

    def killer() -> bytes:
        """An image whose first reader is killed while others are being answered."""
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return Path(image).read_bytes()
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with RayEngines(tiny_checkpoint, 2) as engines:
        made = {"model": str(tiny_checkpoint), "prompt": "What?"}
        settings = settings_of_model(engines, SamplingParams(**SAMPLING))
        assert settings == settings_of_model(tiny_model, SamplingParams(**SAMPLING))
        with open_rows(there, **made, settings=settings) as rows:
            pending = rows.pending([*sources[:5], Picture(sources[5], killer), *sources[6:]])
            tally = write_rows(engines, pending, rows, batch_size=1, **SAMPLING)
        assert os.path.exists(marker)
        assert (tally.captions, tally.errors) == (12, 1)
        assert caption_images(engines, sources, there, prompt="What?", **SAMPLING).skipped == 13
    caption_images(tiny_model, sources, here, prompt="What?", **SAMPLING)
    assert untimed(there) == untimed(here)


def test_forms_templates_and_duplicates_are_those_of_one_engine(
    archive: Path, tiny_model: vl.MiniMaxVL, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts of a table's columns, answers held to a schema, an image twice, a row with nothing in a column.

    The table and an image are named as seen from a folder in which Ray was not started.
    """
    from vl.jobs.ray import RayEngines

    monkeypatch.chdir(tmp_path)

    images = [*sorted(archive.glob("*/0[1-5].png")), archive / "shelf1" / "broken.jpg"]
    kinds = ["cat", "dog", "", "cat", "fox", "cow", "cat"]
    table = tmp_path / "table.csv"
    (tmp_path / "again.png").write_bytes(images[0].read_bytes())
    lines = [f"{path},{kind}\n" for path, kind in zip([*images, "again.png"], kinds, strict=True)]
    table.write_text("".join(["image,kind\n", *lines]))
    options: dict[str, Any] = {
        "prompt": {"short": "Is it a {kind}?", "long": "What does the {kind} do?"},
        "schema": {"properties": {"n": {"enum": [1, 22]}}, "required": ["n"]},
        "max_new_tokens": 60,
    }
    with RayEngines(tiny_checkpoint, 1) as engines:
        tally = caption_images(engines, [table.name], tmp_path / "ray.parquet", **options)
    caption_images(tiny_model, [table.name], tmp_path / "here.parquet", **options)
    there, here = (
        sorted(parquet.read_table(tmp_path / name).drop(["seconds"]).to_pylist(), key=lambda row: row["image"])
        for name in ("ray.parquet", "here.parquet")
    )
    assert there == here
    good = [row for row in here if row["error"] is None]
    assert (tally.captions, tally.errors, len(good)) == (5, 2, 5), [row["error"] for row in here]
    assert {row[column] for row in good for column in ("short_n", "long_n")} <= {1, 22}
    assert len({row["digest"] for row in good}) == 4


def test_what_is_wrong_is_said(
    tiny_text_checkpoint: Path, tiny_checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    from vl.jobs.ray import RayEngines

    with RayEngines(tiny_text_checkpoint) as engines, pytest.raises(InputError, match="text-only"):
        caption_images(engines, [archive], tmp_path / "out.jsonl", **SAMPLING)
    with pytest.raises(DeviceError, match="Ray's cluster has 0"):
        RayEngines(tiny_checkpoint, 2, devices=1).__enter__()
