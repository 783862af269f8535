"""However a batch is divided among processes and pieces, the loss and the gradients are those of the whole batch."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.datasets import make_dataset
from tests.models import SMALLEST, batch, build, gradients, told
from training.config import TrainConfig
from training.loop import Loop, Window
from training.methods.crossmae import crossmae_tiny
from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.interface import Inputs
from training.methods.shared.contrast import ContrastConfig
from training.methods.shared.encoder import EncoderConfig
from training.processes import compiled, start_processes
from training.train import make_loop

BATCH = 8
MODEL = replace(
    crossmae_tiny(),
    encoder=EncoderConfig(dim=16, depth=1, heads=2),
    pixel=PixelConfig(dim=16, depth=1, heads=2, condition_start="xavier"),
    embedding=EmbeddingConfig(dim=16, depth=1, heads=2),
    contrast=ContrastConfig(weight=1.0, learnable_temperature=True, pooling="mlp"),
)


def loop_over(data: Path, out: Path, *, pieces: int, cached: bool, world: int = 1, **options: Any) -> Loop:
    """The loop of a run that takes the whole dataset in each of its steps, in the processes that there are."""
    config = TrainConfig(
        data=(str(data),),
        out=out,
        steps=2,
        batch_size=BATCH,
        device_batch_size=BATCH // world // pieces,
        contrast_cache=cached,
        workers=0,
        model=MODEL,
        **{"diagnose_every": 0} | options,
    )
    return make_loop(config, start_processes(config))


def take_step(loop: Loop) -> dict[str, Tensor]:
    """What a step of the loop comes to: loss, parts and norm as they are logged, and the gradients at its end."""
    found: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        found.update({name: grad.clone() for name, grad in gradients(loop.task.weights).items()})

    loop.optimizer.optimizer.register_step_pre_hook(note)
    window = Window(first_step=loop.step)
    loop._one_step(loop._batches(SimpleNamespace(interrupts=lambda: False)), window)  # type: ignore[arg-type]
    logged = loop.accelerator.reduce(window.parts[0], reduction="mean")
    return found | dict(zip(["loss", *loop.part_names, "grad_norm"], logged, strict=True))


def step(data: Path, out: Path, **how: Any) -> dict[str, Tensor]:
    """The first step of a run."""
    return take_step(loop_over(data, out, **how))


def run_rank(rank: int, world: int, folder: Path, data: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for name, pieces, cached in (("whole", 1, False), ("cached", 2, True)):
        torch.save(step(data, folder / name, world=world, pieces=pieces, cached=cached), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (BATCH,))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Tensor]:
    """The whole batch at once in one process."""
    return step(data, tmp_path_factory.mktemp("run"), pieces=1, cached=False)


def assert_same(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To float32's round-off: sums are taken in another order."""
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=2e-5 * scale, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("world", [2, 4])
def test_processes(world: int, data: Path, alone: dict[str, Tensor], tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([__name__])  # what takes longest is imported once
    mp.start_processes(run_rank, args=(world, tmp_path, data), nprocs=world, start_method="forkserver")
    for name in ("whole", "cached"):
        for rank in range(world):
            assert_same(torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True), alone)


@pytest.mark.parametrize("pieces", [2, 8])
def test_pieces_with_the_contrast_cached(pieces: int, data: Path, alone: dict[str, Tensor], tmp_path: Path) -> None:
    assert_same(step(data, tmp_path, pieces=pieces, cached=True), alone)


def test_pieces_without_it_have_another_contrastive_loss(data: Path, alone: dict[str, Tensor], tmp_path: Path) -> None:
    result = step(data, tmp_path, pieces=2, cached=False)
    assert not torch.isclose(result["contrast"], alone["contrast"], rtol=0.05)
    for name in ("cdt_audio", "cdt_visual", "emb_audio", "emb_visual"):  # the other losses are means over samples
        torch.testing.assert_close(result[name], alone[name], rtol=1e-4, atol=0)


def test_all_that_looks_at_a_batch_is_under_the_steps_autocast(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cached contrast and the diagnosis were those of another precision than the step's."""
    loop = loop_over(data, tmp_path, pieces=2, cached=True, diagnose_every=1)
    seen: list[tuple[str, bool, list[int]]] = []

    def noting(name: str, call: Any) -> Any:
        def called(inputs: Any) -> Any:
            given = inputs if isinstance(inputs, list) else [inputs]
            assert all(isinstance(one, Inputs) for one in given)
            seen.append((name, torch.is_autocast_enabled("cpu"), [int(n) for one in given for n in one.valid_frames]))
            return call(inputs)

        return called

    for name in ("look_ahead", "diagnose"):
        monkeypatch.setattr(loop.task, name, noting(name, getattr(loop.task, name)))
    monkeypatch.setattr(loop.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    take_step(loop)
    assert seen == [("look_ahead", True, [998] * 8), ("diagnose", True, [998] * 4)]


def test_compiled_within_ddp_no_gradient_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets so small that DDP's own way with graphs would split this one among the targets."""
    config = replace(SMALLEST, pixel=replace(SMALLEST.pixel, depth=1))
    weights, eager = build(config), build(config)
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", int(0.12 * 2**20))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(compiled(weights, "aot_eager"), bucket_cap_mb=0.12)
        model(told(*batch())).loss.backward()
        eager(told(*batch())).loss.backward()
    finally:
        dist.destroy_process_group()
    for (name, parameter), expected in zip(weights.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda said, name=name: f"{name}: {said}")
