"""A prompt that has been checked, and where its images lie."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from preprocessing import Grid, Inputs
from preprocessing.cut import image_digest
from preprocessing.lazy import LazyTiles
from vision_encoder.packing import check_grid
from vl.config import VLConfig
from vl.errors import InputError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt of one model, all on the host. The tiles of lazy images are made when they are encoded.

    Attributes:
        input_ids: int64 [T].
        tiles: uint8 [n, 3, S, S], the images' tiles one after the other.
        grids: one per image.
        places: int64 [image tokens], where in the prompt each of the images' tokens stands; rising.
        ends: of each image, how many of `places` are its own or those of images before it.
        tile_ends: the same of `tiles`.
    """

    input_ids: Tensor
    tiles: Tensor | LazyTiles
    grids: Sequence[Grid]
    places: Tensor
    ends: Sequence[int]
    tile_ends: Sequence[int]
    _digests: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, inputs: Inputs, config: VLConfig, name: str = "") -> Prompt:
        """Check `inputs` against the model that they are for.

        Raises:
            InputError: if the ids or the tiles are not of the shape and type that the model takes, an id is not in its
                vocabulary, the tiles are not those of the grids, or the placeholders not as many as the images' tokens.
        """
        if not isinstance(inputs, Inputs):
            raise InputError(f"a prompt must be messages or what processor makes of them, not {type(inputs).__name__}")
        ids, grids = _checked_ids(inputs.input_ids, config.text.vocab_size), tuple(inputs.grids)
        tiles = _checked_tiles(inputs.tiles, grids, config, name)
        token = config.image_token_index
        places = torch.empty(0, dtype=torch.int64) if token is None else (ids == token).nonzero().flatten()
        expected = sum(grid.tokens for grid in grids)
        if len(places) != expected:
            raise InputError(
                f"the images make {expected} tokens, but input_ids has {len(places)} placeholders: "
                "make them with processor"
            )
        ends = list(accumulate(grid.tokens for grid in grids))
        return cls(ids, tiles, grids, places, ends, list(accumulate(grid.tiles for grid in grids)))

    def __len__(self) -> int:
        return len(self.input_ids)

    def images_in(self, start: int, stop: int) -> range:
        """The images that have tokens among those from `start` to `stop`."""
        first, last = self.ranks_in(start, stop)
        if first == last:
            return range(0)
        return range(bisect_right(self.ends, first), bisect_right(self.ends, last - 1) + 1)

    def ranks_in(self, start: int, stop: int) -> tuple[int, int]:
        """The part of `places` that lies from `start` to `stop`."""
        first, last = torch.searchsorted(self.places, torch.tensor([start, stop])).tolist()
        return first, last

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of each image, where in the prompt its first token is, and how many tokens there are up to its last."""
        return [
            (int(self.places[end - grid.tokens]), int(self.places[end - 1]) + 1)
            for end, grid in zip(self.ends, self.grids, strict=True)
        ]

    @property
    def digests(self) -> list[bytes]:
        """Of each image, of all that its features depend on: its tiles and how they lie. Any thread may ask."""
        for image in range(len(self.grids)):
            if image not in self._digests:
                self._digests[image] = self._digest(image)
        return [self._digests[image] for image in range(len(self.grids))]

    @property
    def hashed(self) -> bool:
        """Whether `digests` costs nothing: each image was cut, and has its own."""
        if not isinstance(self.tiles, LazyTiles):
            return not self.grids
        cut = [self.tiles.cut(image) for image in range(len(self.grids))]
        return all(image is not None and image.hashed for image in cut)

    def _digest(self, image: int) -> bytes:
        if isinstance(self.tiles, LazyTiles):
            if cut := self.tiles.cut(image):
                return cut.digest
            if lazy := self.tiles.lazy(image):
                return hashlib.sha256(repr(self.grids[image]).encode() + b"lazy" + lazy.digest).digest()
        return image_digest(self.tiles_of(image), self.grids[image])

    def until(self, tokens: int) -> Prompt:
        """Its first `tokens` tokens; an image that is cut there is in it as far as it goes."""
        return replace(self, input_ids=self.input_ids[:tokens])

    def behind(self, ids: Tensor) -> Prompt:
        """The prompt after the tokens `ids`, whose images, if they have any, were read: they are not in it."""
        return replace(self, input_ids=torch.cat((ids, self.input_ids)), places=self.places + len(ids))

    def tiles_of(self, image: int) -> Tensor:
        """uint8 [n, 3, S, S] of one image."""
        return self.tiles[self.tile_ends[image] - self.grids[image].tiles : self.tile_ends[image]]


def _checked_ids(ids: object, vocabulary: int) -> Tensor:
    """`ids` on the host."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        found = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"input_ids must be int64 [tokens], not {found}: make them with processor")
    if not len(ids):
        raise InputError("the prompt is empty: give at least a token to go on from")
    least, most = (int(bound) for bound in ids.aminmax())
    if least < 0 or most >= vocabulary:
        wrong = least if least < 0 else most
        raise InputError(
            f"input_ids holds {wrong}, but the model's vocabulary ends at {vocabulary - 1}: use its own tokenizer"
        )
    return ids.cpu()


def _checked_tiles(tiles: object, grids: Sequence[Grid], config: VLConfig, name: str) -> Tensor | LazyTiles:
    """`tiles` on the host, known to be those of `grids`."""
    if config.vision is None or config.image_token_index is None:
        if grids:
            raise InputError(f"{name or 'this model'} is a text-only checkpoint and takes no images")
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    side, found = config.vision.image_size, type(tiles).__name__
    if isinstance(tiles, Tensor):
        found = f"{tiles.dtype} {list(tiles.shape)}"
        if not grids and not tiles.numel():
            return torch.empty(0, 3, side, side, dtype=torch.uint8)
    if not (isinstance(tiles, LazyTiles) and tiles.side == side) and not (
        isinstance(tiles, Tensor) and tiles.dtype == torch.uint8 and tuple(tiles.shape[1:]) == (3, side, side)
    ):
        raise InputError(f"tiles must be uint8 [n, 3, {side}, {side}], not {found}: make them with processor")
    try:
        for index, grid in enumerate(grids):
            check_grid(grid, config.vision.patches, index)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{error}: make grids with processor") from None
    expected = sum(grid.tiles for grid in grids)
    if len(tiles) != expected:
        raise InputError(f"the {len(grids)} grids describe {expected} tiles, but tiles has {len(tiles)}")
    return tiles.cpu() if isinstance(tiles, Tensor) else tiles
