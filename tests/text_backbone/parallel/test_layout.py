"""What each rank holds, and what cannot be shared out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone import MiniMaxText, TextConfig, released_shapes
from text_backbone.parallel import PLACEMENTS, Layout
from text_backbone.quantization import quantize_backbone

RELEASED = TextConfig()


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("placement", [name for name, shared in PLACEMENTS.items() if shared])
def test_every_value_of_the_released_model_is_somewhere(placement: str, ranks: int) -> None:
    """Each tensor is whole on every rank, one rank's alone, or in parts that follow each other."""
    layouts = [Layout(RELEASED, placement, rank, ranks) for rank in range(ranks)]
    held = [0] * ranks
    for name, shape in released_shapes(RELEASED):
        owners = {layout.owner(name) for layout in layouts}
        assert len(owners) == 1
        (owner,) = owners
        if owner is not None:
            held[owner] += math.prod(shape)
            continue
        local = local_shape(layouts[0], name, shape)
        parts = [layout.part(name, local) for layout in layouts]
        whole = [part for part in parts if part is None]
        assert len(whole) in (0, ranks)
        for rank, part in enumerate(parts):
            held[rank] += math.prod(shape if part is None else part.shape)
            assert part is None or part.whole == shape
        ranges = [part.ranges for part in parts if part is not None]
        for before, after in itertools.pairwise(ranges):
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
            assert all(a == b or a[1] == b[0] for a, b in zip(before, after, strict=True))
    total = sum(math.prod(shape) for _, shape in released_shapes(RELEASED))
    # Every rank has routers and norms, and the two kinds of layers are not of one size.
    assert total / ranks <= max(held) < total / ranks * 1.002


def local_shape(layout: Layout, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of one of equal parts, found without the layout: the released model's vocabulary is shared evenly too."""
    part = layout.part(name, shape)
    if part is None:
        return shape
    (dim,) = (i for i, r in enumerate(part.ranges) if r != (0, part.whole[i]))
    return tuple(size // layout.ranks if i == dim else size for i, size in enumerate(shape))


@settings(deadline=None)
@given(size=st.integers(1, 300), ranks=st.integers(1, 16))
def test_shares_follow_each_other_and_are_equal_to_within_one(size: int, ranks: int) -> None:
    layout = Layout(RELEASED, "layers", 0, ranks)
    shares = [layout.share(size, rank) for rank in range(ranks)]
    assert shares[0][0] == 0
    assert shares[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_the_cache_of_a_rank_is_of_its_heads_or_layers() -> None:
    tensor, layers = (Layout(RELEASED, placement, 1, 4).local for placement in ("tensor", "layers"))
    assert (tensor.num_attention_heads, tensor.num_key_value_heads, tensor.num_hidden_layers) == (16, 2, 80)
    assert (layers.num_attention_heads, layers.num_key_value_heads) == (64, 8)
    assert layers.attn_type_list == RELEASED.attn_type_list[20:40]


@pytest.mark.parametrize(
    ("placement", "ranks", "words"),
    [
        ("tensor", 16, r"num_key_value_heads \(8\) to be a multiple of the ranks \(16\)"),
        ("expert", 3, r"num_key_value_heads \(8\) to be a multiple of the ranks \(3\)"),
        ("layers", 81, r"num_hidden_layers \(80\) to be at least the ranks \(81\)"),
        ("pipeline", 2, "'pipeline' is not known: use 'tensor', 'expert', 'layers'"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(placement: str, ranks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layout(RELEASED, placement, 0, ranks)


def test_inner_units_and_experts_have_to_suffice() -> None:
    with pytest.raises(ValueError, match=r"intermediate_size \(9\) to be a multiple"):
        Layout(TextConfig(intermediate_size=9), "tensor", 0, 2)
    Layout(TextConfig(intermediate_size=9), "expert", 0, 2)
    with pytest.raises(ValueError, match=r"num_local_experts \(3\) to be at least"):
        Layout(TextConfig(num_local_experts=3), "expert", 0, 4)
    with pytest.raises(ValueError, match=r"vocab_size \(2\) to be at least"):
        Layout(TextConfig(vocab_size=2), "layers", 0, 4)


def test_a_format_that_parts_do_not_fit_names_the_columns() -> None:
    """Half of the inner units are 96 columns of w2, one and a half of NF4's blocks."""
    config = TextConfig(intermediate_size=192, attn_type_list=(0, 1))
    layout = Layout(config, "tensor", 0, 2)
    for form in ("int8", "fp8"):
        quantize_backbone(MiniMaxText(layout.local, device="meta"), form, layout.part)
    with pytest.raises(ValueError, match="columns 0 to 96 of 192 are not whole groups of 64"):
        quantize_backbone(MiniMaxText(layout.local, device="meta"), "nf4", layout.part)
    whole = Layout(config, "expert", 0, 2)
    quantize_backbone(MiniMaxText(whole.local, device="meta"), "nf4", whole.part)
