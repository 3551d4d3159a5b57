"""Answers held to a JSON schema: their properties as columns, in every sink and from every engine."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl.cli.app import run as command
from vl.engine import Generation, Timings, Usage
from vl.errors import InputError
from vl.jobs import JobError, Prompts, Schema, caption_images, caption_rows
from vl.jobs.columns import fields, fitted, restored
from vl.jobs.engines import Engines

from .fakes import FakeModel, FakeRequest, read

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "across": {"type": "integer"},
        "ratio": {"type": "number"},
        "tall": {"type": "boolean"},
        "kind": {"$ref": "#/$defs/kind"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "box": {"type": "object", "properties": {"w": {"type": "integer"}}, "additionalProperties": False},
        "any": {"type": "object"},
    },
    "required": ["across"],
    "$defs": {"kind": {"enum": ["wide", "narrow"]}},
}


def values(width: int, height: int) -> dict[str, Any]:
    """What the model below says of an image, but for `note`."""
    kind, box = "wide" if width > height else "narrow", {"w": width}
    found = {"across": width, "ratio": width / height, "tall": height > width, "kind": kind, "tags": ["a", "é"]}
    return found | {"box": box, "any": {"x": [1, None]}}


class JsonModel(FakeModel):
    """Says an image's size as JSON; `say` makes its text another, and how it ended."""

    def __init__(self, say: Callable[[int, str], tuple[str, str]] = lambda width, text: (text, "stop")) -> None:
        super().__init__()
        self.say = say
        self.formats: list[Any] = []

    def submit(self, inputs: Any, params: Any) -> FakeRequest:
        self.formats.append(params.response_format)
        request, grid = super().submit(inputs, params), inputs.grids[0]
        text, reason = self.say(grid.width, json.dumps(values(grid.width, grid.height)))
        answer = Generation(text, [1], reason, Usage(7, 3, 4), Timings(decode=0.5))  # type: ignore[arg-type]
        request.result = lambda: answer  # type: ignore[method-assign]
        return request


def cut_at_seven(width: int, text: str) -> tuple[str, str]:
    return (text[:10], "length") if width == 7 else (text, "stop")


def size_of(row: dict[str, Any]) -> tuple[int, int]:
    with Image.open(row["image"]) as image:
        return image.size


def assert_columns(row: dict[str, Any]) -> None:
    expected = values(*size_of(row)) | {"note": None}
    assert {name: row[name] for name in expected} == expected


