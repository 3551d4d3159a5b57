"""Which images a job works on: files, folders, globs, tables, shards and URLs, one image at a time."""

from vl.jobs.sources.expand import Tell, expand_sources, is_table, several
from vl.jobs.sources.names import Asked, Picture, Source, as_known, row_key, source_key, work_key

__all__ = [
    "Asked",
    "Picture",
    "Source",
    "Tell",
    "as_known",
    "expand_sources",
    "is_table",
    "row_key",
    "several",
    "source_key",
    "work_key",
]
