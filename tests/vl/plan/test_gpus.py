"""The data of GPUs, and how users name them."""

from __future__ import annotations

import pytest

import vl
from vl.plan import Machine, describe_gpu, find_gpu, known_gpus, parse_machine
from vl.plan.gpus import GIB, recognise_gpu


def test_every_gpu_is_plausible() -> None:
    for name, gpu in known_gpus().items():
        assert gpu.name == name
        assert 20 * GIB < gpu.memory < 300 * GIB
        assert 0.5e12 < gpu.bandwidth < 8e12
        assert 50e12 < gpu.bf16 < 2300e12
        assert gpu.fp8 is None or 1.5 < gpu.fp8 / (gpu.bf16 * (989 * 0.7917 / 783)) < 2.6
        assert 5e-6 < gpu.link.latency < 50e-6
        assert gpu.host_bandwidth < gpu.bandwidth


def test_the_measured_gpu_is_as_docs_say() -> None:
    measured = [gpu for gpu in known_gpus().values() if gpu.measured]
    assert [gpu.name for gpu in measured] == ["H200"]
    assert (measured[0].bandwidth, measured[0].bf16) == (pytest.approx(4.22e12), pytest.approx(783e12))
    assert measured[0].link.latency == pytest.approx(6.4e-6)


def test_others_take_the_measured_shares() -> None:
    h100, h200 = find_gpu("H100-80GB"), find_gpu("H200")
    assert h100.bandwidth / 3.35e12 == pytest.approx(h200.bandwidth / 4.8e12)
    assert h100.bf16 == pytest.approx(h200.bf16)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8xH100-80GB", (8, "H100-80GB")), ("8 x H100-80GB", (8, "H100-80GB")), ("H200", (1, "H200")),
        ("2×B200", (2, "B200")), ("4*l40s", (4, "l40s")), ("RTX 4090", (1, "RTX 4090")),
    ],
)  # fmt: skip
def test_machines_as_users_write_them(text: str, expected: tuple[int, str]) -> None:
    assert parse_machine(text) == expected


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA H200", 139.8, "H200"), ("NVIDIA H100 80GB HBM3", 79.2, "H100-80GB"),
        ("NVIDIA H100 NVL", 93.1, "H100-NVL"), ("NVIDIA H100 PCIe", 79.1, "H100-PCIe"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100-80GB"), ("NVIDIA GeForce RTX 4090", 23.5, "RTX-4090"),
        ("NVIDIA RTX A6000", 47.5, "RTX-A6000"), ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 39.5, None),
        ("Tesla T4", 14.6, None),
    ],
)  # fmt: skip
def test_gpus_as_drivers_name_them(name: str, gib: float, expected: str | None) -> None:
    found = recognise_gpu(name, int(gib * GIB))
    assert (found and found.name) == expected


@pytest.mark.parametrize("text", ["", "x", "8x", "eight H200 ! ", "-1xH200"])
def test_what_names_no_machine(text: str) -> None:
    with pytest.raises(vl.ConfigError):
        find_gpu(parse_machine(text)[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h200", "H200"), ("H100 80GB", "H100-80GB"), ("4090", "RTX-4090"), ("rtx5090", "RTX-5090"),
        ("A6000", "RTX-A6000"), ("l40s", "L40S"), ("b200", "B200"), ("H100 NVL", "H100-NVL"),
    ],
)  # fmt: skip
def test_gpus_as_users_write_them(name: str, expected: str) -> None:
    assert find_gpu(name).name == expected


def test_a_name_of_several_says_which() -> None:
    with pytest.raises(vl.ConfigError, match="may be A100-80GB, A100-40GB: "):
        find_gpu("A100")


def test_an_unknown_gpu_lists_the_known_and_the_way_out() -> None:
    with pytest.raises(vl.ConfigError) as error:
        find_gpu("Voodoo2")
    for word in (*known_gpus(), "--gpu-memory", "--gpu-bandwidth", "--gpu-bf16"):
        assert word in str(error.value)


def test_a_gpu_may_be_described() -> None:
    gpu = describe_gpu("Mine", memory=48, bandwidth=1.0, bf16=100)
    assert (gpu.name, gpu.memory, gpu.measured) == ("Mine", 48 * GIB, False)
    assert 0.8e12 < gpu.bandwidth < 0.95e12
    assert 70e12 < gpu.bf16 < 90e12


def test_a_known_gpu_may_be_changed() -> None:
    known = find_gpu("H200")
    less = describe_gpu("H200", memory=100)
    assert (less.memory, less.bandwidth, less.measured) == (100 * GIB, known.bandwidth, True)
    assert not describe_gpu("H200", bandwidth=4.0).measured


def test_half_a_description_is_not_enough() -> None:
    with pytest.raises(vl.ConfigError, match="is not known"):
        describe_gpu("Mine", memory=48)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_of_a_gpu_are_above_zero(value: float) -> None:
    with pytest.raises(vl.ConfigError, match="above 0"):
        describe_gpu("H200", memory=value)


@pytest.mark.parametrize("count", [0, 17, 1000])
def test_a_host_has_so_many_gpus(count: int) -> None:
    with pytest.raises(vl.ConfigError, match="of one host"):
        Machine(find_gpu("H200"), count)
