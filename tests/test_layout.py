"""The frame of the project: who may import whom, and that the README knows every file."""

import ast
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    if path.is_relative_to(ROOT / "training" / "methods"):
        ours = {name for name in names if name.split(".")[0] in PACKAGES}
        assert all(name.startswith("training.methods") for name in ours)
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


def needed(requirement, found, python):
    """Adds the names of all packages that a requirement brings to `found`; those not for this machine are left out."""
    for extra in requirement.extras or {""}:
        if (requirement.name, extra) in found:
            continue
        found.add((requirement.name, extra))
        with suppress(PackageNotFoundError):  # one that this Python does not need: what it brings is not known
            for line in distribution(requirement.name).requires or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({**python, "extra": extra}):
                    needed(inner, found, python)
    return found


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_constraints_pin_all_that_make_install_brings(version):
    python = {"python_version": version, "python_full_version": f"{version}.0"}
    name = "constraints-cu12.txt" if (torch.version.cuda or "").startswith("12.") else "constraints.txt"
    pins = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    meant = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate(python)]
    assert len(set(meant)) == len(meant), "pinned twice"
    brought = {canonicalize_name(name) for name, _ in needed(Requirement("crossmae[dev]"), set(), python)}
    assert len(brought) > 50 and not brought - set(meant) - {"crossmae"}


def test_the_two_cudas_share_all_other_versions():
    cuda = ("nvidia-", "cuda-", "torch", "triton")
    said = [(ROOT / name).read_text().splitlines() for name in ("constraints.txt", "constraints-cu12.txt")]
    pins = [{line for line in lines if not line.startswith("#")} for lines in said]
    assert all(line.startswith(cuda) for line in pins[0] ^ pins[1])
    trios = [sorted(line for line in each if line.startswith("torch")) for each in pins]
    assert trios == [
        ["torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0"],
        ["torch==2.7.1", "torchaudio==2.7.1", "torchvision==0.22.1"],
    ]
