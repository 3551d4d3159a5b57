"""What the page says: layouts, progress, figures and errors, as short HTML notes."""

from __future__ import annotations

from html import escape
from typing import Literal

from preprocessing import Grid
from vl.engine import FinishReason, Timings, Usage

Kind = Literal["plain", "busy", "error"]


def note(text: str, kind: Kind = "plain") -> str:
    """A line of text for the page; screen readers announce it, errors at once."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="note {kind}" role="{role}">{escape(text)}</p>' if text else ""


def describe_grid(grid: Grid) -> str:
    """For example `1920 × 1080 → 2016 × 1008, 18 tiles + thumbnail, 9,864 tokens`."""
    width, height = grid.resolution
    return (
        f"{grid.width} × {grid.height} → {width} × {height}, "
        f"{count(grid.tiles - 1, 'tile')} + thumbnail, {count(grid.tokens, 'token')}"
    )


def describe_answer(finish: FinishReason | None, usage: Usage, timings: Timings) -> str:
    """Token counts, speed and where the time went; `finish` is None if the user stopped the answer."""
    total = timings.preprocess + timings.vision + timings.prefill + timings.decode
    head = f"{count(usage.completion_tokens, 'token')} in {duration(total)}"
    if usage.completion_tokens > 1 and timings.decode > 0:
        # The first token comes out of prefill.
        head += f" ({(usage.completion_tokens - 1) / timings.decode:.1f} tok/s)"
    head += {"stop": "", "length": ", cut at the token limit", None: ", stopped"}[finish]
    prompt = f"prompt {count(usage.prompt_tokens, 'token')}, {usage.image_tokens:,} of the image"
    stages = {name: getattr(timings, name) for name in ("preprocess", "vision", "prefill", "decode")}
    return " · ".join([head, prompt, *(f"{name} {duration(seconds)}" for name, seconds in stages.items())])


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
