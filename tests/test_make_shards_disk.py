"""make-shards on a disk that is full, and on one that cannot be written: a file system of its own, really full."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_samples import make, ten_files

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
from pipeline import make_shards
from tests.fake_samples import fake_sample_with_options
make_shards.make_sample = fake_sample_with_options
if __name__ == "__main__":
    sys.exit(make_shards.main(sys.argv[1:]))
"""

# A shard of four samples has 1.1 MB. In a namespace, so that no rights are needed and nothing is left behind.
SCRIPT = """
set -u
run() { "$PYTHON" program.py raw --out disk/out --shard-size 4 --workers 1 >out.txt 2>"$1"; echo "$?"; }
mount -t tmpfs -o size=2m tmpfs disk
run full.txt
ls -A disk/out
mount -o remount,size=50m,ro disk
run read_only.txt
mount -o remount,rw disk
run again.txt
cp disk/out/*.tar copies/
"""


def can_mount() -> bool:
    """Whether this machine lets anybody mount a file system in a namespace."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    words = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_full_disk(tmp_path: Path) -> None:
    raw = ten_files(tmp_path / "raw")
    make(raw, tmp_path / "whole")
    for name in ("disk", "copies"):
        (tmp_path / name).mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", SCRIPT],
        cwd=tmp_path,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert not ended.stderr
    full, *there, read_only, again = ended.stdout.split()
    assert (full, read_only, again) == ("1", "1", "0")
    assert sorted(there) == [".make-shards.lock", "plan.parquet", "shard-000000.parquet", "shard-000000.tar"]
    last = (tmp_path / "full.txt").read_text().splitlines()[-1]
    assert last.startswith("make-shards: error: ") and "disk/out/shard-000001.tar: " in last
    assert "No space left on device: make room there; finished shards are kept, mend this and run" in last
    assert "Traceback" not in (tmp_path / "full.txt").read_text()
    assert "Read-only file system: mount it for writing" in (tmp_path / "read_only.txt").read_text()
    for path in (tmp_path / "whole").glob("*.tar"):
        assert _sha256(tmp_path / "copies" / path.name) == _sha256(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
