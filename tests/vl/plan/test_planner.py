"""What must hold of every plan, whatever the model, the machine and the workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

import vl
from text_backbone import released_shapes
from text_backbone.config import TextConfig, hybrid_layers
from text_backbone.packed import Packed
from text_backbone.parallel import Collectives, Layout, split_backbone
from text_backbone.quantization import Quantized
from text_backbone.quantization.files import is_quantised
from vl.config import VLConfig
from vl.plan import FORMATS, Machine, Option, Workload, describe_gpu, find_gpu, image_cost, known_gpus, plan, smallest
from vl.plan.efficiency import MESSAGES
from vl.plan.gpus import GIB, Link
from vl.plan.models import released
from vl.plan.planner import COUNTS, consider
from vl.plan.share import CONTEXT, LAYERS, ONE, SPILLED, TENSOR, Share, by_tensor, placements, whole
from vl.plan.sizes import expert_bytes, weight_bytes
from vl.plan.speed import Estimate, used_experts

machines = st.builds(Machine, st.sampled_from(list(known_gpus().values())), st.sampled_from(COUNTS))
formats = st.sampled_from(list(FORMATS))
models = st.builds(
    lambda layers, experts, wide: VLConfig(
        TextConfig(
            attn_type_list=hybrid_layers(layers), num_local_experts=experts, intermediate_size=wide * 1024
        )
    ),
    st.integers(8, 100), st.sampled_from([4, 16, 32]), st.integers(1, 9),
)  # fmt: skip
workloads = st.builds(
    Workload, st.integers(1, 2**21), st.integers(1, 32), prefill_tokens=st.sampled_from([1024, 8192, 32768])
)


def by_kind(config: VLConfig, machine: Machine, work: Workload, form: str) -> dict[str, Option]:
    return {option.placement: option for option in plan(config, machine, work, [form]).options}


@settings(deadline=None, max_examples=60)
@given(models, machines, workloads, formats, st.integers(1, 2**20), st.integers(1, 32))
def test_more_work_never_needs_less(
    config: VLConfig, machine: Machine, work: Workload, form: str, tokens: int, sequences: int
) -> None:
    small = by_kind(config, machine, work, form)
    longer = by_kind(config, machine, replace(work, context=work.context + tokens), form)
    wider = by_kind(config, machine, replace(work, batch=work.batch + sequences), form)
    for kind in small.keys() & longer.keys() & wider.keys() - {SPILLED}:
        least = small[kind]
        assert least.memory.total <= longer[kind].memory.total
        assert least.memory.total <= wider[kind].memory.total
        assert least.max_context >= wider[kind].max_context
        assert least.max_context == longer[kind].max_context
        assert least.fits >= longer[kind].fits
        if least.speed and longer[kind].speed:
            if kind != CONTEXT:  # a pass that is just long enough to be shared out takes less than one that is not
                assert least.speed.prefill < longer[kind].speed.prefill
            assert least.speed.decode <= longer[kind].speed.decode


@settings(deadline=None, max_examples=60)
@given(models, machines, workloads, formats)
def test_more_gpus_never_hold_less(config: VLConfig, machine: Machine, work: Workload, form: str) -> None:
    twice = Machine(machine.gpu, 2 * machine.count)
    few, many = by_kind(config, machine, work, form), by_kind(config, twice, work, form)
    assume(TENSOR in many)  # 16 GPUs are more than heads of keys and values
    alone = few.get(TENSOR) or few[ONE]
    assert many[TENSOR].memory.weights < alone.memory.weights
    if alone.memory.weights > 2 * GIB:  # what several GPUs need to talk is half a GiB
        assert many[TENSOR].max_context >= alone.max_context
        assert many[TENSOR].fits >= alone.fits


@settings(deadline=None, max_examples=60)
@given(models, machines, workloads, formats)
def test_the_maximum_context_fits_and_a_page_more_does_not(
    config: VLConfig, machine: Machine, work: Workload, form: str
) -> None:
    for option in plan(config, machine, work, [form]).options:
        if option.problem == f"{machine.gpu.name} has no FP8":
            continue
        most = option.max_context
        if most:
            assert by_kind(config, machine, replace(work, context=most), form).get(option.placement, option).memory.fits
        beyond = by_kind(config, machine, replace(work, context=most + work.page_size), form)
        assert not beyond[option.placement].memory.fits


@settings(deadline=None, max_examples=40)
@given(machines, workloads, formats)
def test_spilling_takes_what_does_not_fit(machine: Machine, work: Workload, form: str) -> None:
    config = released()
    options = by_kind(config, machine, work, form)
    base, spilled = options[ONE if machine.count == 1 else TENSOR], options.get(SPILLED)
    if base.fits or any(option.fits for kind, option in options.items() if kind != SPILLED):
        assert spilled is None
        return
    assert spilled is not None
    share = (by_tensor(config, machine.count) or whole(config)).shares[0]
    experts = expert_bytes(share.text, FORMATS[form].experts)
    missing = spilled.spilled * experts
    assert spilled.memory.host == (int(experts) * machine.count if missing else 0)
    assert base.memory.weights == pytest.approx(spilled.memory.weights + missing, abs=1)
    assert 0 <= spilled.spilled <= 1
    assert spilled.memory.activations > base.memory.activations  # room for what comes from the host
    if spilled.speed:
        placement = by_tensor(config, machine.count) or whole(config)
        ideal = Estimate(placement, FORMATS[form], machine.gpu).speed(work)
        assert spilled.speed.decode >= ideal.decode


def test_options_are_in_order_of_speed(vl01: VLConfig) -> None:
    found = plan(vl01, Machine(find_gpu("H100-80GB"), 8), Workload(2**20, 4))
    fits = [option.fits for option in found.options]
    assert fits == sorted(fits, reverse=True)
    seconds = [option.speed.decode for option in found.options if option.speed]
    assert seconds == sorted(seconds)
    assert found.best is found.options[0]
    assert (found.best.format, found.best.placement) == ("nf4", TENSOR)


def test_the_smallest_machines(vl01: VLConfig) -> None:
    found = smallest(vl01).options
    sizes = [option.machine.gpu.memory * option.machine.count for option in found]
    assert sizes == sorted(sizes)
    assert (found[0].machine.name, found[0].format) == ("2 x H200", "nf4")
    for option in found:
        fewer = [n for n in COUNTS if n < option.machine.count]
        for count in fewer:
            best = plan(vl01, Machine(option.machine.gpu, count), formats=[option.format]).best
            assert best is None or best.placement == SPILLED


def test_bf16_needs_eight_of_the_largest(vl01: VLConfig) -> None:
    assert {option.machine.name for option in smallest(vl01, formats=["bf16"]).options} == {"8 x H200", "8 x B200"}


@pytest.mark.parametrize("kind", [TENSOR, LAYERS])
def test_keys_and_values_in_host_memory(vl01: VLConfig, kind: str) -> None:
    """Room on the GPUs for what they take of it, and steps as fast as all of it passes over the bus."""
    machine, tokens = Machine(find_gpu("H200"), 2), 2**20

    def option(far: int, **changes: Any) -> Option:
        return by_kind(vl01, replace(machine, **changes), Workload(tokens, host_cache_tokens=far), "nf4")[kind]

    near, half, all_but_one = option(0), option(tokens // 2), option(tokens - 256)
    assert (near.fits, half.fits, all_but_one.fits) == (False, True, True)
    assert [o.memory.host for o in (near, half)] == [0, 20 * 2**30]
    a_token = 10 * 4096  # of ten layers
    moved = a_token * tokens // 2 / machine.gpu.host_bandwidth / (2 if kind == TENSOR else 1)
    assert half.speed is not None
    assert all_but_one.speed is not None
    assert half.speed.decode == pytest.approx(moved, rel=0.02)
    assert all_but_one.speed.decode == pytest.approx(2 * moved, rel=0.02)
    assert half.speed.prefill == pytest.approx(all_but_one.speed.prefill, rel=0.01), "hidden behind the work"
    assert near.max_context < tokens < half.max_context < all_but_one.max_context
    assert option(tokens // 2, host_memory=20 * 2**30).fits
    assert option(tokens // 2, host_memory=20 * 2**30 - 1).problem == "host memory"


def test_small_passes_over_what_is_in_host_memory_wait_for_it(vl01: VLConfig) -> None:
    """Each pass brings all that is there by then; 16 tokens are read faster than that comes."""
    gpu, near, chunk = find_gpu("H200"), 2**19, 16
    estimate = Estimate(whole(vl01), FORMATS["nf4"], gpu, near=near)
    alone = estimate.prefill(near, chunk)
    assert alone == pytest.approx(replace(estimate, near=None).prefill(near, chunk))
    brought = 10 * 4096 * sum(max(0, past - near) for past in range(0, 2 * near, chunk)) / gpu.host_bandwidth
    assert estimate.prefill(2 * near, chunk) - alone == pytest.approx(brought, rel=0.01)


def test_host_memory_bounds_what_is_spilled(vl01: VLConfig) -> None:
    gpu = find_gpu("RTX-4090")
    free = by_kind(vl01, Machine(gpu), Workload(), "nf4")[SPILLED]
    assert free.fits
    needed = free.memory.host
    assert by_kind(vl01, Machine(gpu, host_memory=needed), Workload(), "nf4")[SPILLED].fits
    short = by_kind(vl01, Machine(gpu, host_memory=needed - 1), Workload(), "nf4")[SPILLED]
    assert short.problem == "host memory"
    assert short.speed is None
    assert {option.placement for option in smallest(vl01, host_memory=needed).options} >= {SPILLED, TENSOR}


def test_fp8_needs_a_gpu_that_has_it(vl01: VLConfig) -> None:
    for option in plan(vl01, Machine(find_gpu("A100-80GB"), 8), formats=["fp8"]).options:
        assert option.problem == "A100-80GB has no FP8"
        assert option.speed is None
    assert not any(option.format == "fp8" for option in smallest(vl01).options if option.machine.gpu.fp8 is None)


def test_images_add_their_tokens_memory_and_time(vl01: VLConfig) -> None:
    assert image_cost(vl01, 4032, 3024) == (7560, 13)
    text, cost = Workload(1024), image_cost(vl01, 4032, 3024)
    seen = Workload(1024, 1, 3, *cost)
    assert seen.tokens == 1024 + 3 * 7560
    machine = Machine(find_gpu("H200"), 2)
    without, with_images = (by_kind(vl01, machine, work, "nf4")[TENSOR] for work in (text, seen))
    assert without.memory.activations < with_images.memory.activations
    assert without.speed is not None
    assert with_images.speed is not None
    assert without.speed.vision == 0 < with_images.speed.vision
    assert with_images.speed.first_token > with_images.speed.prefill


def test_a_text_model_takes_no_images() -> None:
    with pytest.raises(vl.ConfigError, match="takes no images"):
        image_cost(VLConfig(TextConfig()), 336, 336)


def test_layers_take_turns(vl01: VLConfig) -> None:
    options = by_kind(vl01, Machine(find_gpu("H200"), 8), Workload(), "nf4")
    tensor, layers = options[TENSOR].speed, options[LAYERS].speed
    assert tensor is not None
    assert layers is not None
    assert tensor.decode < layers.decode
    alone = Estimate(whole(vl01), FORMATS["nf4"], find_gpu("H200")).decode(32768, 1)
    assert layers.decode == pytest.approx(alone, rel=0.05)


def test_a_prompt_is_shared_out_by_context(vl01: VLConfig) -> None:
    """Read nearly as many times as fast as there are GPUs, if passes are long enough, and written no faster."""
    small = replace(vl01, text=replace(vl01.text, attn_type_list=hybrid_layers(8)))
    machine, long = Machine(find_gpu("H200"), 8), Workload(2**20, prefill_tokens=2**16)
    alone = by_kind(small, Machine(machine.gpu), replace(long, prefill_tokens=2**13), "nf4")[ONE].speed
    shared, brief = (by_kind(small, machine, work, "nf4")[CONTEXT].speed for work in (long, Workload(2047)))
    assert alone is not None
    assert shared is not None
    assert brief is not None
    assert 6.5 < alone.prefill / shared.prefill < 8
    assert alone.decode < shared.decode == pytest.approx(alone.decode, rel=0.25)
    once = Estimate(whole(small), FORMATS["nf4"], machine.gpu).prefill(2047, 8192)
    assert brief.prefill == pytest.approx(once + MESSAGES)  # under 256 tokens for each
    assert CONTEXT not in by_kind(small, machine, replace(long, host_cache_tokens=2**18), "nf4")  # no `vl.load` either


def test_quantised_weights_are_read_faster(vl01: VLConfig) -> None:
    seconds = {name: Estimate(whole(vl01), form, find_gpu("H200")).decode(1024, 1) for name, form in FORMATS.items()}
    assert seconds["nf4"] < seconds["int8"] < 0.65 * seconds["bf16"]


def test_used_experts() -> None:
    text = TextConfig()
    assert used_experts(text, 1) == pytest.approx(2)
    assert used_experts(text, 10_000) == pytest.approx(32)


def test_no_placement_beats_the_floor(vl01: VLConfig) -> None:
    """Two H200s in NF4 read 26.8 GB a token, 318 times a second at most."""
    option = by_kind(vl01, Machine(find_gpu("H200"), 2), Workload(1024), "nf4")[TENSOR]
    assert option.speed is not None
    assert 318 / 4 < option.speed.decode_tokens < 318


@pytest.mark.parametrize("form", list(FORMATS))
def test_what_is_said_to_load_loads(tiny_checkpoint: Path, form: str) -> None:
    quantization = None if form == "bf16" else form
    model = vl.load(tiny_checkpoint, device="cpu", dtype="bfloat16", quantization=quantization)
    share = Share(model.config.text, vision=model.config.vision)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert weight_bytes(share, FORMATS[form]) == pytest.approx(held, rel=0.005)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_holds_what_its_share_says(vl01: VLConfig, form: str, rank: int) -> None:
    """Of all placements on several GPUs, but for experts in host memory, whose part is a user's to say."""
    config = replace(vl01, text=replace(vl01.text, attn_type_list=hybrid_layers(9), num_local_experts=4))
    quantization = None if form == "bf16" else form
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        for placement in placements(config, 2):
            if placement.kind != SPILLED:
                part = split_backbone(
                    config.text,
                    placement=placement.kind,
                    quantization=quantization,
                    device="meta",
                    dtype=torch.bfloat16,
                )
                held = sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
                share = replace(placement.shares[min(rank, len(placement.shares) - 1)], vision=None)
                assert weight_bytes(share, FORMATS[form]) == pytest.approx(held, rel=0.002), placement.kind
    finally:
        dist.destroy_process_group()


