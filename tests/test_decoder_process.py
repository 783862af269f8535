"""Where the processes that make clips come from: short names for their sockets, signals that are not theirs."""

import signal
import subprocess
import sys

import pytest

from pipeline import make_shards
from tests.runs import ROOT, environment

PROGRAM = """import os, signal
from pipeline import decoder_process
from pipeline.decoder_process import start_fork_server

def child(connection):
    connection.send(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

if __name__ == "__main__":
    decoder_process._PRELOAD = []
    start_fork_server()
    here, there = decoder_process._context.Pipe()
    decoder_process._context.Process(target=child, args=(there,)).start()
    print(here.recv(), signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.parametrize("length", [90, 60])
def test_a_long_tmpdir_and_a_terminal_that_closes(tmp_path, length):
    """The fork server has its socket, and neither it nor its children end with the terminal."""
    folder = tmp_path / ("x" * max(length - len(str(tmp_path)) - 1, 1))
    folder.mkdir(parents=True)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = environment() | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, program], env=told, capture_output=True, text=True, check=False)
    assert said.stdout == "True False\n", said.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_make_shards_in_one_line(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(make_shards, "run", lambda _: signal.raise_signal(number))
    (tmp_path / "raw").mkdir()
    assert make_shards.main([str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 128 + number
    assert f"make-shards: stopped by {signal.Signals(number).name}; finished shards" in capsys.readouterr().err


def test_under_nohup_make_shards_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(make_shards, "run", lambda _: signal.raise_signal(signal.SIGHUP) or 0)
    (tmp_path / "raw").mkdir()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert make_shards.main([str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
