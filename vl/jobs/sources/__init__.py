"""Which images a job works on: files, folders, globs, tables, shards and URLs, one image at a time."""

from vl.jobs.sources.expand import Tell, expand_sources, is_table
from vl.jobs.sources.names import Picture, Source, source_key

__all__ = ["Picture", "Source", "Tell", "expand_sources", "is_table", "source_key"]
