"""What one step of the loop does, against what is computed by hand beside it."""

import pytest
import torch
from torch.nn.utils import get_total_norm

from tests.datasets import make_dataset
from tests.runs import SMALL
from training.loop import Window
from training.processes import StopRequest, signals_given_back, start_processes
from training.recipes import parse_arguments
from training.train import make_loop

COMMON = ["--steps=8", "--batch-size=4", "--optimizer.lr=1e-3", "--optimizer.warmup=0", "--workers=0"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (7, 6))


def begin(dataset, out, *told):
    config = parse_arguments([*SMALL, f"--data={dataset}", f"--out={out}", *COMMON, *told])
    loop = make_loop(config, start_processes(config))
    with signals_given_back():
        batches = loop._batches(StopRequest())
    return loop, lambda: loop._one_step(batches, Window(first_step=loop.step))


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_the_optimizer_gets_a_gradient_of_the_norm_that_is_allowed(limit, dataset, tmp_path, monkeypatch):
    _, plain = begin(dataset, tmp_path / "plain")
    _, step = begin(dataset, tmp_path / "clipped", f"--optimizer.clip-grad={limit}")
    norms = []

    def note(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(get_total_norm(gradients).item())

    monkeypatch.setattr("accelerate.optimizer.AcceleratedOptimizer.step", note)
    plain()
    step()
    assert norms[1] == pytest.approx(min(limit, norms[0]), rel=1e-3) and 0.1 < norms[0] < 1e6


def test_the_optimizer_has_the_options_of_the_run(dataset, tmp_path):
    loop, _ = begin(dataset, tmp_path, "--optimizer.betas", "0.6", "0.7", "--optimizer.weight-decay=0.2")
    assert [group["betas"] for group in loop.optimizer.param_groups] == [(0.6, 0.7)] * 2
    assert [group["weight_decay"] for group in loop.optimizer.param_groups] == [0.2, 0.0]


def test_the_running_mean_moves_after_the_step(dataset, tmp_path):
    """It begins at the encoders, so that a move before the step would change nothing."""
    told = ["--model.embedding.targets=ema", "--model.embedding.ema-momentum=0.75"]
    loop, step = begin(dataset, tmp_path, *told)
    model = loop.task.weights
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("audio_encoder.")}
    step()
    online, mean = dict(model.named_parameters()), dict(model.teacher.named_parameters())
    for name, start in before.items():
        torch.testing.assert_close(mean[name], 0.75 * start + 0.25 * online[name])
    name = "audio_encoder.blocks.0.mlp.fc1.weight"
    assert not torch.equal(online[name], before[name]) and not torch.equal(mean[name], before[name])


@pytest.mark.parametrize("told", [{}, {"fbank_mean": -1.5}, {"fbank_mean": -1.5, "fbank_std": 2.5}])
def test_fbanks_are_normalised_as_the_run_was_told(told, dataset, tmp_path, monkeypatch):
    loop, step = begin(dataset, tmp_path, *(f"--{k.replace('_', '-')}={v}" for k, v in told.items()))
    mean, std = told.get("fbank_mean", -4.0), told.get("fbank_std", 4.0)  # the dataset's
    assert (loop.config.fbank_mean, loop.config.fbank_std) == (mean, std)
    stored, seen = [], []
    normalise, losses = loop.normalise, loop.task.losses
    monkeypatch.setattr(loop, "normalise", lambda image, fbank: stored.append(fbank.clone()) or normalise(image, fbank))
    monkeypatch.setattr(loop.task, "losses", lambda m, inputs, i: seen.append(inputs.fbank) or losses(m, inputs, i))
    step()
    torch.testing.assert_close(seen[0], (stored[0].float() - mean) / std)
