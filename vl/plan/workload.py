"""What a plan is for: how many sequences of which length, and their images."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vl.config import VLConfig
from vl.engine.config import EngineConfig, shown, whole
from vl.errors import ConfigError

LIMIT = 2**40  # tokens, beyond which nothing could be meant
TILES_AT_A_TIME = 64  # of `VisionEncoder.forward` and the engine


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences that run at once, and how they are read.

    Attributes:
        context: tokens of each sequence, prompt and answer; of text, where it has images.
        batch: sequences that run at once.
        images: of each sequence; `image_tokens` and `image_tiles` are those of one.
        prefill_tokens, page_size, host_cache_tokens: as of `vl.engine.EngineConfig`.

    Raises:
        ConfigError: if a number is not whole, below 1 (of images and host_cache_tokens: 0), or beyond anything.
    """

    context: int = 32768
    batch: int = 1
    images: int = 0
    image_tokens: int = 0
    image_tiles: int = 0
    prefill_tokens: int = EngineConfig.prefill_tokens
    page_size: int = EngineConfig.page_size
    host_cache_tokens: int = EngineConfig.host_cache_tokens

    @classmethod
    def of(cls, engine: EngineConfig) -> Workload:
        """As many sequences as an engine runs at once, which fill its cache."""
        return cls(
            context=max(1, (engine.cache_tokens + engine.host_cache_tokens) // engine.max_batch_size),
            batch=engine.max_batch_size,
            prefill_tokens=engine.prefill_tokens,
            page_size=engine.page_size,
            host_cache_tokens=engine.host_cache_tokens,
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            name, given = field.name, getattr(self, field.name)
            least, value = int(name in ("context", "batch", "prefill_tokens", "page_size")), whole(given)
            if value is None or not least <= value <= LIMIT:
                raise ConfigError(f"{name} must be a whole number from {least} to {LIMIT:,}, not {shown(given)}")
            object.__setattr__(self, name, value)
        if self.batch * self.tokens > LIMIT:
            raise ConfigError(f"{self.batch:,} sequences of {self.tokens:,} tokens are beyond any machine")

    @property
    def tokens(self) -> int:
        """Of each sequence, images included."""
        return self.context + self.images * self.image_tokens

    @property
    def chunk(self) -> int:
        """Tokens of a pass over prompts."""
        return min(self.prefill_tokens, self.batch * self.tokens)

    def pages(self, tokens: int) -> int:
        """Of all sequences, if each has so many tokens."""
        return self.batch * -(-tokens // self.page_size)

    @property
    def host_pages(self) -> int:
        """Pages in host memory."""
        return -(-self.host_cache_tokens // self.page_size)

    def near(self, tokens: int) -> int:
        """Pages on a device, if each sequence has so many tokens: what the host does not take."""
        return max(1, self.pages(tokens) - self.host_pages)


def image_cost(config: VLConfig, width: int, height: int) -> tuple[int, int]:
    """Tokens and tiles of an image of so many pixels.

    Raises:
        ConfigError: if the model takes no images, or the image has no pixels.
    """
    if config.vision is None:
        raise ConfigError("this model takes no images: leave them out, or plan for a vision model")
    if not (0 < width <= LIMIT and 0 < height <= LIMIT):
        raise ConfigError(f"an image cannot be {width} x {height} pixels")
    from preprocessing.patcher import Patcher

    grid = Patcher(config.pinpoints, config.vision.image_size, config.vision.patch_size).grid(width, height)
    return grid.tokens, grid.tiles
