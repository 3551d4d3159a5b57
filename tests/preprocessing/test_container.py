"""How many CPUs there are for this process, in a container or not. What is left of memory: tests/vl/engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocessing import container
from preprocessing.container import available_cpus, quota


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of control groups, on a host that would let this process run on 16 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(container, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(container, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("3:cpu,cpuacct:/docker/1\n0::/work.slice/job.service\n")
    quota.cache_clear()
    yield tmp_path / "groups"
    quota.cache_clear()


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    quota.cache_clear()


@pytest.mark.parametrize(
    ("quota", "cpus"), [(200_000, 2), (150_000, 2), (100_001, 2), (100_000, 1), (10_000, 1), (9_900_000, 16)]
)
def test_a_quota_bounds_them(groups: Path, quota: int, cpus: int) -> None:
    write(groups, cpu__max=f"{quota} 100000\n")
    assert available_cpus() == cpus
    write(groups, cpu__max="max 100000\n")
    assert available_cpus() == 16
    write(groups / "cpu", cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n")
    assert available_cpus() == cpus
    write(groups / "cpu", cpu__cfs_quota_us="-1\n")
    assert available_cpus() == 16


def test_the_least_of_the_groups_that_it_is_in_counts(groups: Path) -> None:
    write(groups / "work.slice", cpu__max="300000 100000")
    write(groups / "work.slice" / "job.service", cpu__max="900000 100000")
    write(groups / "other.slice", cpu__max="100000 100000")
    assert available_cpus() == 3
    write(groups / "cpu" / "docker" / "1", cpu__cfs_quota_us="100000", cpu__cfs_period_us="50000")
    assert available_cpus() == 2


@pytest.mark.parametrize("text", ["", "many\n", "0 0\n", "100000\n", "100000 0\n"])
def test_what_says_nothing_bounds_nothing(groups: Path, text: str) -> None:
    write(groups, cpu__max=text)
    assert available_cpus() == 16


def test_training_starts_no_more_workers_than_the_quota_has_room_for(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vl.training.data import count_spare_cpus

    write(groups, cpu__max="450000 100000")
    assert count_spare_cpus() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count_spare_cpus() == 1
