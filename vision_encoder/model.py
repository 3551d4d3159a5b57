"""The vision encoder: uint8 tiles to image tokens in the text backbone's width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vision_encoder.config import VisionConfig
from vision_encoder.inference import applies, encode
from vision_encoder.packing import Grid, plan_packing, send
from vision_encoder.patches import Normalisation, TilePatchEmbed
from vision_encoder.projector import Projector
from vision_encoder.timm_parts import QuickGELU, VisionTransformer

Replay = Callable[[VisionTransformer, Tensor], Tensor | None]
"""What `inference.encode` answers, by a recording of it; None where there is none, and it has to run."""


class VisionEncoder(nn.Module):
    """ViT in CLIP layout, projector, and newline vector.

    The ViT has a class token, a LayerNorm before its first block and none after its last; its features are those of
    the last block without the class token. Attributes: `vit` (timm), `projector`, `image_newline` [text_hidden].

    Parameters are left uninitialised (or on `meta`): load a checkpoint through `released_tensors`, or call
    `init_weights`.

    Args:
        config: the shape.
        device: where the parameters live; `meta` allocates nothing.
        dtype: dtype of the parameters and of the output.
    """

    def __init__(
        self,
        config: VisionConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.text_hidden_size
        # Built on meta: timm and nn.Linear draw random weights that a checkpoint would overwrite at once.
        self.vit = build_vit(config, dtype)
        self.projector = Projector(config.hidden_size, width, device="meta", dtype=dtype)
        self.image_newline = nn.Parameter(torch.empty(width, device="meta", dtype=dtype))
        target = torch.get_default_device() if device is None else torch.device(device)
        if target.type != "meta":
            _allocate(self, target)

    def forward(
        self, tiles: Tensor, grids: Sequence[Grid], *, max_tiles: int = 64, replay: Replay | None = None
    ) -> Tensor:
        """Encode the tiles of all images of a batch.

        Args:
            tiles: uint8 [n, 3, S, S], for each image its thumbnail and then its tiles row by row; any device.
            grids: one per image, in the same order.
            max_tiles: tiles that go through the ViT at a time, which bounds the memory for activations.
            replay: asked first for the ViT's work on each of these batches of tiles.

        Returns:
            [sum of `grid.tokens`, text_hidden], the images' tokens one after the other.

        Raises:
            ValueError: if `tiles` does not have this shape and dtype, or does not match `grids`.
        """
        self._check(tiles, grids, max_tiles)
        with torch.cuda.device_of(self.image_newline):  # Triton launches on the current device
            return self._encode(tiles, grids, max_tiles, replay)

    def _encode(self, tiles: Tensor, grids: Sequence[Grid], max_tiles: int, replay: Replay | None) -> Tensor:
        device, patches = self.image_newline.device, self.config.patches**2
        plan = plan_packing(grids, self.config.patches)
        # Every token starts as a newline; the kept patches are then written over it, slice by slice.
        tokens = self.image_newline.expand(plan.tokens, -1).clone()  # [T, text_hidden]
        starts = torch.arange(0, tiles.shape[0] + max_tiles, max_tiles) * patches
        cuts = torch.searchsorted(plan.source, starts).tolist()
        source, target = send(plan.source, device), send(plan.target, device)
        for i, batch in enumerate(tiles.split(max_tiles) if len(grids) else ()):
            kept = slice(cuts[i], cuts[i + 1])
            features = self.features(batch.to(device, non_blocking=True), replay).flatten(0, 1)  # [n * patches, hidden]
            # Cropping first spares the projector the padding.
            cropped = features[source[kept] - i * max_tiles * patches]
            tokens.index_copy_(0, target[kept], self.projector(cropped).to(tokens.dtype))
        return tokens

    def features(self, tiles: Tensor, replay: Replay | None = None) -> Tensor:
        """Last-layer ViT features without the class token: uint8 [n, 3, S, S] to [n, patches**2, hidden]."""
        with torch.cuda.device_of(tiles):
            tokens = replay(self.vit, tiles) if replay else None
            if tokens is None and applies(self.vit, tiles):
                tokens = encode(self.vit, tiles)
            # [n, 1 + patches**2, hidden]
            features: Tensor = self.vit.forward_features(tiles) if tokens is None else self.vit.norm(tokens)
        return features[:, 1:]

    def _check(self, tiles: Tensor, grids: Sequence[Grid], max_tiles: int) -> None:
        side = self.config.image_size
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (3, side, side):
            raise ValueError(f"tiles must be uint8 [n, 3, {side}, {side}], got {tiles.dtype} {list(tiles.shape)}")
        expected = sum(grid.tiles for grid in grids)
        if tiles.shape[0] != expected:
            raise ValueError(f"the {len(grids)} grids describe {expected} tiles, but tiles has {tiles.shape[0]}")
        if max_tiles < 1:
            raise ValueError(f"max_tiles must be at least 1, got {max_tiles}")


def _allocate(root: nn.Module, device: torch.device) -> None:
    """What `root.to_empty(device=device)` does, without the `empty_like` of meta tensors, which imports sympy."""
    for module in root.modules():
        for name, given in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(given.shape, dtype=given.dtype, device=device)))


def build_vit(config: VisionConfig, dtype: torch.dtype | None = None) -> VisionTransformer:
    """timm's `vit_large_patch14_clip_336` at the sizes of `config`, on meta, without the final norm and the head."""
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        # timm truncates embed_dim * mlp_ratio; the half keeps rounding errors from losing one unit.
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        embed_layer=partial(TilePatchEmbed, normalisation=Normalisation(config.image_mean, config.image_std)),
        pre_norm=True,
        final_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        act_layer=QuickGELU if config.hidden_act == "quick_gelu" else nn.GELU,
        weight_init="skip",
        device="meta",
        dtype=dtype,
    )
