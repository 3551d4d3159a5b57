"""The examples of the page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Example:
    """An image, what to call it, and a question about it."""

    path: Path
    label: str
    question: str


def examples(question: str, folder: Path | None = None) -> list[Example]:
    """The images that `captions.json` of the folder names, in its order, labelled after their files."""
    folder = folder or FOLDER
    names = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return [Example(folder / name, label_of(name), question) for name in names]


def label_of(name: str) -> str:
    """`tiny-scene-64px.png` -> `Tiny scene, 64 px`."""
    words = Path(name).stem.replace("-", " ")
    return re.sub(r" (\d+)px$", r", \1 px", words).capitalize()
