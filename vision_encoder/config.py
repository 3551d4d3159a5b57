"""Shape of the vision tower and its projector."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionConfig:
    """Hyper-parameters of the ViT and the projector; the defaults are the released ViT-L/14 at 336 px (303 M).

    Field names follow the `vision_config` of the released `config.json` (CLIP vision schema). `text_hidden_size` is
    the width of the text backbone that the projector feeds. `image_mean` and `image_std` are CLIP's, for pixel values
    in 0..1, and are applied on the device.

    Raises:
        ValueError: if the widths do not fit together or the activation is unknown.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    text_hidden_size: int = 6144
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported: use 'gelu' or 'quick_gelu'")

    @property
    def patches(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size
