"""What all commands have: --help, --version, one name in all they say, and they run as modules."""

import importlib
import io
import re
import runpy
import sys

import pytest
import tomllib

from shards_spec import __version__
from shards_spec.command_line import parse
from shards_spec.errors import UserError
from tests.runs import ROOT
from training.config import TrainConfig
from training.finetune.config import FinetuneConfig
from training.methods.crossmae import CrossMAEConfig
from training.recipes import recipe

MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("pipeline", "training", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if re.search(r"^def main\(", path.read_text(), re.MULTILINE)
)
NAMES = {"pipeline.make_shards": "make-shards", "training.train": "train.py", "training.evaluate": "evaluate.py"}


@pytest.mark.parametrize("module", MODULES)
def test_every_command(module, capsys):
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert re.search(
        r'^if __name__ == "__main__":\n(.*\n)*    (main\(\)|sys.exit\(main\(\)\))$', path.read_text(), re.M
    )
    name = NAMES.get(module, f"python -m {module}")
    main = importlib.import_module(module).main
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"{name} {__version__}\n"
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {name}")
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-option"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"{name}: error: ") and said.count("\n") == 1
    assert f"(see {name} --help)" in said


def test_a_message_has_no_other_name():
    """Those that are printed elsewhere than in messages.py: results alone."""
    for folder in ("pipeline", "training", "tools", "shards_spec"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"print\([^\n]*file=sys\.stderr", path.read_text()) or path.name == "messages.py", path


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_commands_run_as_modules(monkeypatch, capsys):
    """python -m training.train, say, which once ended without a word."""
    monkeypatch.setattr(sys, "argv", ["train.py", "finetune", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("training.train", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out == f"train.py finetune {__version__}\n"


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "shards_spec.__version__"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (
            TrainConfig[CrossMAEConfig],
            ["--epocs", "3"],
            "--epocs, 3; perhaps you meant: --epochs FLOAT (see program --help)",
        ),
        (
            TrainConfig[CrossMAEConfig],
            ["--optimizer.lrr", "3", "--sede", "1"],
            "; arguments similar to --optimizer.lrr: --optimizer.lr FLOAT, --optimizer.least-lr FLOAT,",
        ),
        ({"a": FinetuneConfig, "b": FinetuneConfig}, ["a", "--hed-lr", "3"], "; perhaps you meant: --head-lr"),
        ({"one": FinetuneConfig, "two": FinetuneConfig}, ["on"], "on is none of one, two (see program --help)"),
    ],
)
def test_a_mistyped_option_is_told_what_it_may_have_been(monkeypatch, encoding, config, words, said):

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    given = ["--data=d", "--out=o"] if words != ["on"] else []
    default = recipe("crossmae-base", None) if "FLOAT" in said else None
    with pytest.raises(UserError) as found:
        parse(config, [*words, *given], prog="program", default=default)
    assert said in str(found.value) and "\n" not in str(found.value)
