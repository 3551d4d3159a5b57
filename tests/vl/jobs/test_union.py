"""A job over odd images that is killed at random moments, and one on a full disk: each image has one row in the end."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from vl.jobs import JobError, caption_images

from .fakes import FakeModel, run
from .test_kill import start_child
from .union import check_union, kill_often, make_archive


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_killed_at_twenty_moments(tmp_path: Path, name: str) -> None:
    """2,000 images, 5% corrupt, 2% alike, in nine modes. `union.py` does it with more kills."""
    archive, out = tmp_path / "archive", tmp_path / name
    make_archive(archive, 2000)
    kills, _ = kill_often(archive, out, 20, 0.6)
    assert kills == 20
    caption_images(FakeModel(), [archive], out, batch_size=64)
    found = check_union(archive, out)
    assert found.total() == 2000
    assert 60 < found["errors"] < 140


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.wds"])
def test_a_full_disk(archive: Path, tmp_path: Path, name: str) -> None:
    """The system itself refuses to write more than so many bytes to a file; each run gets a little further."""
    out = tmp_path / name

    def full(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(JobError, match="run the same command again"):
            run(archive, out, batch_size=2)

    for limit in (0, 700, 2000, 3500):
        assert os.waitstatus_to_exitcode(os.waitpid(start_child(lambda limit=limit: full(limit)), 0)[1]) == 0  # type: ignore[misc]
    assert run(archive, out).images <= 13
    assert run(archive, out).skipped == 13
