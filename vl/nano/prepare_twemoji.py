"""Makes a font of the emoji that `nano` draws, out of Twemoji as a font of layers:

    npm install twemoji-colr-font && pip install brotli
    python -m vl.nano.prepare_twemoji node_modules/twemoji-colr-font/twemoji.woff2 ~/.fonts/Twemoji.ttf

Pillow draws a glyph of layers no larger than the outlines that the glyph has itself, and these have none: each gets the
rectangle around its layers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fontTools import subset
from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

from vl.nano.pictures.emoji_faces import emoji_list

_UNUSED = ("FFTM", "GDEF", "GSUB", "gasp")


def prepare(source: Path, out: Path) -> int:
    """Writes a font of layers (COLR, version 0) anew, with the emoji of the list; returns how many of them it has."""
    font = TTFont(source)
    options = subset.Options(layout_features=[], hinting=False, notdef_outline=False, glyph_names=False)
    options.drop_tables += _UNUSED
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[emoji.code for emoji in emoji_list()])
    subsetter.subset(font)
    drawn = [glyph for glyph in font.getBestCmap().values() if glyph in font["COLR"].ColorLayers]
    for glyph in drawn:
        _give_outline(font, glyph)
    font.flavor = None
    out.parent.mkdir(parents=True, exist_ok=True)
    font.save(out)
    return len(drawn)


def _give_outline(font: TTFont, glyph: str) -> None:
    glyphs = font.getGlyphSet()
    around = BoundsPen(glyphs)
    for layer in font["COLR"].ColorLayers[glyph]:
        glyphs[layer.name].draw(around)
    if around.bounds is None:
        return
    left, bottom, right, top = around.bounds
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for corner in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(corner)
    pen.closePath()
    font["glyf"][glyph] = pen.glyph()
    font["hmtx"][glyph] = (font["hmtx"][glyph][0], round(left))


def main() -> None:
    parser = argparse.ArgumentParser(description="a font of Twemoji's drawings of the emoji that nano draws")
    parser.add_argument("source", type=Path, help="twemoji.woff2 of the npm package twemoji-colr-font")
    parser.add_argument("out", type=Path, help="the font to write, such as ~/.fonts/Twemoji.ttf")
    options = parser.parse_args()
    print(f"{prepare(options.source, options.out.expanduser())} of {len(emoji_list())} emoji in {options.out}")


if __name__ == "__main__":
    main()
