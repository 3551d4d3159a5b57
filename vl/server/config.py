"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessing.allowed import names_hosts
from vl.errors import InputError
from vl.server.origins import is_origin

MIB = 2**20


@dataclass(frozen=True)
class ServerConfig:
    """The settings of a server.

    Attributes:
        names: that requests may call the model by; answers have the first.
        api_keys: one of which every request but for `/health` has to bring; none: anybody may ask.
        max_waiting: requests beyond those that run at once; more are told to come again later.
        max_body: bytes of a request.
        max_images: of a request; `max_pixels`: of each of them.
        max_tokens: of a prompt and its answer together.
        max_new_tokens: of an answer, and what it may have where the request does not say.
        max_answers: to one request.
        image_hosts: from which images are fetched where a request names their URL, as `preprocessing.allowed` has them.
        image_bytes, image_seconds: most that such an image may take.
        origins: of pages of other sites that may ask, as browsers write them (`https://app.example.com`); `*` for all.
    """

    names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_waiting: int = 128
    max_body: int = 64 * MIB
    max_images: int = 16
    max_pixels: int = 64_000_000
    max_tokens: int = 65536
    max_new_tokens: int = 4096
    max_answers: int = 8
    image_hosts: tuple[str, ...] = ()
    image_bytes: int = 20 * MIB
    image_seconds: float = 20.0
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError for names, hosts and origins that no request could have."""
        if not self.names or not all(name.strip() for name in self.names):
            raise InputError("the model's name is empty: give it one, which requests call it by")
        for host in self.image_hosts:
            if not names_hosts(host):
                raise InputError(
                    f"{host!r} is no host to fetch images from: write images.example.com, images.example.com:8080 or "
                    "*.example.com, without a scheme or path"
                )
        for origin in self.origins:
            if not is_origin(origin):
                raise InputError(
                    f"{origin!r} is no origin of a page: write https://app.example.com or http://localhost:3000 as a "
                    "browser does, in small letters, without a path, a slash at the end or the scheme's own port; or *"
                )
