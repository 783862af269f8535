"""How fast a training step is, what it uses of the machine, and where its time goes.

    python -m tools.bench_train                                      crossmae-tiny on a CPU, crossmae-base on a GPU
    python -m tools.bench_train --preset crossmae-base --batch-size 4
    python -m tools.bench_train --data shards/as20k --compile both   end to end from shards too; eager and compiled

The step is that of train.py on one process: its model, optimizer, normalisation and, with --data, its loader; without
Accelerate, logging and checkpoints. FLOPs are those of matrix products, convolutions and attention, two to a
multiply-add, forward and backward, the targets' pass without gradient forward alone (training/flops.py). They are set
against the GPU's peak (MFU); on a CPU and on GPUs whose peak is not known, against plain matrix products of the
model's sizes, timed just before and after.

The first table is made of means: each row's steps are one span, stalls of the loader included, and a step is the span
by their number. The loader has some batches ready before the first step is timed, so a row from shards is to take many
more steps than that, as it does by itself. The second table, by parts, is made of medians.
"""

import gc
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from tools.benchmarks.train_step import Stored, Timed, Trainer, product_rate, random_batches
from tools.count_model import count
from training.flops import flops_per_sample, peak_flops
from training.methods.crossmae import PRESETS, CrossMAEConfig, with_variant
from training.methods.crossmae.config import Preset, Variant
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.order import Place, SampleStream
from training.stream.shares import rank_shares

