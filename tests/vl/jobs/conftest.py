from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good images of widths 1 to 12 and a broken one, in nested folders."""
    folder = tmp_path_factory.mktemp("archive")
    for width in range(1, 13):
        path = folder / f"shelf{width % 3}" / f"{width:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (width, 5)).save(path)
    (folder / "shelf1" / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not an image")
    (folder / "shelf0" / "._01.png").write_bytes(b"a dot file")
    return folder
