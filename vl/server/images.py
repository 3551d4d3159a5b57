"""Images that requests bring or name: read here, so that nothing in a request is ever taken for a path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from preprocessing import Conversation, ImageSource, image_size
from preprocessing.allowed import Allowed
from preprocessing.chat import IMAGE_PARTS
from preprocessing.fetch import fetch
from vl.errors import ImageError, InputError
from vl.server.config import ServerConfig
from vl.server.errors import told

_SOURCES = ("image", "image_url", "url", "path")
_KEYS = frozenset(
    # What says which image it is; and what makes no difference.
    ("type", *_SOURCES, "detail", "format", "mime_type", "cache_control", "uuid")
)


def with_images(conversation: Conversation, config: ServerConfig) -> Conversation:
    """The conversation with the bytes of its images.

    Raises ImageError or InputError naming the image that is missing, too large, of a host that is not asked, or one too
    many.
    """
    if len(conversation.images) > config.max_images:
        raise InputError(f"{len(conversation.images)} images are more than the {config.max_images} of a request")
    images: list[ImageSource] = [
        _read(source, f"image {number}", config) for number, source in enumerate(conversation.images, 1)
    ]
    return replace(conversation, images=images)


def _read(source: Any, label: str, config: ServerConfig) -> bytes:
    if not isinstance(source, str):
        raise ImageError(f"{label}: give a data URL, such as data:image/png;base64,..., not {told(source)}")
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        if not config.image_hosts:
            raise ImageError(f"{label}: this server fetches no images from URLs; send it as a data URL")
        content = fetch(source, label, Allowed(config.image_hosts, config.image_seconds, config.image_bytes))
    elif scheme.startswith("data:"):
        content = fetch(source, label)
    else:
        raise ImageError(f"{label}: expected a data URL, such as data:image/png;base64,..., not {source!r:.80}")
    image_size(content, name=label, max_pixels=config.max_pixels)  # before any pixels are made
    return content


def check_image_parts(messages: list[Any]) -> None:
    """Raises InputError if an image is asked to be looked at in another way than all are."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") not in IMAGE_PARTS:
                continue
            url = part.get("image_url")
            for given in (part, url if isinstance(url, dict) else {}):  # some write detail beside the URL
                if (detail := given.get("detail")) not in (None, "auto", "high"):
                    raise InputError(
                        f"detail {detail!r:.40} is not supported: images are read in full; send a smaller one"
                    )
                if len(sources := [name for name in _SOURCES if given.get(name) is not None]) > 1:
                    raise InputError(f"an image has {' and '.join(sources)}, of which one is read: give one")
                unknown = sorted(name for name in given.keys() - _KEYS if given[name] is not None)
                if unknown:
                    raise InputError(f"{', '.join(unknown):.80} of an image is not known to this server: leave it out")
