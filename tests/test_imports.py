"""Imports point one way: demo -> vl -> {vision_encoder, text_backbone, preprocessing}, and those three stay apart."""

import ast
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
