"""What the manifest of part files passes over, how little it reads for that, and that it passes over nothing undone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl.jobs.manifest import Manifest
from vl.jobs.parts import id_of

MADE = {"model": "m", "prompt": "p", "settings": {}}


def left(manifest: Manifest, names: list[str]) -> list[str]:
    """What a run has to do."""
    return [key for _, key in manifest.skim(names) if not manifest.has(id_of(key))]


def do(manifest: Manifest, names: list[str], part: int) -> None:
    if names:
        manifest.add(manifest.next_part, {id_of(name): False for name in names[:part]}, [MADE])
        do(manifest, names[part:], part)


def test_stretches_are_passed_over_without_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"photos/{n:06}.jpg" for n in range(20_000)]
    manifest = Manifest(tmp_path / "m.sqlite")
    assert left(manifest, names) == names
    do(manifest, names, 1000)
    manifest.close()
    looked = 0
    has = Manifest.has

    def counted(self: Manifest, key: bytes) -> bool:
        nonlocal looked
        looked += 1
        return has(self, key)

    monkeypatch.setattr(Manifest, "has", counted)
    manifest = Manifest(tmp_path / "m.sqlite")
    assert left(manifest, names) == []
    assert looked < 4000, "of the last stretch alone, which has no end yet, twice"
    assert manifest.passed > 18_000
    manifest.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_undone_is_passed_over(data: st.DataObject) -> None:
    """Whatever was done, in any order, and however the sources change: exactly what has no row is left."""
    count = data.draw(st.integers(1, 1500))
    names = [str(n) for n in range(count)]
    manifest = Manifest(None)
    done: set[str] = set()
    for _ in range(data.draw(st.integers(1, 4))):
        seed = data.draw(st.randoms(use_true_random=False))
        sources = [name for name in names if seed.random() > 0.002]
        sources += [f"new{seed.randrange(10)}" for _ in range(seed.randrange(3))]
        if seed.random() < 0.3:
            start = seed.randrange(len(sources) + 1)
            sources = sources[start:] + sources[:start]
        assert left(manifest, sources) == [name for name in sources if name not in done]
        share = seed.choice([0.5, 0.99, 1.0])
        now = list(dict.fromkeys(name for name in sources if name not in done and seed.random() < share))
        seed.shuffle(now)
        do(manifest, now, 400)
        done.update(now)
    manifest.close()


def test_a_part_that_could_not_be_entered_is_not_done() -> None:
    """Nor by what was known of it in memory, when the next stretch is kept."""
    names = [str(n) for n in range(3000)]
    manifest = Manifest(None)
    assert left(manifest, names) == names
    ids = {id_of(name): False for name in names}
    with pytest.raises(sqlite3.IntegrityError):
        manifest.add(0, ids, [MADE], answers=[None])  # type: ignore[list-item]
    do(manifest, names[2000:], 500)
    assert left(manifest, names) == names[:2000]
    do(manifest, names[:2000], 2000)
    assert left(manifest, names) == []
    assert manifest.passed > 2000
    manifest.close()
