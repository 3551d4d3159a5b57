"""How memory goes over many images: a job whose engine costs nothing.

    PYTHONPATH=. python -m tests.vl.jobs.memory --images 20000 --out captions.parquet

draws tiny images, captions them with a model that has no weights, and prints what the process holds on the way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from vl.jobs import caption_images

from .fakes import FakeModel


def held() -> float:
    """MiB of this process that are in memory now."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--out", default="captions.parquet")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for number in range(given.images):
            colour = (number & 255, number >> 8 & 255, 0)
            Image.new("RGB", (8, 8), colour).save(pictures / f"{number:06}.png")
        begun, tenth = time.monotonic(), max(given.images // 10, 1)

        def on_row(row: dict[str, Any], tally: Any) -> None:
            if tally.images % tenth == 0:
                print(f"{tally.images:,} images: {held():.0f} MiB, {time.monotonic() - begun:.0f} s", flush=True)

        caption_images(FakeModel(), [pictures], Path(folder) / given.out, on_row=on_row)
        print(f"at the end: {held():.0f} MiB")
