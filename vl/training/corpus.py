"""The user's own data: conversations in JSONL files and WebDataset shards, each record read by its number."""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from preprocessing import IMAGE_SUFFIXES
from preprocessing.chat import Messages
from preprocessing.errors import brief
from preprocessing.formats import HEIF_SUFFIXES
from preprocessing.sources import ImageSource, seen_from
from vl.conversations import TURNS, FindImage, decode_record, read_conversation
from vl.errors import ConfigError, InputError

_WEIGHTS = ("weight", "loss_weight")  # of a record, or of a turn (OpenAI)
_LEARNT = ("loss", "train", "training", "trainable")  # whether a turn is learnt (ms-swift, Axolotl)


class RecordFile(Protocol):
    """Records of one file, in the file's order."""

    path: Path

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What reports call a record."""
        ...

    def messages(self, index: int) -> Messages:
        """The conversation, its images as paths, URLs or bytes. Raises InputError naming what is wrong with it."""
        ...


class Corpus:
    """All records of some files, numbered through.

    Args:
        patterns: `.jsonl` and `.tar` files, in which `*`, `?` and `**` stand for several.

    Attributes:
        again: files that several patterns are for, each of which is here once.

    Raises:
        ConfigError: if a file is missing, named twice, of another kind, or there is no record at all.
    """

    def __init__(self, patterns: Sequence[str | os.PathLike[str]]) -> None:
        paths, self.again = expand(patterns)
        self.files: list[RecordFile] = [open_records(path) for path in paths]
        self.ends = list(accumulate(len(file) for file in self.files))
        if not len(self):
            raise ConfigError(f"there is no record in {', '.join(map(str, patterns))}: check the data files")

    def __len__(self) -> int:
        return self.ends[-1]

    def name(self, index: int) -> str:
        file, inside = self._find(index)
        return file.name(inside)

    def messages(self, index: int) -> Messages:
        """As `RecordFile.messages`."""
        file, inside = self._find(index)
        return file.messages(inside)

    def _find(self, index: int) -> tuple[RecordFile, int]:
        number = bisect_right(self.ends, index)
        return self.files[number], index - (self.ends[number - 1] if number else 0)


class Expanded(NamedTuple):
    """The files behind some patterns; `again`: those that several patterns are for."""

    files: list[Path]
    again: list[Path]


def expand(patterns: Sequence[str | os.PathLike[str]]) -> Expanded:
    """The files behind `patterns`, each once, each pattern's in sorted order; an existing file stands for itself.

    A link to a file is a file of its own: what its images' paths count from may differ.

    Raises ConfigError where there are none, or one is named twice in full: it may be meant to count twice.
    """
    files: dict[Path, Path] = {}
    again: dict[Path, Path] = {}
    named: set[Path] = set()
    for pattern in [os.fspath(given) for given in patterns]:
        literal = os.path.exists(pattern) or not has_magic(pattern)
        found = [pattern] if literal else sorted(glob(pattern, recursive=True))
        if folder := next(filter(os.path.isdir, found), None):
            raise ConfigError(
                f"{folder} is a folder, and no data file: name the files in it, such as '{folder}/*.jsonl'"
            )
        if not found or not all(os.path.isfile(path) for path in found):
            raise ConfigError(f"there is no data file {pattern}: check the path (it counts from the current folder)")
        for path in map(Path, found):
            place = path.parent.resolve() / path.name
            if literal and place in named:
                raise ConfigError(
                    f"the data file {path} is named twice: drop one; or, for its records to be learnt twice in every "
                    "pass, give the file a second name (a link will do)"
                )
            if place in files:
                again[place] = files[place]
            files.setdefault(place, path)
            if literal:
                named.add(place)
    return Expanded(list(files.values()), list(again.values()))


def check_apart(files: Sequence[str], held_out: Sequence[str]) -> None:
    """Raises ConfigError if a file is to be learnt from and held out, or is not there."""
    learnt = {path.resolve() for path in expand(files).files}
    for path in expand(held_out).files:
        if path.resolve() in learnt:
            raise ConfigError(
                f"{path} is in data.files and in data.held_out, which is never learnt from: drop it in one"
            )


def open_records(path: Path) -> RecordFile:
    """The records of a `.jsonl` or `.tar` file. Raises ConfigError for any other kind."""
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonlFile(path)
    if path.suffix == ".tar":
        return TarShard(path)
    hint = "unpack it to .tar" if ".tar" in path.suffixes else "give JSONL of messages or WebDataset shards"
    raise ConfigError(f"{path} is neither .jsonl nor .tar: {hint}")


class JsonlFile:
    """One JSON record per line; image paths count from the file's own folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[tuple[int, int, int]] = []  # line from 1, first byte, bytes
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    self.places.append((number, start, len(line)))
                start += len(line)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.places[index][0]}"

    def messages(self, index: int) -> Messages:
        _, start, size = self.places[index]
        return _learnt(decode_record(_bytes(self.path, start, size)), self._find_image)

    def _find_image(self, source: Any) -> ImageSource:
        if source is None:
            raise InputError('an image part has no image; it needs "image": <path or URL>')
        if not isinstance(source, str):
            raise InputError(f"an image must be a path or URL, got {type(source).__name__}")
        return seen_from(self.path.parent, source)


