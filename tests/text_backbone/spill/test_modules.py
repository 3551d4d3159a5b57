"""A decoder whose experts are in host memory answers as one whose are not; on a CPU both memories are the same."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, released_tensors, stored_tensors
from text_backbone.quantization import FORMATS, int8, quantize_backbone
from text_backbone.spill import SpilledExperts, host_bytes, modules, spill_backbone, spilled_backbone

FORMAT = pytest.mark.parametrize("form", [None, *FORMATS])
SLOTS = pytest.mark.parametrize("slots", [1, 2, 3, 4])


@pytest.fixture(params=[None, *FORMATS])
def plain(request: pytest.FixtureRequest, model: MiniMaxText) -> MiniMaxText:
    """In every format, nothing spilled."""
    made = copy.deepcopy(model)
    if request.param is not None:
        quantize_backbone(made, request.param)
    return made


def layers(model: MiniMaxText) -> list[SpilledExperts]:
    return [module for module in model.modules() if isinstance(module, SpilledExperts)]


def spilled(model: MiniMaxText, slots: int) -> MiniMaxText:
    made = copy.deepcopy(model)
    spill_backbone(made, slots)
    return made


@torch.inference_mode()
def logits(model: MiniMaxText, tokens: int = 40) -> torch.Tensor:
    ids = torch.arange(tokens) % 50
    return model.logits(model(model.embed(ids), Packed.of([tokens])))


@SLOTS
def test_the_same_bit_for_bit(plain: MiniMaxText, slots: int) -> None:
    """Many tokens, then one at a time, and many again: whatever the slots hold by then."""
    made = spilled(plain, slots)
    for tokens in (40, 1, 1, 3, 40):
        assert torch.equal(logits(made, tokens), logits(plain, tokens))
    assert all(len(layer.residents.held) == slots for layer in layers(made))


@SLOTS
def test_chunks_and_cache(plain: MiniMaxText, slots: int, feed: Callable[..., list[torch.Tensor]]) -> None:
    ids, cuts = [torch.arange(30) % 50, torch.arange(12)], [[16, 13, 1], [11, 1]]
    outs = [
        feed(model, HybridCache(plain.config, slots=2, pages=8), ids, cuts)
        for model in (plain.requires_grad_(False), spilled(plain, slots))
    ]
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


@FORMAT
def test_loaded_into_host_memory(form: str | None, model: MiniMaxText) -> None:
    """Tensor by tensor under the released names, and again in the format's own."""
    plain = copy.deepcopy(model)
    if form is not None:
        quantize_backbone(plain, form)
    made, again = (spilled_backbone(model.config, 2, form, device="cpu") for _ in range(2))
    source = released_tensors(model)
    assert released_tensors(made).keys() == source.keys()
    for name, slot in released_tensors(made).items():
        slot.load(source[name].read())
    kept = stored_tensors(made)
    for name, slot in stored_tensors(again).items():
        slot.load(kept[name].read())
    want = logits(plain)
    assert torch.equal(logits(made), want)
    assert torch.equal(logits(again), want)


@FORMAT
def test_only_the_slots_are_on_the_device(form: str | None, config: Callable[..., TextConfig]) -> None:
    """`meta` stands for a device that is not the host."""
    made = spilled_backbone(config(), 1, form, device="meta")
    for layer in layers(made):
        parts = [part for weight in layer.on_device for part in modules._parts(weight)]
        assert {part.device.type for part in parts} == {"meta"}
        assert {len(part) for part in parts} == {1}
    held = [tensor for layer in layers(made) for tensor in (*layer.parameters(), *layer.buffers())]
    assert {tensor.device.type for tensor in held} == {"cpu"}
    assert sum(tensor.nbytes for tensor in held) == host_bytes(config(), form, torch.float32)
    here = {id(tensor) for tensor in held}
    rest = [tensor for tensor in (*made.parameters(), *made.buffers()) if id(tensor) not in here]
    assert {tensor.device.type for tensor in rest} == {"meta"}


def test_what_is_loaded_is_quantised_on_the_device(
    config: Callable[..., TextConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = int8.quantize
    where: list[str] = []

    def spy(matrix: torch.Tensor) -> int8.Int8:
        where.append(matrix.device.type)
        return quantize(torch.ones(matrix.shape))

    monkeypatch.setattr(int8, "quantize", spy)
    made = spilled_backbone(config(), 1, "int8", device="meta")
    slot = released_tensors(made)["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
    slot.load(torch.zeros(20, 24))
    assert where == ["meta"]
    assert torch.allclose(slot.read(), torch.ones(20, 24))


def test_a_call_that_breaks_off_spoils_nothing(model: MiniMaxText, monkeypatch: pytest.MonkeyPatch) -> None:
    made, want = spilled(model, 2), logits(model)
    logits(made)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(modules.Copies, "copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            logits(made)
    assert torch.equal(logits(made), want)


def test_threads_take_turns(model: MiniMaxText) -> None:
    made = spilled(model, 1)
    want = {tokens: logits(model, tokens) for tokens in (40, 7)}
    wrong: list[int] = []

    def ask(tokens: int) -> None:
        wrong.extend(tokens for _ in range(10) if not torch.equal(logits(made, tokens), want[tokens]))

    threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_refused(model: MiniMaxText) -> None:
    made = spilled(model, 2)
    with pytest.raises(RuntimeError, match="cannot be moved or cast"):
        layers(made)[0].half()
    x, weights = torch.randn(3, 24, requires_grad=True), torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="no gradients"):
        layers(made)[0](x, weights, torch.tensor([[0, 1]] * 3))
    for slots in (0, 5):
        with pytest.raises(ValueError, match="not 1 to 4"):
            spilled(model, slots)


def test_no_graph_is_made_of_it(model: MiniMaxText) -> None:
    assert model.capturable
    assert not spilled(model, 2).capturable


@pytest.mark.gpu
@FORMAT
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_on_a_gpu(form: str | None, slots: int, build: Callable[..., MiniMaxText]) -> None:
    """Through kernels and the copies' own stream, with experts large enough that a race would show."""
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 8, "head_dim": 128}
    config = TextConfig(vocab_size=512, num_attention_heads=4, num_key_value_heads=2, attn_type_list=(0, 1), **shape)
    plain = MiniMaxText(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 16 + (parameter.dim() == 1))
    if form is not None:
        quantize_backbone(plain, form)
    made = copy.deepcopy(plain)
    plain.cuda()
    experts = [layer.get_submodule("block_sparse_moe.experts") for layer in made.layers]
    want = [layer.get_submodule("block_sparse_moe.experts") for layer in plain.layers]
    for theirs, ours in zip(want, experts, strict=True):
        spilled_layer = SpilledExperts(ours, slots, torch.device("cuda"))  # type: ignore[arg-type]
        assert all(part.is_pinned() for part in modules._parts(spilled_layer.w13))
        for tokens in (300, 1, 2, 300, 1):
            x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
            choices = torch.rand(tokens, 8, device="cuda").topk(2).indices
            weights = torch.rand(tokens, 2, device="cuda")
            with torch.inference_mode():
                got, expected = spilled_layer(x, weights, choices), theirs(x, weights, choices)
            assert (got - expected).float().norm() <= 0.02 * expected.float().norm()
