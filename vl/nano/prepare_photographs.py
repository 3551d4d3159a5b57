"""Makes a folder of photographs of nothing that the model knows (`data.mix.photos`) from what packages bring.

    python -m vl.nano.prepare_photographs photos --gcompris /usr/share/gcompris-qt/rcc \\
        --backgrounds /usr/share/backgrounds --wallpapers /usr/share/wallpapers

docs/training.md says what to install and docs/nano.md under which licences they are. They become JPEGs of 512 px, 20 KB
each. Other files in the folder are left as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

from vl.nano.prepare_things import find_in_gcompris, find_picture, scaled

_SIDE, _QUALITY = 512, 72


def photograph_list() -> tuple[str, ...]:
    """What `photographs.txt` lists: "collection:path"."""
    text = resources.files("vl.nano.pictures").joinpath("photographs.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def name_of(photograph: str) -> str:
    """The file's name in the folder; a wallpaper's own file is called by its size alone."""
    collection, item = photograph.split(":", 1)
    parts = item.split("/")
    return f"{parts[0] if collection == 'wallpapers' else parts[-1]}.jpg"


def prepare(out: Path, folders: dict[str, Path | None]) -> Counter[str]:
    """Writes all photographs of the list that the collections have; returns how many were written and missing of each.

    Raises:
        ConfigError: as `read_resources`.
    """
    counts: Counter[str] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    for photograph in photograph_list():
        collection, item = photograph.split(":", 1)
        folder = folders.get(collection)
        image = find_in_gcompris(folder, item, ".webp") if collection == "gcompris" else find_picture(folder, item)
        counts[collection if image else f"{collection} missing"] += 1
        if image:
            scaled(image.convert("RGB"), _SIDE).save(out / name_of(photograph), quality=_QUALITY)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    collections = ("gcompris", "backgrounds", "wallpapers")
    for name in collections:
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    counts = prepare(options.out, {name: getattr(options, name) for name in collections})
    for what, count in sorted(counts.items()):
        print(f"{what}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
