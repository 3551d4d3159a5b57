"""A part of a quantised matrix is that part of the whole quantised matrix, whichever way it is loaded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone.part import Part
from text_backbone.quantization import FORMATS, Quantized, nf4
from text_backbone.quantization.files import packed, stored_slots

FORMAT = pytest.mark.parametrize("form", FORMATS)
ROWS, COLUMNS = 70, 512  # 560 blocks: nested blocks of 256 begin inside of rows and of parts

ranges = st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda r: r[0] < r[1])


def room(form: str, part: Part, lead: tuple[int, ...] = ()) -> Quantized:
    return Quantized(form, lead, *part.shape, device="cpu", dtype=torch.float32, part=part)


@FORMAT
@settings(deadline=None, max_examples=30)
@given(rows=st.tuples(st.integers(0, 69), st.integers(1, 70)).filter(lambda r: r[0] < r[1]), blocks=ranges)
def test_a_part_equals_that_part_of_the_whole(form: str, rows: tuple[int, int], blocks: tuple[int, int]) -> None:
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    part = Part((ROWS, COLUMNS), (rows, (64 * blocks[0], 64 * blocks[1])))
    whole = Quantized.of(matrix, form)
    quantised, copied = room(form, part), room(form, part)
    quantised.slot().load(matrix)
    slots = stored_slots(copied, ())
    for suffix, tensor in packed(matrix, form).items():
        slots[suffix].load(tensor)
    for stored in (quantised, copied):
        assert torch.equal(stored.read(), part.of(whole.read()))
    # Of what is in files each part is where it says, which puts the whole together again.
    for suffix, slot in slots.items():
        tensor = packed(matrix, form)[suffix]
        assert slot.shape in (tuple(tensor.shape), (-1,))
        view = tensor if slot.part is None else slot.part(tensor)
        assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        assert torch.equal(slot.read().reshape(view.shape).view(torch.uint8), view.view(torch.uint8)), suffix


def test_the_blocks_of_a_part_have_their_numbers_in_the_whole() -> None:
    numbers = torch.arange(ROWS * COLUMNS // 64).view(ROWS, COLUMNS // 64)
    part = Part((ROWS, COLUMNS), ((11, 40), (128, 384)))
    stored = room("nf4", part)
    row, block = torch.arange(29)[:, None], torch.arange(4)
    assert torch.equal(stored.first + row * stored.stride + block, numbers[11:40, 2:6])
    whole = Quantized.of(torch.randn(ROWS, COLUMNS), "nf4")
    assert (whole.first, whole.stride) == (0, COLUMNS // 64)


@FORMAT
def test_parts_of_several_matrices(form: str) -> None:
    matrices = torch.randn(3, ROWS, COLUMNS)
    part = Part((ROWS, COLUMNS), ((35, 70), (256, 512)))
    stored, whole = room(form, part, (3,)), Quantized.of(matrices, form)
    for e in range(3):
        stored.slot((e,)).load(matrices[e])
    want = whole.read()[:, 35:, 256:]
    assert torch.equal(stored.read(), want)
    x = torch.randn(5, 256)
    torch.testing.assert_close(stored.linear((1,), x), Quantized.linear(stored, (), x).unflatten(-1, (3, -1))[:, 1])
    if form != "fp8":  # which rounds x
        torch.testing.assert_close(stored.linear((1,), x), x @ want[1].T)


@pytest.mark.parametrize("columns", [(0, 32), (32, 96), (96, 128)])
def test_nf4_is_split_between_blocks_only(columns: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        room("nf4", Part((8, 128), ((0, 8), columns)))
    with pytest.raises(ValueError, match="multiples of 64"):
        room("nf4", Part((8, 96), ((0, 4), (0, 96))))  # a row of the whole ends inside of a block
    assert nf4.BLOCK == 64


def test_a_part_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="not of the 3 x 64"):
        Quantized("int8", (), 3, 64, device="cpu", dtype=torch.float32, part=Part((8, 64), ((0, 4), (0, 64))))
