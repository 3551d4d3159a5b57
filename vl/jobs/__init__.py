"""Batch captioning: many images in, one JSON row each out, safe to kill and to run again.

Example:

    tally = vl.caption_images(vl.load(), ["archive/"], "captions.jsonl", prompt="What is in this picture?")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Imported when they are first used: processes that only cut images need no model.
if TYPE_CHECKING:
    from vl.jobs.beside import Beside
    from vl.jobs.captioning import OnRow, Tally, caption_images, caption_rows, settings_of, with_texts, write_rows
    from vl.jobs.elsewhere import Elsewhere
    from vl.jobs.errors import JobError
    from vl.jobs.outputs import Rows, check_output, open_rows
    from vl.jobs.prompts import Prompt, Prompts
    from vl.jobs.report import write_report
    from vl.jobs.rowfile import Row, RowFile, check_out, encode_row
    from vl.jobs.schema import Schema, SchemaSource
    from vl.jobs.sources import Picture, Source, Tell, expand_sources, is_table, row_key, source_key, work_key

__all__ = [
    "Beside",
    "Elsewhere",
    "JobError",
    "OnRow",
    "Picture",
    "Prompt",
    "Prompts",
    "Row",
    "RowFile",
    "Rows",
    "Schema",
    "SchemaSource",
    "Source",
    "Tally",
    "Tell",
    "caption_images",
    "caption_rows",
    "check_out",
    "check_output",
    "encode_row",
    "expand_sources",
    "is_table",
    "open_rows",
    "row_key",
    "settings_of",
    "source_key",
    "with_texts",
    "work_key",
    "write_report",
    "write_rows",
]

_HOMES = {
    "vl.jobs.beside": ("Beside",),
    "vl.jobs.captioning": (
        "OnRow",
        "Tally",
        "caption_images",
        "caption_rows",
        "settings_of",
        "with_texts",
        "write_rows",
    ),
    "vl.jobs.elsewhere": ("Elsewhere",),
    "vl.jobs.errors": ("JobError",),
    "vl.jobs.outputs": (
        "Rows",
        "check_output",
        "open_rows",
    ),
    "vl.jobs.prompts": (
        "Prompt",
        "Prompts",
    ),
    "vl.jobs.report": ("write_report",),
    "vl.jobs.rowfile": (
        "Row",
        "RowFile",
        "check_out",
        "encode_row",
    ),
    "vl.jobs.schema": (
        "Schema",
        "SchemaSource",
    ),
    "vl.jobs.sources": (
        "Picture",
        "Source",
        "Tell",
        "expand_sources",
        "is_table",
        "row_key",
        "source_key",
        "work_key",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'vl.jobs' has no attribute {name!r}")
