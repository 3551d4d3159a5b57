"""What a job asks about each image: one prompt or several, each with a column for its answers, perhaps of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from vl.errors import InputError
from vl.jobs.schema import Schema

if TYPE_CHECKING:
    from vl.engine import SamplingParams

CAPTION = "caption"
"""The column of a prompt that names none."""

TAKEN = (
    *("id", "image", "error", "digest", "width", "height", "resolution", "tiles", "prompt_tokens", "image_tokens"),
    *("completion_tokens", "finish_reason", "seconds", "model", "prompt", "settings"),
)
"""Columns of a row that are no answers."""

Prompt: TypeAlias = "str | Mapping[str, str] | Prompts"
"""One prompt, or several by the column of their answers."""

_COLUMN = re.compile(r"[a-z][a-z0-9_]*")
_NAMED = re.compile(rf"({_COLUMN.pattern})=(?=\S)")
_NAME = r"[^\W\d][\w.\-]*(?: [\w.\-]+)*"
_BRACES = re.compile(rf"\{{\{{({_NAME})\}}\}}|\{{({_NAME})\}}")


class Empty(InputError):
    """A row of a table has nothing in a column that a prompt names."""


@dataclass(frozen=True)
class Prompts:
    """Prompts by the column of their answers, in the order in which they are asked.

    `{category}` in a prompt stands for what the image's row of a table has in its column `category`, and
    `{{category}}` for the text `{category}`. Other braces stand for themselves: a prompt may hold JSON.

    Attributes:
        templates: the prompts as they are given; without fields, as they are asked.
        fields: the columns that they name, each once.
        schema: what all answers are held to; see `held_to`.
    """

    templates: Mapping[str, str]
    fields: tuple[str, ...]
    schema: Schema | None = None

    @classmethod
    def of(cls, prompt: Prompt) -> Prompts:
        """From what `caption_images` takes. Raises InputError for no prompt, one that is no text, or a column's name
        that rows have already or that is not of lower-case letters, digits and `_`."""
        if isinstance(prompt, Prompts):
            return prompt
        given = {CAPTION: prompt} if isinstance(prompt, str) else prompt
        if not isinstance(given, Mapping) or not given:
            raise InputError(f"prompt must be a text, or texts by the column of their answers, not {prompt!r:.80}")
        for column, text in given.items():
            if not isinstance(column, str) or not _COLUMN.fullmatch(column) or column in TAKEN:
                why = "rows have that column already" if column in TAKEN else "use lower-case letters, digits and _"
                raise InputError(f"answers cannot be in a column named {column!r}: {why}")
            if not isinstance(text, str):
                raise InputError(f"the prompt of column {column!r} must be a text, not {type(text).__name__}")
            if not text.strip():
                raise InputError(f"the prompt of column {column!r} is empty: say what to ask, or leave it out")
        found = [match[2] for text in given.values() for match in _BRACES.finditer(text) if match[2]]
        fields = tuple(dict.fromkeys(found))
        return cls(dict(given) if fields else {column: _filled(text, {}) for column, text in given.items()}, fields)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Prompts:
        """From a command line: `TEXT` or `COLUMN=TEXT` each; those without a column have `caption`, `caption_2`, ...

        Raises InputError, also for two prompts of one column.
        """
        given: dict[str, str] = {}
        unnamed = 0
        for text in texts:
            named = _NAMED.match(text)
            unnamed += not named
            column = named[1] if named else CAPTION if unnamed == 1 else f"{CAPTION}_{unnamed}"
            if column in given:
                raise InputError(f"two prompts have the column {column!r}: name another, as in short={text!r}")
            given[column] = text[named.end() :] if named else text
        return cls.of(given)

    def held_to(self, schema: Schema) -> Prompts:
        """The same, whose answers are JSON of a schema, with columns of their own for its properties.

        Raises:
            InputError: if rows have a column of such a name already, in any case of its letters.
        """
        held = replace(self, schema=schema)
        there = {name.casefold() for name in (*TAKEN, *self.columns)}
        for name in held.values:
            if name.casefold() in there:
                raise InputError(
                    f"the schema's property {name!r} cannot be a column: rows have that column already; rename it"
                )
            there.add(name.casefold())
        return held

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the answers' texts."""
        return tuple(self.templates)

    @property
    def values(self) -> dict[str, str]:
        """Columns of the schema's properties, and which property it is; of several prompts named after both."""
        properties = tuple(self.schema.properties) if self.schema else ()
        return {f"{self._before(column)}{name}": name for column in self.columns for name in properties}

    @property
    def answers(self) -> tuple[str, ...]:
        """All columns that come of answers, and that error rows may lack."""
        return (*self.columns, *self.values)

    def read(self, column: str, answer: str) -> dict[str, Any]:
        """The values in an answer to the prompt of that column, by theirs. Raises InputError, as `Schema.values`."""
        found = self.schema.values(answer) if self.schema else {}
        return {f"{self._before(column)}{name}": value for name, value in found.items()}

    def hold(self, params: SamplingParams) -> SamplingParams:
        """How answers are to be written. Raises InputError if that says of another form than the schema's."""
        if self.schema is None:
            return params
        if params.response_format is not None:
            raise InputError("response_format does not go with a schema, which says the form already: leave one out")
        return replace(params, response_format=self.schema.response_format)

    @property
    def settings(self) -> dict[str, Any]:
        """What a row's `settings` say of the prompts besides what `prompt` says: the templates, if they are any, and
        the digest of the schema, if there is one."""
        told = {"template": self.told(tuple(self.templates.values()))} if self.fields else {}
        return told | ({"schema": self.schema.digest} if self.schema else {})

    def told(self, texts: tuple[str, ...] | None = None) -> str | dict[str, str]:
        """Prompts as a row has them: the text of a single one in the column `caption`, else the texts by column.

        Args:
            texts: in the order of `columns`; by default the templates.
        """
        by_column = dict(zip(self.templates, texts or tuple(self.templates.values()), strict=True))
        return by_column[CAPTION] if self.columns == (CAPTION,) else by_column

    def fill(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The prompts with a table's row in them. Raises Empty if it has nothing in one of the `fields`."""
        values = {}
        for field in self.fields:
            value = record.get(field)
            if value is None or value == "":
                raise Empty(f"its row has nothing in {field!r}, which the prompt names")
            values[field] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return tuple(_filled(text, values) if values else text for text in self.templates.values())

    def _before(self, column: str) -> str:
        """What goes before a property's name in the column of its values."""
        return f"{column}_" if len(self.templates) > 1 else ""


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _BRACES.sub(lambda match: f"{{{match[1]}}}" if match[1] else values[match[2]], template)
