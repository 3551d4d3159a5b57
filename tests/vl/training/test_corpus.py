from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vl
from preprocessing import Processor, image_size
from vl.training.config import DataConfig
from vl.training.corpus import Corpus
from vl.training.lengths import SKIPPED, measure_records, record_length

from .conversations import picture, talk, write_jsonl, write_tar


def test_jsonl_images_count_from_the_file_and_every_form_gives_one_result(tmp_path: Path, processor: Processor) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    data_url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    by_url = talk("images/a.png")
    by_url["messages"][0]["content"][0] = {"type": "image_url", "image_url": {"url": data_url}}
    caption = {"image": "images/a.png", "prompt": "What?", "caption": "A box."}
    records = Corpus(
        [write_jsonl(tmp_path / "a.jsonl", [talk("images/a.png"), "", by_url, by_url["messages"], caption])]
    )
    assert len(records) == 4
    assert [records.name(i).rpartition(":")[2] for i in range(4)] == ["1", "3", "4", "5"]
    expected = processor.training(talk(picture())["messages"])
    for i in range(4):
        inputs, learnt = processor.training(records.messages(i))
        assert torch.equal(inputs.input_ids, expected[0].input_ids)
        assert torch.equal(inputs.tiles, expected[0].tiles)
        assert torch.equal(learnt, expected[1])


def test_shards_give_what_jsonl_gives(tmp_path: Path, processor: Processor) -> None:
    two = talk("second.png")
    two["messages"][0]["content"].insert(0, {"type": "image"})
    shard = write_tar(
        tmp_path / "s-000.tar",
        {
            "d/one.JPG": picture(form="JPEG"),
            "d/one.json": json.dumps(talk("jpg")).encode(),
            "d/two.png": picture(50, 50),
            "d/two.second.png": picture(20, 60),
            "d/two.json": json.dumps(two).encode(),
            "d/three.webp": picture(form="WEBP", lossless=True),
            "d/three.txt": b"A box.\n",
            "d/four.png": picture(),
            "d/four.json": json.dumps({"caption": "A box.", "prompt": "What?", "width": 40}).encode(),
        },
    )
    records = Corpus([str(tmp_path / "s-*.tar")])
    assert len(records) == 4
    assert records.name(1) == f"{shard}:d/two"
    sizes = [[(g.width, g.height) for g in processor.training(records.messages(i))[0].grids] for i in range(4)]
    assert sizes == [[(40, 30)], [(50, 50), (20, 60)], [(40, 30)], [(40, 30)]]
    inputs, _ = processor.training(records.messages(3))
    assert torch.equal(inputs.input_ids, processor.training(talk(picture())["messages"])[0].input_ids)


def test_an_existing_file_goes_before_a_pattern(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "talks[1].jsonl", [talk("a.png")])
    write_jsonl(tmp_path / "talks1.jsonl", [talk("a.png")] * 2)
    assert len(Corpus([tmp_path / "talks[1].jsonl"])) == 1
    assert len(Corpus([tmp_path / "talks[12].jsonl"])) == 2