class Member(NamedTuple):
    """A file inside a tar file: its name, its extension in lower case, and where its bytes are."""

    name: str
    suffix: str
    start: int
    size: int


class TarShard:
    """A WebDataset shard: the files that share a name up to the first dot are a record.

    A record has a `.json` (as a line of JSONL) or a `.txt` (the caption), and images. An image part names the file, in
    full or by its extension, or names none and then stands for the next of the record's images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        groups: dict[str, list[Member]] = {}
        try:
            for member in _members(path):
                folder, _, file = member.name.rpartition("/")
                groups.setdefault(f"{folder}/{file.partition('.')[0]}", []).append(member)
        except (tarfile.TarError, OSError) as error:
            self.damage = f"not a whole tar file ({error}); write or download it again"
        self.groups = list(groups.values())

    def __len__(self) -> int:
        # The part that cannot be read counts as one record, so that its loss is reported.
        return len(self.groups) + bool(self.damage)

    def name(self, index: int) -> str:
        if index == len(self.groups):
            return f"{self.path}:(the rest)"
        return f"{self.path}:{self.groups[index][0].name.rpartition('.')[0]}"

    def messages(self, index: int) -> Messages:
        if index == len(self.groups):
            raise InputError(self.damage)
        members = self.groups[index]
        kinds = [member.suffix for member in members]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise InputError(f"the record has two .{min(twice)} files: give one of them another name")
        own = [member for member in members if f".{member.suffix}" in (*IMAGE_SUFFIXES, *HEIF_SUFFIXES)]
        images = iter(own)

        def find_image(source: Any) -> ImageSource:
            found: Member | None
            if source is None:
                found = next(images, None)
            else:
                found = next((m for m in members if source in (m.name, m.name.rpartition("/")[2], m.suffix)), None)
            if found is None and source is None:
                raise InputError(
                    f"the record has {len(own)} images for parts that name none; others, such as 1.second.png, are "
                    f'named ("image": "second.png"); it has {", ".join(m.name for m in members)}'
                )
            if found is None:
                raise InputError(f"the record has no image {source}; it has {', '.join(m.name for m in members)}")
            return self._read(found)

        text = {member.suffix: member for member in members}
        if "json" in text:
            return _learnt(decode_record(self._read(text["json"])), find_image, inside=len(own))
        if "txt" in text:
            caption = self._read(text["txt"]).decode("utf-8", "replace").strip()
            return read_conversation({"caption": caption}, find_image, inside=max(1, len(own)))
        raise InputError(f"the record has neither .json nor .txt; it has {', '.join(m.name for m in members)}")

    def _read(self, member: Member) -> bytes:
        return _bytes(self.path, member.start, member.size)


def _learnt(record: Any, find_image: FindImage, *, inside: int = 0) -> Messages:
    """`read_conversation` of a record that is learnt from, all that the assistant says in it alike."""
    turns = record if isinstance(record, list) else next((record[key] for key in TURNS if record.get(key)), [])
    for given in (record, *(turns if isinstance(turns, list) else ())):
        for key in _WEIGHTS if given is record else (*_WEIGHTS, *_LEARNT):
            if isinstance(given, Mapping) and given.get(key) not in (None, 1):  # 1.0 and true are
                raise InputError(
                    f'"{key}": {brief(given[key])} is not obeyed, as all that the assistant says is learnt alike: drop '
                    "the key or the record"
                )
    return read_conversation(record, find_image, inside=inside)


def _members(path: Path) -> Iterator[Member]:
    """The files in a tar file."""
    with tarfile.open(path, "r:") as tar:
        for entry in tar:
            if entry.isfile():
                suffix = entry.name.rpartition("/")[2].partition(".")[2].lower()
                yield Member(entry.name, suffix, entry.offset_data, entry.size)


def _bytes(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be read any more ({error})") from error
