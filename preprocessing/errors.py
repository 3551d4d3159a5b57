"""What can be wrong with what the user gave us."""

from __future__ import annotations


class Error(Exception):
    """Base of every error that this toolkit reports to its user; the message names the cause and the fix."""


class ImageError(Error):
    """An image cannot be read: missing, not an image, truncated, empty, too large, or of the wrong type."""


class InputError(Error):
    """Messages, a chat template or a tokenizer file that cannot be used as given."""


def brief(value: object) -> str:
    """A value as messages show it: its `repr`, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
