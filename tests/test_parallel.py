"""However a batch is divided among processes and pieces, the loss and the gradients are those of the whole batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.models import SMALLEST, build
from training.contrast_cache import cache_contrast
from training.loop import Inputs
from training.methods.crossmae import CrossMAE, CrossMAEConfig, crossmae_tiny
from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.shared.contrast import ContrastConfig
from training.methods.shared.encoder import EncoderConfig
from training.processes import compiled

BATCH = 8
CONFIG = replace(
    crossmae_tiny(),
    encoder=EncoderConfig(dim=16, depth=1, heads=2),
    pixel=PixelConfig(dim=16, depth=1, heads=2),
    embedding=EmbeddingConfig(dim=16, depth=1, heads=2),
    contrast=ContrastConfig(weight=1.0, learnable_temperature=True, pooling="mlp"),
)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(BATCH, 3, 224, 224, generator=generator)
    fbank = torch.randn(BATCH, 1024, 128, generator=generator)
    return image, fbank, torch.arange(BATCH) + 7


def step(config: CrossMAEConfig, *, rank: int, world: int, pieces: int, cached: bool) -> dict[str, Tensor]:
    """Loss, its parts and all gradients of one step, as the loop takes it."""
    torch.manual_seed(0)
    weights = CrossMAE(config)
    model = DistributedDataParallel(weights) if world > 1 else weights
    sizes = [BATCH // world // pieces] * (world * pieces)
    parts = [Inputs(image=i, fbank=f, seeds=s, numbers=s) for i, f, s in zip(*(t.split(sizes) for t in batch()))]  # noqa: B905
    mine = parts[rank * pieces : (rank + 1) * pieces]
    known = cache_contrast(weights, mine) if cached else [None] * pieces
    total: dict[str, Tensor] = {}
    for number, (piece, contrast) in enumerate(zip(mine, known, strict=True)):
        if world > 1:
            model.require_backward_grad_sync = number == pieces - 1
        output = model(piece.image, piece.fbank, piece.seeds, contrast)
        (output.loss / pieces).backward()
        for name, value in {"loss": output.loss.detach(), **output.parts}.items():
            total[name] = total.get(name, torch.zeros(())) + value / pieces
    if world > 1:
        for value in total.values():
            dist.all_reduce(value.div_(world))
    return total | {name: p.grad for name, p in weights.named_parameters() if p.grad is not None}


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    for name, pieces, cached in (("whole", 1, False), ("cached", 2, True)):
        result = step(CONFIG, rank=rank, world=world, pieces=pieces, cached=cached)
        torch.save(result, f"{folder}/{name}-{world}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """The whole batch at once in one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield step(CONFIG, rank=0, world=1, pieces=1, cached=False)
    torch.set_num_threads(threads)


def assert_same(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To float32's round-off: sums are taken in another order."""
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=2e-5 * scale, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("world", [2, 4])
def test_processes(world: int, alone: dict[str, Tensor], tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(world, str(tmp_path)), nprocs=world)
    for name in ("whole", "cached"):
        for rank in range(world):
            assert_same(torch.load(tmp_path / f"{name}-{world}-{rank}.pt", weights_only=True), alone)


@pytest.mark.parametrize("pieces", [2, 8])
def test_pieces_with_the_contrast_cached(pieces: int, alone: dict[str, Tensor]) -> None:
    assert_same(step(CONFIG, rank=0, world=1, pieces=pieces, cached=True), alone)


def test_pieces_without_it_have_another_contrastive_loss(alone: dict[str, Tensor]) -> None:
    result = step(CONFIG, rank=0, world=1, pieces=2, cached=False)
    assert not torch.isclose(result["contrast"], alone["contrast"], rtol=0.05)
    for name in ("cdt_audio", "cdt_visual", "emb_audio", "emb_visual"):  # the other losses are means over samples
        torch.testing.assert_close(result[name], alone[name], rtol=1e-4, atol=0)


def test_compiled_within_ddp_no_gradient_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets so small that DDP's own way with graphs would split this one among the targets."""
    config = replace(SMALLEST, pixel=replace(SMALLEST.pixel, depth=1))
    weights, eager = build(config), build(config)
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", int(0.12 * 2**20))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(compiled(weights, "aot_eager"), bucket_cap_mb=0.12)
        model(*batch(), None).loss.backward()
        eager(*batch()).loss.backward()
    finally:
        dist.destroy_process_group()
    for (name, parameter), expected in zip(weights.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda said, name=name: f"{name}: {said}")
