"""Makes the folder of pictures of things (`data.mix.cutouts`) from collections that packages bring.

    python -m vl.nano.prepare_things cutouts --icons node_modules/@iconify-json \\
        --stamps /usr/share/tuxpaint/stamps --clipart /usr/share/openclipart/png \\
        --gcompris /usr/share/gcompris-qt/rcc --photos photos

docs/training.md says what to install and docs/nano.md under which licences they are; `--names` prints the names alone.
Drawings are cropped to their ink and scaled to 112 px, photographs to 256 px: WebP, 2 KB each.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import Image

from vl.errors import ConfigError
from vl.nano.pictures.canvas import hsv
from vl.nano.pictures.cutouts import WHOLE, held_out_pictures, path_of, thing_list
from vl.nano.qt_resources import read_resources

# Names of the collections in `things.txt`, and of the packages in the scope @iconify-json.
_ICONS = {
    "openmoji": "openmoji",
    "fluent": "fluent-emoji-flat",
    "emojione": "emojione",
    "emojione1": "emojione-v1",
    "fxemoji": "fxemoji",
    "noto1": "noto-v1",
    "fluent3d": "fluent-emoji",
    "streamline": "streamline-emojis",
    "iconpark": "icon-park",
    "game": "game-icons",
    "mdi": "mdi",
    "ph": "ph",
}
_INKS = ("currentColor", "#2F88FF")  # of icons that have no colours of their own: each gets some, by its name
_SIDE, _PHOTO_SIDE, _DRAWN = 112, 256, 224  # px; icons are drawn larger and scaled
_QUALITY = 50
_ALPHA_STEPS = 3  # so many shades of transparency, and none: more take half of the file


def prepare(
    out: Path,
    icons: Path | None = None,
    stamps: Path | None = None,
    clipart: Path | None = None,
    photos: Path | None = None,
    gcompris: Path | None = None,
) -> Counter[str]:
    """Writes all pictures of the list that the collections have; returns how many were written and missing of each.

    Raises:
        ConfigError: without the package resvg-py, if there are icons to draw; as `read_resources`.
    """
    folders = {"stamps": stamps, "clipart": clipart, "photos": photos}
    counts: Counter[str] = Counter()
    for picture in dict.fromkeys(picture for thing in thing_list() for picture in thing.pictures):
        collection, item = picture.split(":", 1)
        if collection in _ICONS:
            image = _draw_icon(icons, collection, item)
        elif collection.startswith("gcompris"):
            image = find_in_gcompris(gcompris, item, ".webp" if collection in WHOLE else ".svg")
        else:
            image = find_picture(folders[collection], item)
        if image is None:
            counts[f"{collection} missing"] += 1
            continue
        file = out / path_of(picture)
        file.parent.mkdir(parents=True, exist_ok=True)
        small = scaled(image.convert("RGB"), _PHOTO_SIDE) if collection in WHOLE else _cut_out(image)
        small.save(file, quality=_QUALITY, method=6)
        counts[collection] += 1
    return counts


def _cut_out(image: Image.Image) -> Image.Image:
    """The ink alone, at most `_SIDE` px long, with few shades of transparency."""
    ink = image.getchannel("A").point(lambda value: 255 * (value > 24)).getbbox()
    small = scaled(image.crop(ink), _SIDE)
    step = 255 / _ALPHA_STEPS
    small.putalpha(small.getchannel("A").point(lambda value: round(round(value / step) * step)))
    return small


def scaled(image: Image.Image, side: int) -> Image.Image:
    scale = min(1.0, side / max(image.size))
    wide, high = (max(1, round(edge * scale)) for edge in image.size)
    return image.resize((wide, high), Image.Resampling.LANCZOS)


def find_picture(folder: Path | None, item: str) -> Image.Image | None:
    """The picture of a file of any of the formats."""
    for suffix in (".png", ".jpg", ".webp", ".svg") if folder else ():
        path = Path(str(folder), f"{item}{suffix}")
        if path.is_file():
            return _draw(path.read_text("utf-8")) if suffix == ".svg" else Image.open(path).convert("RGBA")
    return None


def find_in_gcompris(folder: Path | None, item: str, usual: str) -> Image.Image | None:
    """A picture of an activity, whose resources are a file: a photograph or one drawn in pixels, or in SVG."""
    activity, _, rest = item.partition("/")
    path = Path(str(folder), f"{activity}.rcc")
    files = _resources(path) if folder and path.is_file() else {}
    for suffix in (usual, ".webp"):
        content = files.get(f"gcompris/src/activities/{activity}/resource/{rest}{suffix}")
        if content is not None:
            return _draw(content.decode()) if suffix == ".svg" else Image.open(io.BytesIO(content)).convert("RGBA")
    return None


@lru_cache(maxsize=16)
def _resources(path: Path) -> dict[str, bytes]:
    return dict(read_resources(path))


@lru_cache(maxsize=16)
def _icon_set(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _draw_icon(folder: Path | None, collection: str, name: str) -> Image.Image | None:
    found = _icon_set(folder / _ICONS[collection] / "icons.json") if folder else None
    icon = found and found["icons"].get(name)
    if not found or not icon:
        return None
    left, top, wide, high = (
        icon.get(key, found.get(key, usual)) for key, usual in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return _draw(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {wide} {high}" width="{wide}" height="{high}">{_inked(icon["body"], name)}</svg>'
    )


def _inked(body: str, name: str) -> str:
    for number, ink in enumerate(_INKS):
        hue, light = divmod(crc32(f"{name} {number}".encode()), 60)
        body = body.replace(ink, "#{:02x}{:02x}{:02x}".format(*hsv(hue % 360, 0.3 + light / 100, 0.4 + light / 100)))
    return body


def _draw(text: str) -> Image.Image | None:
    """A drawing in SVG at `_DRAWN` px; None if it cannot be read."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ConfigError("drawings need resvg-py: pip install resvg-py") from error
    try:
        return Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=text, width=_DRAWN)))).convert("RGBA")
    except ValueError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, help="the folder to write")
    for name in ("icons", "stamps", "clipart", "photos", "gcompris"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument(
        "--names", action="store_true", help="print the names of the things, by kind, and how many pictures there are"
    )
    options = parser.parse_args()
    if options.names:
        things = thing_list()
        for kind in dict.fromkeys(thing.kind for thing in things):
            print(f"- {kind}: {', '.join(thing.name for thing in things if thing.kind == kind)}")
        pictures, held = sum(len(thing.pictures) for thing in things), sum(map(len, map(held_out_pictures, things)))
        print(f"{len(things)} things with {pictures} pictures, of which {held} are held out")
        return 0
    if options.out is None:
        parser.error("name the folder to write, or use --names")
    counts = prepare(options.out, options.icons, options.stamps, options.clipart, options.photos, options.gcompris)
    for what, count in sorted(counts.items()):
        print(f"{what}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
