"""How much memory the host has left, in a container or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing import container
from vl.engine import memory

V2 = {
    "memory.max": "3000000",
    "memory.current": "2000000",
    "memory.stat": "anon 900000\nfile 700000\nactive_file 200000\ninactive_file 400000\n",
}
V1 = {
    "memory/memory.limit_in_bytes": "3000000",
    "memory/memory.usage_in_bytes": "2000000",
    "memory/memory.stat": "active_file 1\ninactive_file 2\ntotal_active_file 200000\ntotal_inactive_file 400000\n",
}


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="elsewhere nothing tells what is free")
@pytest.mark.parametrize("files", [V2, V1])
def test_a_container_has_what_its_limit_leaves(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_GROUPS", tmp_path)
    whole = memory.free(memory.HOST)
    assert whole is not None
    assert whole > 10**8
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory.free(memory.HOST) == 1_000_000 + 600_000


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="elsewhere nothing tells what is free")
@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_without_a_limit_it_is_the_hosts(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_GROUPS", tmp_path)
    for name, text in (V2 | {"memory.max": limit}).items():
        (tmp_path / name).write_text(text)
    found = memory.free(memory.HOST)
    assert found is not None
    assert found > 10**8


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="elsewhere nothing tells what is free")
def test_the_least_of_the_groups_that_it_is_in_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a unit of systemd, whose group is inside of others."""
    monkeypatch.setattr(container, "_GROUPS", tmp_path)
    monkeypatch.setattr(container, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/system.slice/vl.service\n")
    (tmp_path / "system.slice" / "vl.service").mkdir(parents=True)
    for folder, limit in (("system.slice", "9000000"), ("system.slice/vl.service", "3000000")):
        for name, text in (V2 | {"memory.max": limit}).items():
            (tmp_path / folder / name).write_text(text)
    assert memory.free(memory.HOST) == 1_000_000 + 600_000
