"""Small data files for tests."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def picture(width: int = 40, height: int = 30, form: str = "PNG", **options: Any) -> bytes:
    data = BytesIO()
    Image.new("RGB", (width, height), (width % 256, height % 256, 7)).save(data, form, **options)
    return data.getvalue()


def talk(image: Any, answer: str = "A box.") -> dict[str, Any]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), "utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path
