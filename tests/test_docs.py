"""README.md, CONTRIBUTING.md and docs/ name files, commands, options and functions that are there."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import vl
from vl.cli.app import app, load_plugins

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?[^)]*\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"^(?:    |.*&& \.venv/bin/)?vl [a-z].*$", re.M)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if link and not (page.parent / link).exists()]
    assert not missing


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `vl` command line in a page, without comments and redirections."""
    for line in COMMAND.findall(text):
        yield shlex.split(line[line.index("vl ") :], comments=True)[1:]


def unknown(arguments: list[str], command: Any) -> list[str]:
    """What a command line names that the command lacks: a subcommand, or options."""
    while getattr(command, "commands", None):
        name = named(arguments, command)
        if name not in command.commands:
            return [name]
        command, arguments = command.commands[name], arguments[len(name.split()) :]
    known = {"--help", *(name for parameter in command.params for name in parameter.opts + parameter.secondary_opts)}
    return [argument for argument in arguments if argument.startswith("--") and argument.split("=")[0] not in known]


def named(arguments: list[str], command: Any) -> str:
    """The subcommand of a command line, of which some have two words."""
    two = " ".join(arguments[:2])
    return two if two in command.commands else arguments[0]


@pytest.fixture(scope="module")
def command_line() -> Any:
    load_plugins()
    return typer.main.get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_their_options_exist(page: Path, command_line: Any) -> None:
    for arguments in commands(page.read_text()):
        assert not unknown(arguments, command_line), arguments


def test_the_readme_shows_every_command(command_line: Any) -> None:
    shown = {named(arguments, command_line) for arguments in commands((ROOT / "README.md").read_text())}
    assert shown == set(command_line.commands)


def test_a_command_that_is_not_there_is_seen(command_line: Any) -> None:
    lines = list(commands("    vl caption a.png --promt x  # a comment\n    vl sing\ntext on vl here\n"))
    assert [unknown(line, command_line) for line in lines] == [["--promt"], ["sing"]]


def wrong_names(source: str) -> list[str]:
    """Attributes of `vl` and of a `model` in Python code that are not there, and keywords that their calls refuse."""
    homes = {"vl": vl, "model": vl.MiniMaxVL}
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in homes:
            home = homes[node.value.id]
            if not hasattr(home, node.attr) and node.attr not in instance_attributes(home):
                wrong.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            home = homes.get(ast.unparse(node.func.value))
            function = getattr(home, node.func.attr, None)
            if function is not None:
                wrong += refused(function, node)
    return wrong


def instance_attributes(home: Any) -> set[str]:
    """What a class's `__init__` sets."""
    return set(re.findall(r"self\.(\w+) = ", inspect.getsource(home.__init__))) if inspect.isclass(home) else set()


def refused(function: Any, call: ast.Call) -> list[str]:
    """Keywords of a call that are no parameter of the function, nor a field of what its `**` stands for."""
    parameters = inspect.signature(function).parameters
    known = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        from vl.engine import EngineConfig

        known |= {*EngineConfig.__dataclass_fields__, *vl.SamplingParams.__dataclass_fields__}
    return [f"{ast.unparse(call.func)}({word.arg}=)" for word in call.keywords if word.arg and word.arg not in known]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_names_exist(page: Path) -> None:
    for source in PYTHON.findall(page.read_text()):
        assert not wrong_names(source), source


def test_a_name_that_is_not_there_is_seen() -> None:
    source = (
        'model = vl.load("nano", dvice="cpu")\nmodel.processor.save("x")\nmodel.sing()\nmodel.chat([], top_k=2, topk=3)'
    )
    assert sorted(wrong_names(source)) == ["model.chat(topk=)", "model.sing", "vl.load(dvice=)"]


@pytest.mark.parametrize("name", vl.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    value = getattr(vl, name)
    assert isinstance(value, str) or (inspect.getdoc(value) and value.__doc__), name


def test_packages_are_marked_as_typed() -> None:
    for package in ("preprocessing", "vision_encoder", "text_backbone", "vl", "demo"):
        assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ("reads 32 768 tokens in {} of transformers' time", "prefill 32 768"),
        ("writes a token in {} of it", "decode, batch 1 "),
        ("the vision tower {} of transformers for 76 tiles", "ViT-L/14-336, 76 tiles"),
        ("and {} of timm for one", "1 tile "),
    ],
)
def test_the_readme_quotes_the_measurements(said: str, row: str) -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    cells = page[page.index(f"\n| {row}") :].splitlines()[1].split("|")
    assert said.format(cells[5].strip()) in readme


def test_the_readme_and_the_plan_show_one_table() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|") and "GiB" in line]
    assert rows
    assert all(row in (ROOT / "docs" / "plan.md").read_text() for row in rows)
