"""The contrastive loss over two processes has the gradient of the whole batch in one."""

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.methods.shared.contrast import Contrast, ContrastConfig
from training.methods.shared.encoder import Features

BATCH, WORLD, DIM = 6, 2, 8


class TwoTowers(nn.Module):
    """A linear layer for each modality, and the loss."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.audio, self.image = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.contrast = Contrast(config, DIM)

    def forward(self, audio: Tensor, image: Tensor) -> Tensor:
        return self.contrast(features(self.audio(audio)), features(self.image(image)))


def features(tokens: Tensor) -> Features:
    """Tokens [B, N, D] as an encoder's features."""
    return Features(tokens.mean(dim=1), tokens, tokens[:, 0] * 2, torch.zeros(tokens.shape[:2]))


def towers(negatives: str) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(ContrastConfig(learnable_temperature=True, pooling="mlp", negatives=negatives))  # type: ignore[arg-type]


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(BATCH, 3, DIM, generator=generator)
    return audio, audio + torch.randn(BATCH, 3, DIM, generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    share = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    for negatives in ("global", "local"):
        model = DistributedDataParallel(towers(negatives))
        audio, image = inputs()
        loss = model(audio[share], image[share])
        loss.backward()
        torch.save({"loss": loss.detach(), **gradients(model)}, f"{folder}/{negatives}-{rank}.pt")
    traced = torch.compile(towers("global"), backend="eager", fullgraph=True)  # the gather breaks no graph
    torch.save({"loss": traced(audio[share], image[share]).detach()}, f"{folder}/compiled-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {negatives}-{rank}.pt: each rank's loss, and the gradients that DDP averaged."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_rank, args=(str(folder),), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return folder


def load(folder: Path, negatives: str) -> list[dict[str, Tensor]]:
    return [torch.load(folder / f"{negatives}-{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_two_ranks_have_the_gradient_of_the_global_batch(ranks: Path) -> None:
    model = towers("global")
    loss = model(*inputs())
    loss.backward()
    results = load(ranks, "global")
    torch.testing.assert_close(sum(result["loss"] for result in results) / WORLD, loss.detach())
    for result in results:
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(result[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_the_gather_compiles(ranks: Path) -> None:
    for ours, theirs in zip(load(ranks, "compiled"), load(ranks, "global"), strict=True):
        torch.testing.assert_close(ours["loss"], theirs["loss"])


def test_local_negatives_are_those_of_the_rank(ranks: Path) -> None:
    model, (audio, image) = towers("local"), inputs()
    halves = [slice(0, 3), slice(3, 6)]
    loss = torch.stack([model(audio[half], image[half]) for half in halves]).mean()
    loss.backward()
    for result in load(ranks, "local"):
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(result[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_pooling() -> None:
    tokens = torch.randn(2, 3, DIM)
    shown = features(tokens)
    means, cls, head = (Contrast(ContrastConfig(pooling=pooling), DIM) for pooling in ("mean", "cls", "mlp"))
    assert torch.equal(means.globals(shown, means.audio_head), tokens.mean(dim=1))
    assert torch.equal(cls.globals(shown, cls.audio_head), shown.cls)
    assert head.audio_head is not None and head.image_head is not None
    assert torch.equal(head.globals(shown, head.audio_head), head.audio_head(tokens.mean(dim=1)))
    assert not any(True for _ in means.parameters())
    assert not torch.equal(head.globals(shown, head.audio_head), head.globals(shown, head.image_head))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_gradient_of_a_learned_temperature_by_hand(reduction: Literal["sum", "mean"]) -> None:
    """In log tau, of cross-entropies of scores s / tau: what the softmax expects of s / tau, less the partner's."""
    audio, image = inputs()
    config = ContrastConfig(temperature=0.2, learnable_temperature=True, reduction=reduction)
    contrast = Contrast(config, DIM)
    a, v = features(audio), features(image)
    contrast(a, v).backward()
    scores = F.normalize(a.pooled.double(), dim=1) @ F.normalize(v.pooled.double(), dim=1).T / 0.2
    expected = sum((s.diagonal() - (s.softmax(dim=1) * s).sum(dim=1)).mean() for s in (scores, scores.T))
    assert contrast.log_temperature is not None and contrast.log_temperature.grad is not None
    share = 1 if reduction == "sum" else 0.5
    assert contrast.log_temperature.grad.item() == pytest.approx(share * float(expected), rel=1e-4)


def test_learnable_temperature_starts_at_the_given_one() -> None:
    a, v = features(torch.randn(4, 3, DIM)), features(torch.randn(4, 3, DIM))
    fixed = Contrast(ContrastConfig(temperature=0.2), DIM)
    learned = Contrast(ContrastConfig(temperature=0.2, learnable_temperature=True), DIM)
    torch.testing.assert_close(learned(a, v), fixed(a, v))
