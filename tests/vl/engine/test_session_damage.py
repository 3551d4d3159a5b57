"""Saved sessions that are damaged, incomplete or of a later version: it is named, and nothing is replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vl
from vl.engine.checksum import checksum_of
from vl.engine.session_file import MANIFEST, read_tensors

from .sessions import document, load, used_pages


@pytest.fixture
def model(tiny_text_checkpoint: Path) -> vl.MiniMaxVL:
    return load(tiny_text_checkpoint)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[:-7])

    return apply


def lengthen(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with next(folder.glob(name)).open("ab") as file:
            file.write(b"\0" * 8)

    return apply


def flip(name: str, bit: int = 3) -> Callable[[Path], None]:
    """One bit of the last tensor in a file."""

    def apply(folder: Path) -> None:
        path = next(folder.glob(name))
        data = bytearray(path.read_bytes())
        data[-5] ^= 1 << bit
        path.write_bytes(data)

    return apply


def alter(**changes: Any) -> Callable[[Path], None]:
    """As a version wrote it that knew no digest."""

    def apply(folder: Path) -> None:
        path = folder / MANIFEST
        contents = json.loads(path.read_text()) | {"format": 2} | changes
        del contents["digest"], contents["checksums"]
        path.write_text(json.dumps(contents))

    return apply


def reword(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        before = (folder / MANIFEST).read_text()
        assert old in before
        (folder / MANIFEST).write_text(before.replace(old, new, 1))

    return apply


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove, "holds no session"),
        (reword('"content"', '"cantent"'), r"is damaged \(.*not what was written"),
        (reword('"format": 3', '"format": 2'), r"is damaged \(.*not what was written"),
        (reword('"digest"', '"dagest"'), "is damaged"),
        (cut(MANIFEST), "is damaged"),
        (cut("kv-*"), "is damaged"),
        (cut("states-*"), "is damaged"),
        (lengthen("kv-*"), "is damaged"),
        (
            flip("kv-*"),
            r"kv-.* is damaged \(it is not what was saved\): copy it again .* or read the same documents anew",
        ),
        (flip("states-*"), r"states-.* is damaged \(it is not what was saved\)"),
        (flip("tokens-*"), r"tokens-.* is damaged \(it is not what was saved\)"),
        (alter(format=4), "has format 4, and this version of minimax-vl reads 1 to 3"),
        (alter(format="2"), "has format '2', and this version"),
        (alter(tokens=5), "do not make up 5 tokens"),
        (alter(states="tokens-0.safetensors"), "lacks tokens-0"),
        (lambda folder: next(folder.glob("kv-*")).unlink(), "lacks kv-"),
    ],
)
def test_damage_is_named(model: vl.MiniMaxVL, tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    model.read(document()).save(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(vl.CheckpointError, match=told):
        model.open(tmp_path / "s")
    assert used_pages(model) == 0


def test_the_checksum_of_tensors_is_of_every_bit_and_of_their_order() -> None:
    """Rows are of 8192 bytes: one and a part, two, and three are here."""
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(5, 3, 164).bfloat16(),
        "b": torch.randn(2, 2048),
        "c": torch.randint(-(2**62), 2**62, (3, 1024)),
        "d": torch.zeros(0, 4),
    }
    expected = checksum_of(tensors)
    assert checksum_of(dict(reversed(tensors.items()))) == expected
    others = [tensors | {"b": tensors["b"].view(4, 1024)}, {**tensors, "e": tensors["d"]}]
    others += [tensors | {"d": tensors["d"].double()}, tensors | {"c": tensors["c"].flip(0)}]
    others += [tensors | {"c": tensors["c"].roll(1, 1)}, tensors | {"a": tensors["a"].flip(0)}]
    for name, place, bit in (("a", 0, 0), ("a", 2459, 15), ("b", 4095, 31), ("c", 1500, 63), ("c", 0, 62)):
        changed = tensors[name].clone()
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[changed.itemsize]
        mask = torch.tensor(1, dtype=kind) << bit
        changed.view(-1).view(kind)[place] ^= mask
        others.append(tensors | {name: changed})
    found = [checksum_of(other) for other in others]
    assert expected not in found
    assert len(set(found)) == len(found)


def test_a_session_without_checksums_opens_and_gets_them_with_what_is_added(
    model: vl.MiniMaxVL, tmp_path: Path
) -> None:
    session = model.read(document())
    session.save(tmp_path)
    before = json.loads((tmp_path / MANIFEST).read_text())
    assert before["checksums"].keys() == {before["ids"], before["states"], *(s["file"] for s in before["shards"])}
    alter()(tmp_path)  # as an earlier version saved it
    opened = model.open(tmp_path)
    assert opened.ask("What is red?") == session.ask("What is red?")
    opened.add(document("More of it."))
    opened.save(tmp_path)
    after = json.loads((tmp_path / MANIFEST).read_text())
    assert {after["ids"], after["states"]} <= after["checksums"].keys()
    assert model.open(tmp_path).tokens == opened.tokens


def test_what_is_missing_or_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """`session.json` names whole files, but one may go after it was read."""
    with pytest.raises(vl.CheckpointError, match=r"gone.safetensors is missing: copy it"):
        read_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(vl.CheckpointError, match=r"cannot be read \(.*\): check the disk"):
        read_tensors(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    with pytest.raises(vl.CheckpointError, match=r"cut.safetensors is damaged \(.*header"):
        read_tensors(tmp_path / "cut.safetensors")


def test_a_session_of_a_later_version_is_not_replaced(model: vl.MiniMaxVL, tmp_path: Path) -> None:
    session = model.read(document())
    session.save(tmp_path)
    alter(format=9)(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for door in (lambda: session.save(tmp_path), lambda: model.read(document(), folder=tmp_path, overwrite=True)):
        with pytest.raises(vl.CheckpointError, match="has format 9, and this version of minimax-vl reads 1 to 3"):
            door()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
