"""A job that is killed again and again: the union of all runs is exact.

    PYTHONPATH=. python -m tests.vl.jobs.union --kills 1000 --images 2000 --out captions.parquet

prints how many runs it took and how many rows there were after each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
from PIL import Image

from vl.jobs import caption_images, expand_sources, source_key

from .fakes import FakeModel
from .test_kill import start_child

MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F")


def make_archive(folder: Path, images: int, seed: int = 0) -> None:
    """Small images in odd modes; 5% of them corrupt, 2% the same as another one."""
    chosen = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(images):
        mode = MODES[number % len(MODES)]
        path = folder / f"{number:06}.{'tiff' if mode in ('CMYK', 'I;16', 'F') else 'png'}"
        kind = chosen.random()
        if kind < 0.05:
            path.with_name(f"{number:06}-corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(number % 50))
        elif kind < 0.07 and number:
            Image.new("RGB", (7, 7), "red").save(path.with_suffix(".png"))
        else:
            Image.new(mode, (1 + number % 40, 1 + number // 40 % 40)).save(path)


def killed_job(archive: Path, out: Path, seconds: float, **options: Any) -> bool:
    """A run that is killed after so long; whether it was before it ended."""
    child = start_child(lambda: caption_images(FakeModel(), [archive], out, batch_size=4, **options))
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def rows_of(out: Path) -> list[tuple[str, bool]]:
    """Images, and whether they are errors, as any reader finds them."""
    if out.suffix == ".parquet":
        if not list(out.glob("*.parquet")):
            return []
        query = f"SELECT image, error IS NOT NULL FROM '{out}/*.parquet'"
    else:
        columns = "{image: 'VARCHAR', error: 'VARCHAR'}"
        query = f"SELECT image, error IS NOT NULL FROM read_json('{out}', columns={columns})"
    return duckdb.sql(query).fetchall()


def check_union(archive: Path, out: Path) -> Counter[str]:
    """Exactly one row for each image. Returns how many are captions and errors."""
    rows = rows_of(out)
    names = sorted(source_key(source) for source in expand_sources([archive]))
    assert sorted(name for name, _ in rows) == names
    assert sorted(name for name, error in rows if error) == [name for name in names if name.endswith("-corrupt.png")]
    return Counter("errors" if error else "captions" for _, error in rows)


def kill_often(archive: Path, out: Path, kills: int, longest: float, seed: int = 1) -> tuple[int, int]:
    """Kill a job so often, at random moments, starting it over when it ends; returns kills and starts over."""
    moments, done, over = random.Random(seed), 0, 0
    while done < kills:
        if killed_job(archive, out, moments.uniform(0.0, longest)):
            done += 1
            names = [name for name, _ in rows_of(out)] if out.suffix == ".parquet" else []
            assert len(names) == len(set(names)), "no reader finds a row twice"
            continue
        check_union(archive, out)
        over += 1
        _remove(out)
    return done, over


def _remove(out: Path) -> None:
    for path in sorted(out.iterdir()) if out.is_dir() else [out]:
        path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", default="captions.parquet")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder) / "archive", Path(folder) / given.out
        make_archive(archive, given.images)
        begun = time.monotonic()
        kills, over = kill_often(archive, out, given.kills, 1.0)
        caption_images(FakeModel(), [archive], out)
        found = check_union(archive, out)
        print(f"{kills} kills, {over + 1} whole outputs, {dict(found)}, {time.monotonic() - begun:.0f} s: union exact")
