from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.lightning import lightning_attention, lightning_recurrence, reference
from text_backbone.kernels.lightning.chunks import CHUNK
from text_backbone.lightning import decay_slopes


def naive(qkv: Tensor, slopes: Tensor, lengths: list[int], initial: Tensor | None, d: int) -> tuple[Tensor, Tensor]:
    """Token by token, as the recurrence is written, in float64."""
    heads = len(slopes)
    decay = torch.exp(-slopes.double())[:, None, None]
    outs, finals = [], []
    for i, rows in enumerate(qkv.double().split(lengths)):
        state = torch.zeros(heads, d, d, dtype=torch.float64) if initial is None else initial[i].double()
        for row in rows:
            q, k, v = F.silu(row).view(heads, 3, d).unbind(1)
            state = decay * state + k[:, :, None] * v[:, None, :]
            outs.append(torch.einsum("hk,hkv->hv", q, state).flatten())
        finals.append(state)
    return torch.stack(outs), torch.stack(finals)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    scale = want.abs().max().clamp(min=1e-30)
    assert ((got.double() - want).abs().max() / scale).item() < tolerance


edge_lengths = st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5])
slope_values = st.sampled_from([0.0, 1e-6, 0.004, 0.5, 0.92, 3.0, 50.0])


@settings(deadline=None)
@given(
    lengths=st.lists(edge_lengths | st.integers(1, 40), min_size=1, max_size=4),
    slopes=st.lists(slope_values, min_size=2, max_size=2),
    with_state=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_token_by_token_recurrence(
    lengths: list[int], slopes: list[float], with_state: bool, seed: int
) -> None:
    heads, d = 2, 8
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), heads * 3 * d, generator=generator)
    initial = torch.randn(len(lengths), heads, d, d, generator=generator) if with_state else None
    s = torch.tensor(slopes)
    want, want_final = naive(qkv, s, lengths, initial, d)
    got, final = lightning_recurrence(qkv, s, Packed.of(lengths), initial)
    assert got.dtype == final.dtype == torch.float32
    close(got, want, 1e-5)
    close(final, want_final, 1e-5)


def test_slicing_over_heads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, slopes, packed = torch.randn(300, 5 * 3 * 8), torch.rand(5), Packed.of([130, 170])
    whole = lightning_recurrence(qkv, slopes, packed)
    monkeypatch.setattr(reference, "WORKSPACE_ELEMENTS", 1)
    for got, want in zip(lightning_recurrence(qkv, slopes, packed), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_only_the_named_slots_are_read_and_written() -> None:
    heads, d, lengths, slots = 2, 8, [140, 1, 3], [4, 0, 2]
    qkv, slopes = torch.randn(sum(lengths), heads * 3 * d), torch.tensor([0.1, 0.7])
    states = torch.randn(6, heads, d, d)
    before = states.clone()
    want, want_final = naive(qkv, slopes, lengths, before[slots], d)
    got = lightning_attention(qkv, slopes, Packed.of(lengths, slots=slots), states)
    close(got, want, 1e-5)
    close(states[slots], want_final, 1e-5)
    assert torch.equal(states[[1, 3, 5]], before[[1, 3, 5]])


def test_bfloat16_input_is_accumulated_in_float32() -> None:
    lengths = [700]
    qkv = torch.randn(700, 2 * 3 * 16).bfloat16()
    slopes = torch.tensor([0.0, 0.01])
    want, want_final = naive(qkv, slopes, lengths, None, 16)
    got, final = lightning_recurrence(qkv, slopes, Packed.of(lengths))
    assert got.dtype == torch.bfloat16
    close(got, want, 4e-3)  # one rounding to bfloat16
    close(final, want_final, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, autocast_final = lightning_recurrence(qkv.float(), slopes, Packed.of(lengths))
    close(autocast_final, want_final, 1e-5)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [5, CHUNK + 3, 1, CHUNK]])
def test_gradients_equal_those_of_the_recurrence(lengths: list[int]) -> None:
    heads, d = 2, 4
    slopes = torch.tensor([0.02, 1.3])
    qkv = torch.randn(sum(lengths), heads * 3 * d, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(len(lengths), heads, d, d, dtype=torch.float64, requires_grad=True)
    by_out, by_final = torch.randn(sum(lengths), heads * d).double(), torch.randn(len(lengths), heads, d, d).double()

    def gradients(out: Tensor, final: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out * by_out).sum() + (final * by_final).sum(), (qkv, initial))

    got = gradients(*lightning_recurrence(qkv, slopes, Packed.of(lengths), initial))
    want = gradients(*naive(qkv, slopes, lengths, initial, d))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    qkv = torch.randn(7, 2 * 3 * 3, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    packed, slopes = Packed.of([5, 2]), torch.tensor([0.1, 0.9])
    assert torch.autograd.gradcheck(lambda x, s: lightning_recurrence(x, slopes, packed, s), (qkv, initial))


def test_slopes_of_the_released_model() -> None:
    cpu = torch.device("cpu")
    first, last = decay_slopes(64, 0, 80, cpu), decay_slopes(64, 79, 80, cpu)
    assert first.dtype == torch.float32
    heads = torch.arange(1, 65, dtype=torch.float64)
    torch.testing.assert_close(first.double(), 2 ** (-heads / 8) * (1 + 1e-5), rtol=1e-6, atol=0)
    torch.testing.assert_close(last.double(), 2 ** (-heads / 8) * (1 - 79 / 79.00001 + 1e-5), rtol=1e-6, atol=0)
    assert decay_slopes(4, 0, 1, cpu)[-1].item() == pytest.approx(2**-8 * (1 + 1e-5))
