"""Files of images that come again are neither decoded nor cut, and are told by what is in them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import ImageError, Inputs, Patcher, Processor
from preprocessing.cut import image_digest
from preprocessing.images import load_image
from preprocessing.kept import KeptImages, is_encoded


def encoded(seed: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "PNG")
    return out.getvalue()


def messages(*images: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image} for image in images]}]


def same(found: Inputs, expected: Inputs) -> None:
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.tiles[:], expected.tiles[:])
    assert found.grids == expected.grids


def test_the_same_file_by_any_name_is_cut_once(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor: Processor = tiny_model.processor
    content, kept = encoded(0), KeptImages(2**24)
    (tmp_path / "one.png").write_bytes(content)
    (tmp_path / "two.dat").write_bytes(content)
    expected = processor(messages(content, Image.open(io.BytesIO(content)), encoded(1)))
    same(processor(messages(content, Image.open(io.BytesIO(content)), encoded(1)), kept=kept), expected)
    cuts: list[Image.Image] = []
    cut = Patcher.__call__
    monkeypatch.setattr(Patcher, "__call__", lambda self, image: cuts.append(image) or cut(self, image))
    text = base64.b64encode(content).decode()
    names: list[Any] = [
        tmp_path / "one.png", str(tmp_path / "two.dat"), bytearray(content), io.BytesIO(content), text,
        f"data:image/png;base64,{text}", {"bytes": content, "path": None},
    ]  # fmt: skip
    for name in names:
        same(processor(messages(name), kept=kept), processor(messages(content)))
    assert kept.hits == len(names)
    assert len(cuts) == len(names), "those of the inputs to compare with"


def test_a_file_that_changes_is_another_image(tiny_model: Any, tmp_path: Path) -> None:
    processor, kept, path = tiny_model.processor, KeptImages(2**24), tmp_path / "image.png"
    for seed in (0, 1, 0):
        path.write_bytes(encoded(seed))
        same(processor(messages(path), kept=kept), processor(messages(path)))
    assert kept.hits == 1


def test_how_it_is_cut_and_on_what_it_is_laid_tell_images_apart() -> None:
    kept, content = KeptImages(2**24), encoded(0, mode="RGBA")
    one, other = Patcher(), Patcher(pinpoints=((336, 336), (672, 336)))
    for patcher in (one, other):
        for background in (None, "white", (255, 255, 255), "black"):
            found = kept(content, patcher, background=background)
            tiles, grid = patcher(load_image(content, background=background))
            assert torch.equal(found.tiles, tiles)
            assert found.grid == grid
            assert found.digest == image_digest(tiles, grid)
    assert kept.hits == 2, "white by another name"


def test_errors_name_the_image_and_nothing_is_kept_of_it(tiny_model: Any) -> None:
    kept = KeptImages(2**24)
    for _ in range(2):
        with pytest.raises(ImageError, match="image 2"):
            tiny_model.processor(messages(encoded(0), encoded(1)[:200]), kept=kept)
    assert kept.nbytes == kept(encoded(0), tiny_model.processor.patcher).tiles.nbytes


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 4), max_size=25), room=st.integers(0, 4))
def test_it_keeps_the_last_used_and_no_more_than_it_may(seeds: list[int], room: int) -> None:
    patcher = Patcher(pinpoints=((28, 28),), tile=28)
    size = 2 * 3 * 28 * 28
    kept = KeptImages(room * size + size // 2)
    used: list[int] = []
    for seed in seeds:
        hits, expected = kept.hits, seed in used[-room:] if room else False
        assert torch.equal(kept(encoded(seed), patcher).tiles, patcher(Image.open(io.BytesIO(encoded(seed))))[0])
        assert kept.hits - hits == expected
        used = [*(each for each in used if each != seed), seed]
        assert kept.nbytes == min(room, len(used)) * size


@pytest.mark.parametrize("source", [Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)])
def test_decoded_images_are_cut_each_time(tiny_model: Any, source: Any) -> None:
    kept = KeptImages(2**24)
    assert not is_encoded(source)
    same(tiny_model.processor(messages(source), kept=kept), tiny_model.processor(messages(source)))
    assert kept.nbytes == 0
