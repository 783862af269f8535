"""tools/bench_loader.py at the smallest size: the tables are there and add up. No times are asserted."""

import re

import pytest

from tools import bench_loader
from tools.bench_loader import FLOOR, Rate, main, summary, table
from tools.benchmarks import loader_data, loader_start


def test_every_loader_has_its_row(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loader_data, "SHARD_SAMPLES", 24)  # three shards
    monkeypatch.setattr(bench_loader, "SHARD_SAMPLES", 24)
    main(["--samples", "64", "--batch-size", "4", "--repeats", "1", "--workers", "1", "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    names = [FLOOR, "ours, 0 workers", "ours, 1 workers", "map-style Dataset + DataLoader, 1 workers"]
    assert re.findall(r"^\| ([^|:]+) \|(?: [\d,]+ \|){4}$", out, re.MULTILINE) == names
    ratios = re.findall(r"^\| ([^|]+ : [^|]+) \|(?: \d+\.\d\d \|){4}$", out, re.MULTILINE)
    assert ratios == [f"ours, 0 workers : {FLOOR}", f"ours, 1 workers : {FLOOR}", f"{names[2]} : {names[3]}"]
    assert re.search(r"^crc32: \d+\.\d µs a sample, \d+\.\d% of what the floor", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())  # the data are gone


@pytest.mark.parametrize("shape", ["window", "sound"])
def test_other_shapes_have_their_rows(capsys, monkeypatch, tmp_path, shape):
    monkeypatch.setattr(loader_data, "SHARD_SAMPLES", 16)
    monkeypatch.setattr(bench_loader, "SHARD_SAMPLES", 16)
    small = ["--samples", "36", "--batch-size", "2", "--repeats", "1", "--workers", "1", "--folder", str(tmp_path)]
    main([*small, "--shape", shape])
    out = capsys.readouterr().out
    names = re.findall(r"^\| ([^|:]+) \|(?: [\d,]+ \|){4}$", out, re.MULTILINE)
    assert names[:4] == [FLOOR, "ours, 0 workers", "ours, 1 workers", "map-style Dataset + DataLoader, 1 workers"]
    assert names[4].startswith("webdataset")


def test_too_few_samples_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--samples", "100"])
    assert stopped.value.code == 2
    assert "--samples 100 is too few to time, give 1024 or more" in capsys.readouterr().err


def test_what_should_not_grow(capsys, monkeypatch, tmp_path):
    for module in (loader_data, bench_loader):
        monkeypatch.setattr(module, "SHARD_SAMPLES", 24)
    for module in (loader_start, bench_loader):
        monkeypatch.setattr(module, "LONG_SHARDS", 12)
    monkeypatch.setattr(loader_start, "_TABLES", 11)
    main(["--instant", "--samples", "64", "--batch-size", "4", "--workers", "1", "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    assert "| opening an index of 12 shards |" in out
    for count in (64, 12 * 24):
        assert re.search(rf"\| first batch at 99% of {count} samples, 1 workers \| \d+\.\d+ s \|", out)


def test_figures_by_hand():
    """Two rounds: medians are within a round, bests over all rounds; of processor time less is better."""
    rounds = [
        {FLOOR: Rate(100.0, 50.0), "ours, 0 workers": Rate(90.0, 60.0), "other, 2 workers": Rate(30.0, 150.0)},
        {FLOOR: Rate(200.0, 40.0), "ours, 0 workers": Rate(100.0, 50.0), "other, 2 workers": Rate(20.0, 200.0)},
    ]
    assert table(rounds).splitlines()[3] == "| ours, 0 workers | 95 | 100 | 55 | 50 |"
    lines = summary(rounds).splitlines()
    assert lines[2] == f"| ours, 0 workers : {FLOOR} | 0.70 | 0.50 | 0.82 | 0.80 |"
    assert lines[3] == "| ours, 0 workers : other, 2 workers | 4.00 | 3.33 | 3.25 | 3.00 |"
