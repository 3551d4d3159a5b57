"""Imports point one way: demo -> vl -> {vision_encoder, text_backbone, preprocessing}, and those three stay apart."""

import ast
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "preprocessing": set(),
    "vision_encoder": set(),
    "text_backbone": set(),
    "vl": {"preprocessing", "vision_encoder", "text_backbone"},
    "demo": {"vl", "preprocessing", "vision_encoder", "text_backbone"},
}


def imported_packages(file: Path) -> set[str]:
    """Top-level packages that a module names in an import statement or passes to import_module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): bad
        for file in files
        if (bad := imported_packages(file) & set(ALLOWED) - ALLOWED[package] - {package})
    }
    assert not wrong


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text("def f():\n    from vl.model import MiniMaxVL\n    import_module('demo.app')\n")
    assert imported_packages(module) == {"vl", "demo"}


def test_top_level_folders_are_the_packages() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders - {"tests"} - {f for f in folders if f.startswith(".")} == set(ALLOWED)


PACKAGES = tuple(ALLOWED)
NEVER = {"vl.training": ("vl.nano",), "vl.evaluation": ("vl.nano",)}


def modules() -> dict[str, Path]:
    """Every module of the project, by its name."""
    files = (file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): ROOT / file for file in files}


def imported_modules(file: Path, known: Collection[str]) -> set[str]:
    """Those of the `known` modules that a file imports, anywhere in it, for types too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` is an import of the module.
            found |= members & set(known) or {node.module}
    return found & set(known)


def imports_in_a_circle(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of modules each of which imports, directly or through others, all of its group."""
    reached = {name: reachable(graph, name) for name in graph}
    groups = {tuple(sorted(n for n in reached[name] if name in reached[n])) for name in graph if name in reached[name]}
    return sorted(groups)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_no_files_import_each_other() -> None:
    files = modules()
    graph = {name: imported_modules(file, files) - {name} for name, file in files.items()}
    assert len(graph) > 100
    assert imports_in_a_circle(graph) == []


def test_the_check_sees_a_circle() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert imports_in_a_circle(graph) == [("a", "b", "c")]


@pytest.mark.parametrize("package", NEVER)
def test_what_nano_plugs_into_does_not_know_it(package: str) -> None:
    files = modules()
    inside = {
        name: imported_modules(file, files) for name, file in files.items() if f"{name}.".startswith(f"{package}.")
    }
    assert len(inside) > 5
    wrong = {
        name: [i for i in found if f"{i}.".startswith(tuple(f"{p}." for p in NEVER[package]))]
        for name, found in inside.items()
    }
    assert not {name: found for name, found in wrong.items() if found}
