"""tools/bench_train.py runs, adds up, and counts the FLOPs that torch counts on a real step."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count as count_from
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.datasets import make_dataset
from tests.models import SMALLEST, batch, build, switched, told
from tools import bench_train
from tools.benchmarks import train_step
from tools.benchmarks.train_step import FORWARD_PARTS, Stored, Trainer, product_rate, random_batches
from tools.count_model import count
from training.flops import flops_per_sample, known_peak, peak_flops
from training.methods.crossmae import VARIANTS, with_variant
from training.stream.ring import Ring

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_of_a_real_step(variant: str) -> None:
    config = with_variant(SMALLEST, variant)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        build(config)(told(*batch(1))).loss.backward()
    assert flops_per_sample("crossmae", config) == counter.get_total_flops() > 0


def test_flops_and_the_table_of_macs_agree() -> None:
    """Forward and twice as much backward, the targets forward only; but the first layer has no input gradient."""
    parts = count("crossmae", SMALLEST)
    targets = sum(part.macs for part in parts if "targets" in part.name)
    first = 196 * 16 * 16 * 3 * 32 + 512 * 16 * 16 * 32  # both patch embeddings, of all patches
    assert targets > 0
    expected = 2 * (3 * (parts[-1].macs - targets) + targets - first)
    # [CLS]'s own row of attention is computed without gradient: less than one part in a hundred.
    assert 0.98 * expected < flops_per_sample("crossmae", SMALLEST) <= expected


def test_a_teacher_costs_what_the_online_targets_cost_and_recomputation_does_not_count() -> None:
    expected = flops_per_sample("crossmae", SMALLEST)
    assert flops_per_sample("crossmae", switched("embedding", targets="ema")) == expected
    assert flops_per_sample("crossmae", switched("embedding", targets="teacher")) == expected
    assert flops_per_sample("crossmae", replace(SMALLEST, checkpoint_activations=True)) == expected
    assert flops_per_sample("crossmae", switched("embedding", target_gradient=True)) > expected


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks(name: str, tflops: float | None) -> None:
    assert known_peak(name) == (None if tflops is None else tflops * 1e12)


def test_a_cpu_has_no_known_peak() -> None:
    assert peak_flops(CPU, torch.bfloat16) is None


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_dataset(tmp_path / "data")
    arguments = ["--preset=crossmae-tiny", "--batch-size=2", "--steps=2", "--device=cpu", f"--data={data}"]
    bench_train.main([*arguments, "--workers=0", "--precision=no"])
    said = capsys.readouterr().out
    assert "crossmae-tiny (crossmae), batch 2, float32, CPU with 1 thread" in said
    assert "5.06 GFLOP a sample forward and backward; forward alone 2.92 (1.46 GMACs" in said
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "eager |" in line]
    assert [row[0] for row in rows] == ["random tensors, eager", "shards, eager"]
    for row in rows:
        rate, step, gflops, memory = (float(row[column]) for column in (2, 3, 5, 7))
        assert rate == pytest.approx(2 / step, rel=0.1) and gflops == pytest.approx(rate * 5.06, rel=0.1)
        assert memory > 0.1
    assert [row[1] for row in rows] == ["2", "2"]
    assert rows[0][4] == "" and rows[1][4].endswith("%")
    shares = [float(share) for share in re.findall(r"\| [\d.]+ \| ([\d.]+)% \|$", said, flags=re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=0.6)
    assert all(f"| {part} |" in said for part in [*FORWARD_PARTS, "backward", "optimizer"])


def test_a_stall_every_few_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 1 s, and each fifth batch lets it wait for 10 s more: the median step would not know."""
    now = 0.0

    def batches() -> Iterator[Stored]:
        nonlocal now
        batch = next(random_batches(2, CPU))
        for number in count_from(1):
            now += 10 if number % 5 == 0 else 0
            yield batch

    def step(stored: Stored) -> None:
        nonlocal now
        now += 1

    trainer = Trainer(SMALLEST, device=CPU, dtype=torch.float32, is_compiled=False)
    monkeypatch.setattr(trainer, "step", step)
    monkeypatch.setattr(train_step, "time", SimpleNamespace(perf_counter=lambda: now))
    timed = trainer.time(batches(), steps=20, warm=2)
    assert timed.seconds == pytest.approx((20 + 4 * 10) / 20)
    assert timed.wait == pytest.approx(40 / 60) and timed.steps == 20


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_from_shards_outnumber_what_the_loader_has_ready(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.stream.ring.pin", lambda memory: None)
    with Ring([], batch_size=1, workers=workers, page_locked=True) as ring:
        assert bench_train.BenchConfig(workers=workers).shard_steps >= 5 * len(ring.slots)
    assert bench_train.BenchConfig(workers=workers, steps=3).shard_steps == 3


def test_a_variant_has_the_parts_it_has_and_the_model_is_left_as_it_was() -> None:
    trainer = Trainer(with_variant(SMALLEST, "cl-av"), device=CPU, dtype=torch.bfloat16, is_compiled=False)
    parts = trainer.split(random_batches(2, CPU), steps=1)
    assert {"masked encoders", "losses", "backward", "optimizer"} <= set(parts)
    assert not set(parts) & {"pixel decoders", "embedding decoders", "targets, no gradient"}
    assert "see_image" not in vars(trainer.weights)
    assert trainer.weights.contrast is not None and "forward" not in vars(trainer.weights.contrast)
    assert product_rate(SMALLEST, 2, CPU, torch.float32) > 0


def test_the_step_trains() -> None:
    trainer = Trainer(switched("embedding", targets="ema"), device=CPU, dtype=torch.float32, is_compiled=False)
    before = {name: value.clone() for name, value in trainer.weights.state_dict().items()}
    trainer.step(next(random_batches(2, CPU)))
    after = trainer.weights.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still and all(name.endswith("pos_embed") or name.startswith("teacher.") for name in still), still


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--preset", "crossmae-huge"], "crossmae-huge"),
        (["--data", "/nowhere/at/all", "--device", "cpu", "--steps", "1", "--batch-size", "1"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_train.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and len(said.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_train.main(["--device", "cuda"])
    assert "torch finds no CUDA device here; use --device cpu" in capsys.readouterr().err
