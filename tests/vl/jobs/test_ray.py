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

SAMPLING: dict[str, Any] = {"max_new_tokens": 4}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers' worth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
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


def test_what_is_wrong_is_said(
    tiny_text_checkpoint: Path, tiny_checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    from vl.jobs.ray import RayEngines

    with RayEngines(tiny_text_checkpoint) as engines, pytest.raises(InputError, match="text-only"):
        caption_images(engines, [archive], tmp_path / "out.jsonl", **SAMPLING)
    with pytest.raises(DeviceError, match="Ray's cluster has 0"):
        RayEngines(tiny_checkpoint, 2, devices=1).__enter__()
