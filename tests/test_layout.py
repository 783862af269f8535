"""The frame of the project: who may import whom, and that the README knows every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shards_spec", "pipeline", "training", "tools")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path):
    """Top-level names of all modules that a file imports, with the dotted names of our own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    names = imported(path)
    tops = {name.split(".")[0] for name in names}
    package = path.relative_to(ROOT).parts[0]
    forbidden = {
        "shards_spec": {"pipeline", "training", "tools", "torch", "torchaudio", "timm", "accelerate"},
        "pipeline": {"training", "tools", "timm", "accelerate"},
        "training": {"pipeline", "tools", "decord", "av"},
        "tools": set(),
    }[package]
    assert not tops & (forbidden | {"tests"})
    if path.is_relative_to(ROOT / "training" / "model"):
        ours = {name for name in names if name.split(".")[0] in PACKAGES}
        assert all(name.startswith("training.model") for name in ours)
        assert "accelerate" not in tops


def test_readme_has_a_line_for_every_file():
    readme = (ROOT / "README.md").read_text()
    missing = [str(p.relative_to(ROOT)) for p in FILES if p.name not in readme and p.name != "__init__.py"]
    assert not missing


def test_tests_have_no_twin_names():
    """pytest runs a function that is defined twice only once."""
    for path in (ROOT / "tests").glob("test_*.py"):
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names)), path
