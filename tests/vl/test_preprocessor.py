"""What the files say about pixels: the release's form, the forms of transformers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaNextImageProcessor, LlavaNextProcessor, PreTrainedTokenizerFast

import vl
from preprocessing.grid import PINPOINTS
from vision_encoder.config import VisionConfig
from vl.config import VLConfig, read_config, write_config
from vl.errors import ConfigError

RELEASE = Path(__file__).parents[1] / "release"
CONFIG: dict[str, Any] = json.loads((RELEASE / "config.json").read_text())
PREPROCESSOR: dict[str, Any] = json.loads((RELEASE / "preprocessor_config.json").read_text())
BARE = {key: value for key, value in CONFIG.items() if key != "image_grid_pinpoints"}
NANO = Path(vl.__file__).parent / "pretrained" / "nano"


def read(
    folder: Path,
    preprocessor: dict[str, Any] | None = None,
    processor: dict[str, Any] | None = None,
    config: dict[str, Any] = BARE,
) -> VLConfig:
    """The configuration in a folder with these files."""
    files = {"config": config, "preprocessor_config": preprocessor, "processor_config": processor}
    for name, contents in files.items():
        if contents is not None:
            (folder / f"{name}.json").write_text(json.dumps(contents))
    return read_config(folder)


def normalisation(config: VLConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    assert config.vision is not None
    return config.vision.image_mean, config.vision.image_std


def test_the_release(tmp_path: Path) -> None:
    config = read(tmp_path, PREPROCESSOR, config=CONFIG)
    assert config.vision == VisionConfig()
    assert config.pinpoints == PINPOINTS


def test_what_is_written_has_the_release_form(tmp_path: Path) -> None:
    write_config(read(tmp_path, PREPROCESSOR, config=CONFIG), tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["size"] == [336, 336]
    assert written == {key: value for key, value in PREPROCESSOR.items() if key != "processor_class"}
    assert not (tmp_path / "processor_config.json").exists()


@pytest.mark.parametrize(
    "size",
    [
        [336, 336],
        336,
        {"height": 336, "width": 336},
        {"height": 336, "width": 336, "longest_edge": None, "shortest_edge": None},
        {"shortest_edge": 336},
        {"shortest_edge": 336, "longest_edge": None},
        "336",
        "[336, 336]",
        "(336, 336)",
        "{'height': 336, 'width': 336}",
        ["336", "336"],
        {"height": "336", "width": "336"},
        None,
    ],
)
def test_one_size_in_many_forms(tmp_path: Path, size: Any) -> None:
    assert read(tmp_path, PREPROCESSOR | {"size": size, "crop_size": size}).vision == VisionConfig()


@pytest.mark.parametrize("file", ["preprocessor_config", "processor_config"])
@pytest.mark.parametrize("nested", [False, True])
def test_mean_deviation_and_pinpoints_are_obeyed(tmp_path: Path, file: str, nested: bool) -> None:
    keys = {"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 0.2, 0.1], "image_grid_pinpoints": [[336, 672]]}
    contents = PREPROCESSOR | keys
    (tmp_path / f"{file}.json").write_text(json.dumps({"image_processor": contents} if nested else contents))
    config = read(tmp_path)
    assert normalisation(config) == ((0.5, 0.4, 0.3), (1.0, 0.2, 0.1))
    assert config.pinpoints == ((336, 672),)


def test_one_number_is_for_all_channels(tmp_path: Path) -> None:
    assert normalisation(read(tmp_path, {"image_mean": 0.5, "image_std": 0.25})) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("text", ["[(336, 672), (672, 336)]", "[[336, 672], [672, 336]]", [[336, 672], [672, 336]]])
def test_pinpoints_as_text_or_lists(tmp_path: Path, text: Any) -> None:
    assert read(tmp_path, {"image_grid_pinpoints": text}).pinpoints == ((336, 672), (672, 336))


def test_pinpoints_that_no_file_gives_are_the_release_s(tmp_path: Path) -> None:
    assert read(tmp_path, config=BARE | {"image_grid_pinpoints": None}).pinpoints == PINPOINTS


@pytest.mark.parametrize("key", ["image_mean", "image_std", "image_grid_pinpoints"])
def test_files_that_contradict_each_other_are_both_named(tmp_path: Path, key: str) -> None:
    other = {"image_grid_pinpoints": [[336, 672]]}.get(key, [0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match=rf"/processor_config\.json: .*{key} .*/preprocessor_config\.json"):
        read(tmp_path, PREPROCESSOR, {"image_processor": PREPROCESSOR | {key: other}})
    (tmp_path / "processor_config.json").unlink()
    if key == "image_grid_pinpoints":
        with pytest.raises(ConfigError, match=rf"/preprocessor_config\.json: {key} .*/config\.json"):
            read(tmp_path, PREPROCESSOR | {key: other}, config=CONFIG)


def test_files_that_agree_may_repeat_each_other(tmp_path: Path) -> None:
    config = read(tmp_path, PREPROCESSOR, {"image_processor": PREPROCESSOR, "patch_size": 14}, CONFIG)
    assert config == read(tmp_path, PREPROCESSOR, config=CONFIG)


def transformers_processor(**options: Any) -> LlavaNextImageProcessor:
    pinpoints = [[336, 672], [672, 336]]
    return LlavaNextImageProcessor(size=[336, 336], crop_size=336, image_grid_pinpoints=pinpoints, **options)


@pytest.mark.parametrize("nested", [False, True])
def test_files_that_transformers_writes(tmp_path: Path, nested: bool) -> None:
    images = transformers_processor(image_mean=[0.5, 0.4, 0.3])
    if nested:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(NANO / "tokenizer.json"))
        LlavaNextProcessor(images, tokenizer, 14, "default").save_pretrained(tmp_path)
        assert not (tmp_path / "preprocessor_config.json").exists()
    else:
        images.save_pretrained(tmp_path)
    config = read(tmp_path)
    assert config.pinpoints == ((336, 672), (672, 336))
    assert normalisation(config) == ((0.5, 0.4, 0.3), VisionConfig.image_std)


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_resize": False},
        {"do_convert_rgb": False},
        {"rescale_factor": 1.0},
        {"resample": 2},
        {"crop_size": 224},
        {"size": {"height": 448, "width": 448}},
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    images = transformers_processor()
    for key, value in options.items():
        setattr(images, key, value)
    images.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json: {next(iter(options))}"):
        read(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"height": 448, "width": 448}),
        ("size", [336, 448]),
        ("size", {"longest_edge": 336}),
        ("size", {"shortest_edge": 336, "longest_edge": 672}),
        ("size", "large"),
        ("size", "[" * 1000),
        ("size", [[336, 336]]),
        ("size", 10**400),
        ("do_normalize", None),
        ("do_rescale", 0),
        ("do_resize", "yes"),
        ("do_pad", False),
        ("do_center_crop", True),
        ("do_thumbnail", True),
        ("do_flip_channel_order", True),
        ("size_divisor", 32),
        ("rescale_factor", None),
        ("rescale_factor", "1/255"),
        ("resample", None),
        ("resample", 0),
        ("image_mean", None),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, float("inf")]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", [0.5, None, 0.5]),
        ("image_mean", 1e308),
        ("image_std", 1e-300),
        ("interpolation", "bilinear"),
        ("antialias", False),
        ("image_aspect_ratio", "pad"),
        ("rescale_offset", True),
        ("crop_pct", 0.9),
        ("max_slice_nums", 9),
        ("process_image_mode", "dynamic_res"),
        ("patch_size", 16),
        ("image_token", "<img>"),
        ("image_grid_pinpoints", [[336, 500]]),
        ("image_grid_pinpoints", [[336 * 10**7, 336]]),
        ("image_grid_pinpoints", []),
    ],
)
def test_another_computation_is_refused_by_name(tmp_path: Path, key: str, value: Any, nested: bool) -> None:
    contents = PREPROCESSOR | {key: value}
    where = r"processor_config\.json: image_processor\." if nested else r"preprocessor_config\.json: "
    with pytest.raises(ConfigError, match=where + key):
        read(tmp_path, *((None, {"image_processor": contents}) if nested else (contents,)))


@pytest.mark.parametrize("key", ["do_center_crop", "crop_size", "do_pad", "size_divisor", "pad_size"])
def test_null_leaves_out_what_is_not_a_step_of_ours(tmp_path: Path, key: str) -> None:
    """As some releases of transformers write them."""
    assert read(tmp_path, PREPROCESSOR | {key: None}).vision == VisionConfig()


@pytest.mark.parametrize("contents", [[], {"image_processor": []}, {"image_processor": "clip"}])
def test_a_processor_file_that_is_no_object(tmp_path: Path, contents: Any) -> None:
    with pytest.raises(ConfigError, match=r"processor_config\.json"):
        read(tmp_path, None, contents)