def test_a_file_that_several_patterns_are_for_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (write_jsonl(tmp_path / name, [talk("a.png")]) for name in ("a.jsonl", "b.jsonl"))
    monkeypatch.chdir(tmp_path)
    records = Corpus([b, "*.jsonl", "./**/a.jsonl"])
    assert [file.path.resolve() for file in records.files] == [b, a]
    assert [path.resolve() for path in records.again] == [b, a]
    assert len(records) == 2
    assert Corpus([a, b]).again == []
    (tmp_path / "c.jsonl").symlink_to(a)  # whose images may be others
    assert len(Corpus(["*.jsonl"])) == 3


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", [talk("a.png")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vl.ConfigError, match=r"a\.jsonl is named twice: drop one; or, .* a second name"):
        Corpus([a, "./a.jsonl"])


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("none.jsonl", None, "no data file"),
        ("*.tar", None, "no data file"),
        (".", None, "is a folder, and no data file: name the files in it, such as '.*/\\*.jsonl'"),
        ("a.parquet", b"x", "neither .jsonl nor .tar"),
        ("a.tar.gz", b"x", "unpack it"),
        ("empty.jsonl", b"\n\n", "no record"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, data: bytes | None, cause: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(vl.ConfigError, match=cause) as caught:
        Corpus([tmp_path / name])
    assert name in str(caught.value)


BAD: list[tuple[Any, str, str]] = [
    ("{not json", "messages", "not JSON"),
    ({"question": "?"}, "messages", "got an object with question"),
    ("3", "messages", "got int"),
    (talk("gone.png"), "image", "no such file"),
    (talk("text.png"), "image", "not an image"),
    (talk(None), "messages", "has no image"),
    (talk(5), "messages", "got int"),
    ({"messages": [{"role": "user", "content": "Hello"}]}, "messages", "no assistant message"),
    ({"messages": [{"role": "robot", "content": "Hello"}]}, "messages", "role must be"),
    ({"messages": []}, "messages", "non-empty"),
    ({"messages": [{"role": "assistant", "content": "word " * 2000}]}, "too long", "data.max_tokens"),
]


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_turns_that_are_not_to_be_learnt_are_not(tmp_path: Path, key: str) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes.", key: 1}]
    records = [
        {"messages": turns},
        turns,
        {"messages": [turns[0], turns[1] | {key: 0}]},
        [turns[0], turns[1] | {key: 0}],
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    file = Corpus([tmp_path / "a.jsonl"])
    assert [len(file.messages(i)) for i in range(2)] == [2, 2]
    for i in range(2, 4):
        with pytest.raises(vl.InputError, match=f'"{key}": 0 is not obeyed'):
            file.messages(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_are_counted_with_their_cause(tmp_path: Path, processor: Processor, workers: int) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "text.png").write_text("not an image at all")
    lines = [talk("a.png"), *(record for record, _, _ in BAD), *[talk("a.png")] * 80]
    records = Corpus([write_jsonl(tmp_path / "a.jsonl", lines)])
    config = DataConfig(workers=workers, max_tokens=900)
    found = measure_records(records, processor, config, tmp_path)
    assert found.lengths.tolist() == [found.lengths[0], *[0] * len(BAD), *[found.lengths[0]] * 80]
    assert found.lengths[0] == len(processor.training(records.messages(0))[0])
    kinds = [kind for _, kind, _ in BAD]
    assert found.causes == {kind: kinds.count(kind) for kind in kinds}
    for item, (_, _, cause), line in zip(found.skipped, BAD, range(2, 2 + len(BAD)), strict=True):
        assert item.record == f"{tmp_path / 'a.jsonl'}:{line}"
        assert cause in item.cause
    rows = [json.loads(row) for row in (tmp_path / SKIPPED).read_text("utf-8").splitlines()[1:]]
    assert [row["record"] for row in rows] == [item.record for item in found.skipped]


def test_a_survey_is_found_again_until_the_data_changes(tmp_path: Path, processor: Processor) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "caption": "A box."}] * 2)
    (tmp_path / "a.png").write_bytes(picture())
    first = measure_records(Corpus([path]), processor, DataConfig(workers=0), tmp_path)
    (tmp_path / "a.png").unlink()
    again = measure_records(Corpus([path]), processor, DataConfig(workers=0), tmp_path)
    assert again.lengths.tolist() == first.lengths.tolist()
    write_jsonl(path, [{"messages": [{"role": "assistant", "content": "Hello"}]}])
    changed = measure_records(Corpus([path]), processor, DataConfig(workers=0), tmp_path)
    assert len(changed.lengths) == 1


def test_nothing_usable_is_an_error(tmp_path: Path, processor: Processor) -> None:
    records = Corpus([write_jsonl(tmp_path / "a.jsonl", [talk("gone.png")] * 3)])
    with pytest.raises(vl.ConfigError, match=r"none of the 3 records can be used; .*no such file"):
        measure_records(records, processor, DataConfig(workers=0), tmp_path)


def test_images_of_a_shard_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    two = json.dumps(talk(None)).encode()
    write_tar(tmp_path / "a.tar", {"1.json": two, "1.0.png": picture(), "2.PNG": picture(), "2.png": picture()})
    records = Corpus([tmp_path / "a.tar"])
    with pytest.raises(vl.InputError, match=r"has 0 images for parts that name none; others, .* are named"):
        records.messages(0)
    with pytest.raises(vl.InputError, match=r"two \.png files"):
        records.messages(1)


def test_a_shard_that_was_cut_gives_what_is_whole(tmp_path: Path, processor: Processor) -> None:
    members = {f"{i}.{kind}": picture() if kind == "png" else b"A box." for i in range(4) for kind in ("png", "txt")}
    path = write_tar(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes()[: 5 * 512])
    found = measure_records(Corpus([path]), processor, DataConfig(workers=0), tmp_path)
    assert 0 < np_count(found.lengths) < 4
    assert any("whole tar file" in item.cause for item in found.skipped)


def np_count(lengths: Any) -> int:
    return int((lengths > 0).sum())


@pytest.mark.parametrize("turn", range(1, 9))
def test_header_sizes_are_of_the_upright_image(tmp_path: Path, processor: Processor, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = picture(60, 20, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = processor.training(talk(data)["messages"])[0]
    assert (
        image_size(data) == image_size(str(tmp_path / "a.jpg")) == (expected.grids[0].width, expected.grids[0].height)
    )
    assert record_length(talk(data)["messages"], processor) == len(expected)
