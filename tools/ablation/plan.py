"""Which runs an ablation has, and the command of each.

A row is a line of the table (a variant of Table 2, or an ablation of Table 6); a run is a row with a seed and a start.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Start = Literal["init", "scratch"]
TRAIN = Path(__file__).resolve().parent.parent.parent / "train.py"

# Rows of the paper's Table 2, from its worst to its best, and what train.py is told for each.
TABLE_2 = {
    "selfmae": ("--variant=selfmae",),
    "cl-av": ("--variant=cl-av",),
    "cl-selfmae": ("--variant=cl-selfmae",),
    "cl-crosscdtmae": ("--variant=cl-crosscdtmae",),
    "cl-crossembmae": ("--variant=cl-crossembmae",),
    "crossmae": ("--variant=crossmae",),
}
# Table 6: what stands for the Attentive Tokens.
TABLE_6 = {
    "crossmae, zero tokens": ("--variant=crossmae", "--model.attentive.kind=zeros"),
    "crossmae, random tokens": ("--variant=crossmae", "--model.attentive.kind=random"),
}
ROWS = TABLE_2 | TABLE_6


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all runs of an ablation share."""

    preset: str
    batch_size: int
    lr: float
    workers: int
    launch: tuple[str, ...]  # words before train.py; () for this Python
    options: tuple[str, ...]  # for train.py, after all others

    def command(self, *, data: Path, out: Path, steps: int, seed: int, options: Sequence[str]) -> list[str]:
        """The command line of a training run; after TRAIN, what train.py is told."""
        told = [f"--preset={self.preset}", f"--data={data}", f"--out={out}", f"--steps={steps}", f"--seed={seed}"]
        told += [f"--batch-size={self.batch_size}", f"--optimizer.lr={self.lr}", f"--workers={self.workers}"]
        told += [f"--save-every={max(200, steps // 5)}", "--keep=1", "--log-every=20", "--diagnose-every=100"]
        return [*(self.launch or (sys.executable,)), str(TRAIN), *told, *options, *self.options]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of the table."""

    row: str
    start: Start
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.row.replace(', ', '-').replace(' ', '-')}-{self.start}-seed{self.seed}"


def planned_runs(rows: Sequence[str], starts: Sequence[Start], seeds: int) -> list[Run]:
    """All runs, a whole seed after the other, so that a table stands early."""
    return [Run(row=row, start=start, seed=seed) for seed in range(seeds) for start in starts for row in rows]
