"""Batch captioning: many images in, one JSON row each out, safe to kill and to run again.

Example:

    tally = vl.caption_images(vl.load(), ["archive/"], "captions.jsonl", prompt="What is in this picture?")
"""

from vl.jobs.beside import Beside
from vl.jobs.captioning import OnRow, Tally, caption_images, caption_rows, settings_of, with_texts, write_rows
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.outputs import Rows, check_output, open_rows
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import JobError, Row, RowFile, check_out, encode_row
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
    "write_rows",
]
