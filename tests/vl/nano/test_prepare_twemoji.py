"""A font of layers whose own outlines are empty becomes one that Pillow draws."""

from __future__ import annotations

from pathlib import Path

from fontTools.colorLib.builder import buildCOLR, buildCPAL
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from vl.nano.pictures.emoji_faces import _open_emoji_face, draw_glyph
from vl.nano.prepare_twemoji import prepare

CODE = 0x1F600  # a grinning face


def rectangle(left: int, bottom: int, right: int, top: int) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for corner in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def make_font(path: Path) -> None:
    builder = FontBuilder(1000)
    names = [".notdef", "grin", "face", "mouth", "other"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({CODE: "grin", 0x41: "other"})
    empty = TTGlyphPen(None).glyph()
    shapes = {"face": rectangle(100, 0, 900, 800), "mouth": rectangle(300, 200, 700, 400)}
    builder.setupGlyf({name: shapes.get(name, empty) for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Layers", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.font["COLR"] = buildCOLR({"grin": [("face", 0), ("mouth", 1)]}, version=0)
    builder.font["CPAL"] = buildCPAL([[(1.0, 0.8, 0.0, 1.0), (0.5, 0.0, 0.0, 1.0)]])
    builder.save(path)


def test_a_glyph_of_layers_alone_is_given_an_outline_and_drawn_whole(tmp_path: Path) -> None:
    source, out = tmp_path / "layers.ttf", tmp_path / "fonts" / "Twemoji.ttf"
    make_font(source)
    assert _open_emoji_face("Twemoji", source) is None, "nothing that Pillow would draw"
    assert prepare(source, out) == 1
    face = _open_emoji_face("Twemoji", out)
    assert face is not None
    assert face.codes == (CODE,)
    glyph = draw_glyph(face, CODE, 100)
    assert abs(glyph.picture.width - 80) <= 2
    assert abs(glyph.picture.height - 80) <= 2
    colours = {colour for _, colour in glyph.picture.convert("RGB").getcolors(10000)}  # type: ignore[union-attr]
    assert {(255, 204, 0), (128, 0, 0)} <= colours
