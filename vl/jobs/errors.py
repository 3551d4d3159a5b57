"""What is wrong with a job, and not with an image."""

from __future__ import annotations

from vl.errors import Error


class JobError(Error):
    """The output of a job cannot be used: it is locked, foreign, of another run, or cannot be written."""
