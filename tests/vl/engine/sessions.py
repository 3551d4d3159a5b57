"""What tests of sessions read and ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

import vl
from vl.engine import Engine

TEXT = "A red circle at the top left and a blue square in the center. " * 6
QUESTIONS = ["Where is it?", "What is red?", "Hello"]
SMALL = {"prefill_tokens": 32, "page_size": 8, "cache_tokens": 400, "max_batch_size": 3}
NEW: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.3, "seed": 4}


def document(text: str = TEXT, images: int = 0) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": Image.new("RGB", (40, 30 + 7 * n), (200, 9 * n, 30))} for n in range(images)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def load(folder: Path, **options: int) -> vl.MiniMaxVL:
    return vl.load(folder, device="cpu", **{**SMALL, **options})


def answers(model: vl.MiniMaxVL, read: list[dict[str, Any]], questions: list[str] = QUESTIONS) -> list[str]:
    found = [model.chat([*read, *ask(question)], **NEW) for question in questions]
    assert len(set(found)) > 1
    return found


def used_pages(model: vl.MiniMaxVL) -> int:
    """Pages of the cache that are neither free nor would be given up for others."""
    engine = model.engine
    assert isinstance(engine, Engine)
    engine.step()
    cache = engine._cache()
    return cache.pages - cache.free_pages - cache.idle_pages
