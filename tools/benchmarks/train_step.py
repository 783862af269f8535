"""One training step as the loop takes it, timed: whole, by part, and beside plain matrix products of its sizes.

Times are the device's own: CUDA events on a GPU, the host's clock on a CPU. Whole steps are timed as one span, so that
a stall every few steps counts; parts as the median of their times, which leaves chance out.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards_spec.sample import FBANK_SHAPE, FRAME_SIZE
from training.config import OptimizerConfig
from training.methods.crossmae import CrossMAE, CrossMAEConfig
from training.methods.interface import Inputs
from training.methods.shared.masking import kept_count
from training.methods.shared.patches import FBANK_TOKENS
from training.optimizer import make_optimizer
from training.stream.loader import Normalise, count_valid_frames

Stored = tuple[Tensor, Tensor, Tensor]  # image uint8 [B, S, S, 3], fbank float16 [B, T, M], seeds int64 [B]
Moment = Any  # a torch.cuda.Event, or seconds
FORWARD_PARTS = {  # of the model's methods, in the order in which `forward` calls them
    "masked encoders": ("see_image", "see_audio"),
    "pixel decoders": ("decode_pixels",),
    "targets, no gradient": ("embedding_targets",),
    "embedding decoders": ("decode_embeddings",),
    "losses": ("pixel_loss", "embedding_loss"),
}
_PRODUCTS = 10  # times each plain matrix product is timed


@dataclass(frozen=True)
class Timed:
    """Some steps of one kind."""

    seconds: float  # a step, mean over the whole span
    steps: int
    wait: float  # share of the time in which the host waited for data
    memory: int  # bytes at most: of the GPU's allocator, or resident in this process


class Trainer:
    """A model, its optimizer, and the step that train.py takes with them on one process."""

    def __init__(self, config: CrossMAEConfig, *, device: torch.device, dtype: torch.dtype, is_compiled: bool) -> None:
        """With dtype float32 there is no autocast."""
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.weights = CrossMAE(config).to(device)
        self.model = torch.compile(self.weights) if is_compiled else self.weights
        self.optimizer = make_optimizer(self.weights, OptimizerConfig(), fused=True)
        self.normalise = Normalise(-4.0, 4.0).to(device)

    def step(self, stored: Stored, note: Callable[[str], None] = lambda part: None) -> None:
        """Forward, backward, update; `note` is called after each part with its name."""
        image, fbank, seeds = (x.to(self.device, non_blocking=True) for x in stored)
        valid_frames = count_valid_frames(fbank)
        image, fbank = self.normalise(image.unsqueeze(1), fbank)
        note("normalise")
        is_low = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if is_low else nullcontext():
            inputs = Inputs(image=image, fbank=fbank, seeds=seeds, numbers=seeds, valid_frames=valid_frames)
            loss = self.model(inputs).loss
        note("rest of forward")
        loss.backward()
        note("backward")
        torch.nn.utils.get_total_norm(p.grad for p in self.weights.parameters() if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.after_step()
        note("optimizer")

    def time(self, batches: Iterator[Stored], steps: int, warm: int) -> Timed:
        """Times `steps` steps after `warm` that do not count."""
        for _ in range(warm):
            self.step(next(batches))
        reset_peak(self.device)
        first, waited, begin = mark(self.device), 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self.step(batch)
        span = seconds(first, mark(self.device))
        return Timed(span / steps, steps, waited / (time.perf_counter() - begin), peak(self.device))

    def split(self, batches: Iterator[Stored], steps: int) -> dict[str, float]:
        """Seconds a step by part, medians; of the model as it is, not compiled."""
        spans: dict[str, list[float]] = {}
        marks: list[tuple[str, Moment]] = []
        with noted_parts(self.weights) as noted:
            for _ in range(steps):
                noted.clear()
                marks[:] = [("", mark(self.device))]
                self.step(next(batches), lambda part: marks.append((part, mark(self.device))))
                found = {part: seconds(a, b) for (_, a), (part, b) in pairwise(marks)}
                inner: dict[str, float] = {}
                for part, a, b in noted:
                    inner[part] = inner.get(part, 0.0) + seconds(a, b)
                found["rest of forward"] -= sum(inner.values())
                for part, value in (inner | found).items():
                    spans.setdefault(part, []).append(value)
        return {part: statistics.median(values) for part, values in spans.items()}


@contextmanager
def noted_parts(model: CrossMAE) -> Iterator[list[tuple[str, Moment, Moment]]]:
    """While it lasts, the parts of the model's forward pass note when they begin and end: (part, begin, end)."""
    noted: list[tuple[str, Moment, Moment]] = []
    device = model.image_encoder.cls_token.device

    def noting(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            begin = mark(device)
            result = call(*args)
            noted.append((part, begin, mark(device)))
            return result

        return called

    places: list[tuple[str, Any, str]] = [
        (part, model, name) for part, names in FORWARD_PARTS.items() for name in names
    ]
    if model.contrast is not None:
        places.append(("losses", model.contrast, "forward"))
    for part, module, name in places:
        setattr(module, name, noting(part, getattr(module, name)))  # on the instance, before its class's own
    try:
        yield noted
    finally:
        for _, module, name in places:
            delattr(module, name)


def random_batches(batch_size: int, device: torch.device) -> Iterator[Stored]:
    """The same made batch again and again, on the device already."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch_size, FRAME_SIZE, FRAME_SIZE, 3), dtype=torch.uint8, generator=generator)
    fbank = (torch.randn(batch_size, *FBANK_SHAPE, generator=generator) * 4 - 4).half()
    stored = image.to(device), fbank.to(device), torch.arange(batch_size, device=device)
    while True:
        yield stored


def product_rate(config: CrossMAEConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of plain matrix products of the sizes that the model's larger layers have: what this machine gives now."""
    dim, visible = config.encoder.dim, kept_count(FBANK_TOKENS, 1 - config.mask.audio_ratio)
    sizes = [
        (visible, dim, 3 * dim),
        (visible, dim, 4 * dim),
        (FBANK_TOKENS, dim, 4 * dim),
        (FBANK_TOKENS, 4 * dim, dim),
    ]
    if config.pixel.target != "none":
        sizes.append((FBANK_TOKENS, config.pixel.dim, 4 * config.pixel.dim))
    flops = spent = 0.0
    for rows, inner, columns in sizes:
        a = torch.randn(batch_size * rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        a @ b
        marks = [mark(device)]
        for _ in range(_PRODUCTS):
            a @ b
            marks.append(mark(device))
        flops += 2.0 * batch_size * rows * inner * columns
        spent += statistics.median(seconds(x, y) for x, y in pairwise(marks))
    return flops / spent


def mark(device: torch.device) -> Moment:
    """Now, on the device's clock, without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(begin: Moment, end: Moment) -> float:
    """Between two moments; waits until the device has reached the second."""
    if isinstance(begin, float):
        return float(end - begin)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def reset_peak(device: torch.device) -> None:
    """Begins to measure `peak` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak(device: torch.device) -> int:
    """The most memory since `reset_peak`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
