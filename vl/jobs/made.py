"""What rows were made with: model, prompt and settings. Those of another run are not mixed with this one's unasked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vl.jobs.duplicates import Row
from vl.jobs.errors import JobError
from vl.jobs.prompts import CAPTION, Prompts

SENT = "max_tokens"
"""A setting of rows that a server made, by the name under which it is sent. Others have `max_new_tokens`."""


def made_with(model: str, prompts: Prompts, settings: Mapping[str, Any] | None) -> Row:
    """What `check_run` holds rows to."""
    return {"model": model, "prompt": prompts.told(), "settings": dict(settings or {}) | prompts.settings}


def made_of(rows: Iterable[Row]) -> list[Row]:
    """What rows were made with, as `made_with` has it, each once."""
    found: list[Row] = []
    for row in rows:
        settings = row.get("settings") or {}
        prompt = settings.get("template", row.get("prompt"))
        made = {"model": row.get("model"), "prompt": prompt, "settings": settings}
        if made not in found:
            found.append(made)
    return found


def check_run(path: Path | str, row: Row, made: Row, mix: bool = False) -> None:
    """Hold a row to the `model`, `prompt` and `settings` of this run. Rows of earlier versions have no settings.

    Args:
        mix: only what rows are must be the same: the columns of the answers, and whether the prompt is their own.

    Raises:
        JobError: naming the first that differs.
    """
    settings = row.get("settings") or {}
    prompt = settings.get("template", row.get("prompt"))
    form, wanted_form = settings.get("schema"), made["settings"].get("schema")  # which has columns, too
    own_prompts = ("template" in settings) == ("template" in made["settings"])
    alike = _columns(prompt) == _columns(made["prompt"]) and own_prompts and form == wanted_form
    if mix and alike:
        return
    given = {"model": (row.get("model"), made["model"]), "prompt": (prompt, made["prompt"])}
    given |= {"schema": (form, wanted_form)}
    writers = _writer(settings), _writer(made["settings"])
    given |= {} if None in writers else {"engine": writers}
    given |= {name: (settings[name], wanted) for name, wanted in made["settings"].items() if name in settings}
    for name, (found, wanted) in given.items():
        if found != wanted:
            told = "keep them beside the new ones with --mix, " if alike else ""
            raise JobError(
                f"{path} holds captions made with {name} {found!r}, not {wanted!r}. "
                f"Use that {name} to continue it, choose another output file, {told}or start again with --overwrite"
            )


def _writer(settings: Mapping[str, Any]) -> str | None:
    """Who wrote a caption, as far as settings tell: of a server's weights nothing is known, so it is another."""
    return "a server" if SENT in settings else "a model" if "max_new_tokens" in settings else None


def _columns(prompt: object) -> list[str]:
    """Of the answers to it."""
    return list(prompt) if isinstance(prompt, dict) else [CAPTION]
