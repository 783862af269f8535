"""A file of golden vectors: inputs/, weights/, masks/, outputs/, grads/, and the sizes of the model as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What a file holds; weights and inputs as `dtype`, `config` parsed from its metadata."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    metadata: dict[str, str]
    dtype: torch.dtype

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The entries below `prefix/`, in the precision of the computation."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value.to(self.dtype) if value.is_floating_point() else value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def read_vectors(path: Path, dtype: torch.dtype) -> Vectors:
    """Reads a file; raises OSError, SafetensorError or ValueError."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    config = json.loads(metadata.get("config", "{}"))
    return Vectors(tensors=tensors, config=config, metadata=metadata, dtype=dtype)