_WARM_STEPS = 2
_STEPS = 10
_TIMES_READY = 5  # steps timed from shards, for each slot of the loader's ring


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Times the training step: samples a second, FLOPs, memory, and its parts."""

    preset: Preset | None = None
    """Default: crossmae-tiny on a CPU, crossmae-base on a GPU."""
    variant: Variant = "crossmae"
    """Row of the paper's Table 2."""
    batch_size: int | None = None
    """Samples a step. Default: 8 on a CPU, 64 on a GPU."""
    compile: Literal["both", "on", "off"] | None = None
    """With torch.compile, without, or one after the other. Default: both on a GPU, off on a CPU, where compiling alone
    takes minutes."""
    precision: Literal["bf16", "no"] | None = None
    """Autocast. Default: bf16 on a GPU, no on a CPU."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass."""
    data: str | None = None
    """Dataset folder: steps on its samples are timed too."""
    workers: int = 2
    """Loader processes, with --data."""
    steps: int | None = None
    """Steps timed in each row. Default: 10; from shards at least 5 for each batch that the loader may have ready."""
    device: Literal["cpu", "cuda"] | None = None
    """Default: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.workers < 0:
            raise ValueError(f"--workers must be at least 0, got {self.workers}")

    @property
    def random_steps(self) -> int:
        """Steps timed in a row on random tensors."""
        return self.steps or _STEPS

    @property
    def shard_steps(self) -> int:
        """Steps timed in a row from shards: what is ready before them must not make the rate."""
        return self.steps or max(_STEPS, _TIMES_READY * (2 * self.workers + 4))  # no ring has more slots


@dataclass(frozen=True)
class Bench:
    """What is timed, with every default decided."""

    model: CrossMAEConfig
    name: str
    batch_size: int
    dtype: torch.dtype
    device: torch.device
    flops: int  # a sample
    peak: float | None  # FLOP/s of the device, where known


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    timed: Timed
    products: float  # FLOP/s of plain matrix products in the same minute


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.bench_train"):
        config = parse(BenchConfig, arguments)
        bench = _decide(config)
        compile_ = config.compile or ("both" if bench.device.type == "cuda" else "off")
        ways = {"both": [False, True], "on": [True], "off": [False]}[compile_]
        print(facts(bench), flush=True)
        rows = [row for is_compiled in ways for row in _rows(config, bench, is_compiled)]
        print(f"\n{table(bench, rows)}", flush=True)
        print(f"\n{split_table(bench, config.random_steps)}")


def facts(bench: Bench) -> str:
    """What was timed and how much there is to compute, in two lines."""
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else _cpu_threads()
    macs = count("crossmae", bench.model)[-1].macs
    return (
        f"{bench.name}, batch {bench.batch_size}, {str(bench.dtype).removeprefix('torch.')}, {where}, "
        f"torch {torch.__version__}\n"
        f"{bench.flops / 1e9:.2f} GFLOP a sample forward and backward; forward alone {2 * macs / 1e9:.2f}"
        f" ({macs / 1e9:.2f} GMACs in tools/count_model.py)"
    )


def table(bench: Bench, rows: list[Row]) -> str:
    """The rows as Markdown, means over each row's span."""
    of = "MFU" if bench.peak else "of plain products"
    lines = [
        f"| | steps | samples/s | step (s) | waits for data | GFLOP/s | {of} | peak memory (GB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = bench.batch_size / row.timed.seconds
        done = rate * bench.flops
        wait = f"{row.timed.wait:.1%}" if row.name.startswith("shards") else ""
        lines.append(
            f"| {row.name} | {row.timed.steps} | {rate:.1f} | {row.timed.seconds:.3f} | {wait} | {done / 1e9:.1f}"
            f" | {done / (bench.peak or row.products):.1%} | {row.timed.memory / 1e9:.2f} |"
        )
    products = statistics.median(row.products for row in rows)
    lines += ["", "Means over all steps of a row, stalls included."]
    lines.append(f"Plain products of the model's sizes: {products / 1e9:.1f} GFLOP/s (median).")
    return "\n".join(lines)


def split_table(bench: Bench, steps: int) -> str:
    """Where an eager step on random tensors spends its time, as Markdown."""
    trainer = Trainer(bench.model, device=bench.device, dtype=bench.dtype, is_compiled=False)
    batches = random_batches(bench.batch_size, bench.device)
    trainer.time(batches, 1, _WARM_STEPS)
    parts = trainer.split(batches, steps)
    whole = sum(parts.values())
    lines = ["| part of an eager step | ms, median | share |", "|---|---:|---:|"]
    lines += [f"| {part} | {1000 * value:.1f} | {value / whole:.1%} |" for part, value in parts.items()]
    return "\n".join(lines)


def _decide(config: BenchConfig) -> Bench:
    kind = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    is_gpu = kind == "cuda"
    device = torch.device(kind, torch.cuda.current_device()) if is_gpu else torch.device("cpu")
    preset = config.preset or ("crossmae-base" if is_gpu else "crossmae-tiny")
    precision = config.precision or ("bf16" if is_gpu else "no")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = with_variant(PRESETS[preset](), config.variant)
    model = replace(model, checkpoint_activations=config.checkpoint_activations)
    return Bench(
        model=model,
        name=f"{preset} ({config.variant})",
        batch_size=config.batch_size or (64 if is_gpu else 8),
        dtype=dtype,
        device=device,
        flops=flops_per_sample("crossmae", model),
        peak=peak_flops(device, dtype),
    )


def _rows(config: BenchConfig, bench: Bench, is_compiled: bool) -> Iterator[Row]:
    """Steps on random tensors, and on shards if there are any."""
    trainer = Trainer(bench.model, device=bench.device, dtype=bench.dtype, is_compiled=is_compiled)
    way = "compiled" if is_compiled else "eager"
    random = random_batches(bench.batch_size, bench.device)
    yield _row(bench, f"random tensors, {way}", trainer, random, config.random_steps)
    if config.data is not None:
        yield _row(bench, f"shards, {way}", trainer, _from_shards(config.data, bench, config), config.shard_steps)
    del trainer
    gc.collect()  # a compiled model holds itself; its memory is not the next row's


def _row(bench: Bench, name: str, trainer: Trainer, batches: Iterator[Stored], steps: int) -> Row:
    before = product_rate(bench.model, bench.batch_size, bench.device, bench.dtype)
    timed = trainer.time(batches, steps, _WARM_STEPS)
    after = product_rate(bench.model, bench.batch_size, bench.device, bench.dtype)
    return Row(name, timed, (before + after) / 2)


def _from_shards(data: str, bench: Bench, config: BenchConfig) -> Iterator[Stored]:
    """Batches through the loader of train.py."""
    index = open_index(data)
    stream = SampleStream(index.counts, seed=0)
    shares = rank_shares(stream, Place(), steps=config.shard_steps + _WARM_STEPS, batch_size=bench.batch_size)
    is_gpu = bench.device.type == "cuda"
    for batch in load(index, shares, seed=0, batch_size=bench.batch_size, workers=config.workers, pin=is_gpu):
        yield batch.image[:, 0], batch.fbank, batch.seeds


def _cpu_threads() -> str:
    return f"CPU with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


if __name__ == "__main__":
    main()