def test_sums_are_counted_as_the_code_sends_them(vl01: VLConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token: with a second for each message, the seconds that a plan has more are the number of messages."""
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rotary_dim": 8}
    text = replace(vl01.text, vocab_size=100, intermediate_size=64, attn_type_list=hybrid_layers(9), **small)
    placement = by_tensor(VLConfig(text), 2)
    assert placement is not None
    gpus = [replace(find_gpu("H200"), link=Link(latency, 1e30)) for latency in (0.0, 1.0)]
    without, counted = (Estimate(placement, FORMATS["bf16"], gpu).decode(1, 1) for gpu in gpus)
    sent: list[str] = []
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(Collectives, name, _heard(getattr(Collectives, name), name, sent))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        part = split_backbone(text, placement=TENSOR, device="cpu", dtype=torch.float32)
        for parameter in part.parameters():
            parameter.zero_()
        with torch.inference_mode():
            part.logits(part(part.embed(torch.tensor([1])), Packed.of([1])))
    finally:
        dist.destroy_process_group()
    assert len(sent) == 2 * 9 + 2  # embeddings and logits
    assert counted - without == pytest.approx(len(sent))


def _heard(method: Callable[..., torch.Tensor], name: str, sent: list[str]) -> Callable[..., torch.Tensor]:
    def call(*args: object) -> torch.Tensor:
        sent.append(name)
        return method(*args)

    return call


def test_a_described_gpu_is_planned_for(vl01: VLConfig) -> None:
    gpu = describe_gpu("My GPU", memory=300, bandwidth=4.8, bf16=989)
    option = consider(whole(vl01), FORMATS["nf4"], Machine(gpu), Workload())
    assert option.fits
    assert option.speed is not None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda config: plan(config, Machine(find_gpu("H200")), formats=["int3"]), "known are bf16, int8, fp8, nf4"),
        (lambda _: Workload("1M"), "context must be a whole number"),
        (lambda _: Workload(batch=0), "batch must be a whole number from 1"),
        (lambda _: Workload(2**30, 2**20), "beyond any machine"),
        (lambda _: Workload(True), "context must be a whole number"),
        (lambda _: Workload(images=1, image_tiles=-1), "image_tiles must be a whole number from 0"),
        (lambda _: Machine(find_gpu("H200"), "2"), "1 to 16 GPUs of one host"),
        (lambda _: Machine(find_gpu("H200"), True), "True GPUs"),
        (lambda _: Machine(find_gpu("H200"), 1, "256"), "host_memory='256' is not a number of bytes"),
    ],
)
def test_bad_input_is_a_config_error(vl01: VLConfig, make: Callable[[VLConfig], object], said: str) -> None:
    with pytest.raises(vl.ConfigError, match=said):
        make(vl01)


@pytest.mark.parametrize("wide", [128, 192, 96])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_what_loading_would_refuse_does_not_fit(wide: int, head_dim: int) -> None:
    """Parts of matrices in NF4 have whole blocks."""
    text = TextConfig(
        hidden_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=head_dim, intermediate_size=wide,
        rotary_dim=8, vocab_size=100, num_local_experts=2, attn_type_list=(0, 1),
    )  # fmt: skip
    for form in FORMATS:
        option = by_kind(VLConfig(text), Machine(find_gpu("H200"), 2), Workload(), form)[TENSOR]
        assert option.fits == (form == "bf16" or _can_be_cut(text, form)), (form, option.problem)


def _can_be_cut(text: TextConfig, form: str) -> bool:
    layout = Layout(text, "tensor", 0, 2)
    try:
        for name, shape in released_shapes(layout.local):
            if is_quantised(name):
                part = layout.part(name, shape)
                assert part is not None
                Quantized(form, (), *part.shape, device="meta", dtype=torch.bfloat16, part=part)
    except ValueError:
        return False
    return True
