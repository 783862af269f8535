"""What a command says, and that its work does not depend on whether anybody can hear it."""

import os
import subprocess
import sys

import pytest

from shards_spec import messages
from shards_spec.messages import say, speaking_as, tell, warn
from tests.runs import ROOT

WORK = """import contextlib, os, sys
from pathlib import Path
from shards_spec.messages import say, speaking_as, warn
with speaking_as("program"):
    file = open(sys.argv[1], "w")
    for _ in range(2):
        say("\\u00b5 " + os.fsdecode(b"\\xff.mp4") + " " + "x" * 10_000)
        warn("\\u2192")
    assert not sys.stderr.isatty()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.write(number, b"from a library")
    file.write("done")
    file.close()
"""


def work(tmp_path, redirection, **environment):
    """A program that prints in the midst of its work, with its output redirected by the shell."""
    command = f'exec "$0" -c "$1" "$2" {redirection}'
    finished = subprocess.run(
        ["bash", "-c", command, sys.executable, WORK, str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
    )
    assert (tmp_path / "out").read_text() == "done" and finished.returncode == 0, finished.stderr
    return finished


@pytest.mark.parametrize(
    "redirection",
    [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1", "> >(exit)", "2> >(exit)"],
)
def test_work_is_done_though_nothing_can_be_printed(tmp_path, redirection):
    said = work(tmp_path, redirection)
    assert b"Traceback" not in said.stderr and b"Exception" not in said.stderr


def test_what_can_be_printed_is(tmp_path):
    said = work(tmp_path, "", PYTHONIOENCODING="ascii")
    assert said.stdout.startswith(b"program: \\xb5 \\udcff.mp4 xxx") and said.stdout.count(b"x" * 10_000) == 2
    assert said.stderr.splitlines()[:2] == [b"program: warning: \\u2192"] * 2
    assert work(tmp_path, "", PYTHONIOENCODING="utf-8").stdout.startswith("program: µ \\udcff.mp4".encode())


def test_every_message_has_the_name_of_the_command_that_runs(capsys):
    with speaking_as("outer"):
        say("a")
        with speaking_as("inner"):
            warn("b")
        tell("c")
    warn("d")  # called from a program of the user's
    said = capsys.readouterr()
    assert said.out == "outer: a\n"
    assert said.err == "inner: warning: b\nouter: c\nwarning: d\n"


def test_streams_are_given_back_and_those_of_others_are_left_alone():
    before = sys.stdout, sys.stderr
    with speaking_as("program"):
        assert (sys.stdout, sys.stderr) == before  # pytest's
    assert (sys.stdout, sys.stderr) == before and messages._program is None