def test_rows_and_resuming(archive: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out.jsonl", JsonModel(cut_at_seven)
    caption_images(model, [archive], out, schema=SCHEMA, batch_size=4)
    rows = {Path(row["image"]).name: row for row in read(out)}
    good, cut, broken = rows["03.png"], rows["07.png"], rows["broken.jpg"]
    assert list(good)[:4] == ["image", "caption", "across", "ratio"]
    assert good["caption"] == json.dumps(values(3, 5))
    assert_columns(good)
    assert cut["error"].startswith(f"{cut['image']}: the answer was cut after 4 tokens")
    assert "max_new_tokens" in cut["error"]
    assert (cut["caption"], cut["finish_reason"]) == ('{"across":', "length"), "the raw text is kept"
    assert "caption" not in broken
    assert model.formats[0]["json_schema"]["schema"] == SCHEMA | {"additionalProperties": False}
    assert good["settings"]["schema"] == Schema.of(SCHEMA).digest
    tally = caption_images(JsonModel(), [archive], out, schema=SCHEMA, retry_errors=True)
    assert (tally.captions, tally.errors, tally.skipped) == (1, 1, 11)
    assert len(read(out)) == 13


def test_another_schema_is_another_setting(archive: Path, tmp_path: Path) -> None:
    other = {"type": "object", "properties": {"across": {"type": "number"}}}
    for name in ("out.jsonl", "out.parquet"):
        out = tmp_path / name
        caption_images(JsonModel(), [archive], out, schema=SCHEMA)
        for changed in ({"schema": other}, {}, {"schema": other, "mix": True}):
            with pytest.raises(JobError, match="made with schema"):
                caption_images(JsonModel(), [archive], out, **changed)
        reordered = dict(reversed(SCHEMA.items()))
        assert caption_images(JsonModel(), [archive], out, schema=reordered).skipped == 13
    caption_images(FakeModel(), [archive], tmp_path / "plain.jsonl")
    with pytest.raises(JobError, match="made with schema None"):
        caption_images(JsonModel(), [archive], tmp_path / "plain.jsonl", schema=SCHEMA)


def test_typed_columns_of_parquet(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    caption_images(JsonModel(cut_at_seven), [archive], out, schema=SCHEMA)
    table = duckdb.sql(f"FROM '{out}/*.parquet'")
    kinds = dict(zip(table.columns, map(str, table.dtypes), strict=True))
    assert {name: kinds[name] for name in SCHEMA["properties"]} == {
        "across": "BIGINT",
        "ratio": "DOUBLE",
        "tall": "BOOLEAN",
        "kind": "VARCHAR",
        "note": "VARCHAR",
        "tags": "VARCHAR[]",
        "box": "STRUCT(w BIGINT)",
        "any": "VARCHAR",
    }
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    whole = [row for row in rows if row["error"] is None]
    assert len(rows) == 13
    assert len(whole) == 11
    for row in whole:
        assert_columns(row | {"any": json.loads(row["any"])})
    [cut] = [row for row in rows if row["caption"] is not None and row["error"] is not None]
    assert cut["caption"] == '{"across":'
    assert cut["across"] is None
    copy = tmp_path / "copy.png"
    copy.write_bytes((archive / "shelf0" / "03.png").read_bytes())
    found: list[Any] = []
    caption_images(FakeModel(), [copy], out, schema=SCHEMA, on_row=lambda row, _: found.append(row))
    assert_columns(found[0])
    assert found[0]["seconds"] == 0.0, "of the part, where the same image has its row"


def test_shards_have_the_columns_in_their_rows(archive: Path, tmp_path: Path) -> None:
    caption_images(JsonModel(cut_at_seven), [archive / "shelf1"], tmp_path / "out.wds", schema=SCHEMA)
    with tarfile.open(tmp_path / "out.wds" / "part-00000.tar") as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    rows = [json.loads(content) for name, content in files.items() if name.endswith(".json")]
    for row in rows:
        assert_columns(row)
    assert len(rows) == 3
    assert files["000000000.txt"].decode() == rows[0]["caption"]
    errors = [json.loads(line) for line in files["__errors__"].splitlines()]
    assert {row.get("caption") for row in errors} == {None, '{"across":'}


def test_several_prompts_and_templates(archive: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    images = sorted(archive.rglob("[0-9]*.png"))[:3]
    table.write_text("".join(json.dumps({"image": str(path), "of": path.stem}) + "\n" for path in images))
    prompt = {"short": "In short, {of}?", "long": "At length?"}
    for name in ("out.jsonl", "out.parquet"):
        seen: list[Any] = []
        schema = {"properties": {"across": {"type": "integer"}}}
        model = JsonModel(lambda width, text: (json.dumps({"across": width}), "stop"))
        out = tmp_path / name
        caption_images(
            model, [table], out, prompt=prompt, schema=schema, on_row=lambda row, _, seen=seen: seen.append(row)
        )
        assert len(seen) == len(images)
        for row in seen:
            assert row["short_across"] == row["long_across"] == size_of(row)[0]
        with pytest.raises(JobError, match="schema"):
            caption_images(model, [table], out, prompt=prompt)


def test_names_that_rows_have(tmp_path: Path) -> None:
    prompts = Prompts.of({"short": "a", "long": "b"})
    assert list(prompts.held_to(Schema.of({"properties": {"seconds": {}}})).values) == ["short_seconds", "long_seconds"]
    for name in ("seconds", "Image", "caption", "id"):
        with pytest.raises(InputError, match=rf"property '{name}' cannot be a column"):
            Prompts.of("a").held_to(Schema.of({"properties": {name: {"type": "string"}}}))
    with pytest.raises(InputError, match="'B' cannot be a column"):
        Prompts.of("a").held_to(Schema.of({"properties": {"b": {}, "B": {}}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON schema of an object"),
        ('{"type": "string"}', "must be a JSON schema of an object"),
        ('{"type": "object"}', "must name properties"),
        ('{"properties": {"a": {"type": "nothing"}}}', r"is no JSON schema: .*'nothing'"),
        ('{"properties": {"a": {}}, "additionalProperties": true}', "additionalProperties allows"),
        ('{"properties": {"a": {}}, "patternProperties": {"b": {}}}', "patternProperties allows"),
        ('{"properties": {"a": {"$ref": "#/$defs/b"}}}', "refers to '#/\\$defs/b', which is not in it"),
        ('{"properties": {"a": {"$ref": "https://x.org/a.json"}}}', "refers to 'https://x.org/a.json'"),
        ('{"properties": {"seconds": {}}}', "'seconds' cannot be a column"),
        ("[" * 100_000, "is not JSON"),
        ('{"properties": {"a": {"not": {}}}, "required": ["a"]}', r"schema.json: answers cannot be held to it: .*not"),
        (
            '{"properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}, "required": ["a"]}',
            "held to it: Unsatisfiable",
        ),
        (None, "cannot be read"),
    ],
)
def test_a_bad_schema_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        caption_images(FakeModel(), iter(lambda: pytest.fail("read"), ""), tmp_path / "out.jsonl", schema=path)
    assert not (tmp_path / "out.jsonl").exists()
    out = str(tmp_path / "out.jsonl")
    assert command(["caption", "no-such.png", "--out", out, "--schema", str(path), "--model", "no-such-model"]) == 2
    assert "Invalid value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "is no JSON"),
        ("[]", "is not of the schema"),
        ('{"across": "3"}', r"is not of the schema: \$\.across: '3' is not of type 'integer'"),
        ('{"across": 3, "more": 1}', "'more' was unexpected"),
        ('{"across": 1' + 30 * "0" + "}", "more than 64 bits"),
        ('{"across": 1e19}', "is not of type 'integer'"),
        ('{"across": 1, "ratio": 1e999}', "not finite"),
        ('{"across": NaN}', "is not finite"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_answers_of_another_form_are_errors(archive: Path, text: str, message: str) -> None:
    """As a server may give them, which holds to no form."""
    model = JsonModel(lambda width, _: (text, "stop"))
    prompts = Prompts.of("What?").held_to(Schema.of(SCHEMA))
    [[row]] = caption_rows(model, [str(archive / "shelf0" / "03.png")], prompt=prompts)  # type: ignore[arg-type]
    assert "the answer is no" in row["error"]
    with pytest.raises(InputError, match=message):
        Schema.of(SCHEMA).values(text)
    assert row["caption"] == text


def test_schemas_without_end(tmp_path: Path) -> None:
    """Columns of what refers to itself are JSON, found at once; an answer as deep as no column's is an error."""
    node: dict[str, Any] = {"type": "object", "additionalProperties": False}
    node["properties"] = {name: {"$ref": "#/$defs/n"} for name in "abcd"}
    lists = {"type": "array", "items": {"$ref": "#/$defs/l"}}
    pair = {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}}
    body = {"properties": {"tree": {"$ref": "#/$defs/n"}, "l": {"$ref": "#/$defs/l"}, "pair": pair}}
    schema = Schema.of(body | {"$defs": {"n": node, "l": lists}})
    assert [field.type for field in fields(Prompts.of("?").held_to(schema))] == 3 * [pyarrow.string()]
    with pytest.raises(InputError, match="is nested too deeply"):
        schema.values('{"l": ' + "[" * 400 + "]" * 400 + "}")
    assert schema.values('{"pair": [5, "a"]}')["pair"] == [5, "a"]


KINDS: Any = st.deferred(lambda: PLAIN | LISTS | OBJECTS)
PLAIN = st.sampled_from(
    [
        ({"type": "string"}, st.text()),
        ({"type": "integer"}, st.integers(-(2**63), 2**63 - 1)),
        ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)),
        ({"type": "boolean"}, st.booleans()),
        ({"type": ["string", "null"]}, st.none() | st.text()),
        ({}, st.none() | st.integers(0, 9) | st.lists(st.text(max_size=3), max_size=2)),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, st.text() | st.integers(0, 9)),
    ]
)
LISTS = KINDS.map(lambda kind: ({"type": "array", "items": kind[0]}, st.lists(kind[1], max_size=3)))
OBJECTS = st.lists(KINDS, min_size=1, max_size=3).map(
    lambda kinds: (
        {
            "type": "object",
            "properties": {f"p{i}": kind[0] for i, kind in enumerate(kinds)},
            "additionalProperties": False,
        },
        st.fixed_dictionaries({f"p{i}": kind[1] for i, kind in enumerate(kinds)}),
    )
)


@given(kind=OBJECTS, data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_answer_goes_through_parquet(kind: Any, data: st.DataObject) -> None:
    import pyarrow

    body, answers = kind
    answer = data.draw(answers)
    jsonschema.validate(answer, body)
    prompts = Prompts.of("a").held_to(Schema.of(body))
    found = prompts.read("caption", json.dumps(answer))
    columns = fields(prompts)
    table = pyarrow.Table.from_pylist([{f.name: fitted(found[f.name], f) for f in columns}], pyarrow.schema(columns))
    [row] = table.to_pylist()
    assert {f.name: restored(row[f.name], f) for f in columns} == found


def test_response_format_beside_a_schema_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not go with a schema"):
        caption_images(
            FakeModel(), [archive], tmp_path / "a.jsonl", schema=SCHEMA, response_format={"type": "json_object"}
        )


FLAT = {"properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}}}


def test_nano_in_a_process_of_its_own(archive: Path, tmp_path: Path) -> None:
    """What is real: the grammar, the model, and that a process can be told of the schema."""
    pytest.importorskip("llguidance")
    out, schema = tmp_path / "out.jsonl", FLAT | {"required": ["colour", "count"]}
    prompts = Prompts.of("a").held_to(Schema.of(schema))
    assert pickle.loads(pickle.dumps(prompts)) == prompts
    caption_images(Engines("nano", 1, device="cpu"), [archive / "shelf0"], out, schema=schema)
    rows = read(out)
    assert len(rows) == 4
    for row in rows:
        assert row["colour"] in ("red", "blue")
        assert row["count"] in range(10)
        assert json.loads(row["caption"]) == {"colour": row["colour"], "count": row["count"]}
