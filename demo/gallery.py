"""The examples of the page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class GalleryItem:
    """An image, what to call it, and a question about it."""

    path: Path
    label: str
    question: str


def examples(folder: Path | None = None) -> list[GalleryItem]:
    """The images and prompts of `examples.jsonl` of the folder, in its order, labelled after their files."""
    folder = folder or FOLDER
    lines = (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [GalleryItem(folder / record["image"], label_of(record["image"]), record["prompt"]) for record in records]


def label_of(name: str) -> str:
    """`tiny-scene-64px.png` -> `Tiny scene, 64 px`."""
    words = Path(name).stem.replace("-", " ")
    return re.sub(r" (\d+)px$", r", \1 px", words).capitalize()
