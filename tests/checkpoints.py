"""Checkpoints of a tiny model, as train.py writes them, without any training."""

from pathlib import Path

import torch

from tests.runs import SMALL
from training.checkpoint import TrainState, save_checkpoint
from training.methods.crossmae.model import CrossMAE
from training.recipes import parse_arguments


def make_checkpoint(run: Path, *, weights_seed: int = 1, step: int = 7, fingerprint: str = "other") -> Path:
    """A run folder whose one checkpoint holds weights drawn from another seed than the run's own (0)."""
    config = parse_arguments([*SMALL, "--data=nowhere", f"--out={run}"])
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        model = CrossMAE(config.model)
    state = TrainState(step=step, fingerprint=fingerprint, seed=0, epoch=0, cursor=0, next_shard="", next_offset=0)
    said = config.to_dict() | {"fbank_mean": -4.0, "fbank_std": 4.0}
    save_checkpoint(run, state, model=model, optimizer={}, config=said, keep=1)
    return run
