"""The optimizer: which parameters are decayed, what it was told, whose moments are whose; and the rate at each step."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models import SMALLEST
from training.config import OptimizerConfig
from training.finetune.classifier import Classifier
from training.finetune.config import parse_finetune
from training.finetune.finetune import parameter_groups
from training.methods.crossmae import CrossMAE
from training.methods.shared.contrast import ContrastConfig
from training.optimizer import build_optimizer, decayed, in_order, learning_rate, load_moments, make_optimizer

OPTIONS = OptimizerConfig(lr=1e-3, weight_decay=0.3, betas=(0.7, 0.8))


def everything():
    """A model that has every kind of parameter: heads of the contrast, a temperature, queries, tokens."""
    contrast = ContrastConfig(pooling="mlp", learnable_temperature=True)
    return CrossMAE(replace(SMALLEST, contrast=contrast))


def names_of(model, groups):
    """The names of the parameters in groups that are decayed, and in those that are not."""
    names = {id(p): name for name, p in model.named_parameters()}
    of = [
        [names[id(p)] for group in groups if bool(group["weight_decay"]) is is_ for p in group["params"]]
        for is_ in (True, False)
    ]
    assert sorted(of[0] + of[1]) == sorted(names.values())
    return of


def test_pre_training_decays_the_weights_of_layers_and_nothing_else():
    model = everything()
    optimizer = make_optimizer(model, OPTIONS, fused=False)
    with_decay, without = names_of(model, optimizer.param_groups)
    for name in with_decay:
        assert name.endswith(".weight") and ".norm" not in name, name
    for name in without:
        assert name.endswith((".bias", "cls_token", "mask_token", "queries", "log_temperature")) or ".norm" in name, (
            name
        )
    assert {name.rsplit(".", 1)[-1] for name in without} == {
        *("weight", "bias", "cls_token", "mask_token", "queries", "log_temperature")
    }
    # Older checkpoints number the parameters so.
    assert [with_decay, without] == [
        [n for n, _ in model.named_parameters() if n in group] for group in (with_decay, without)
    ]


def test_fine_tuning_decays_the_same():
    config = parse_finetune(["--data=d", "--out=o", "--optimizer.weight-decay=0.3", "--layer-decay=0.5"])
    config = replace(config, encoder=SMALLEST.encoder)
    classifier = Classifier(SMALLEST.encoder, inputs="av", classes=3)
    with_decay, without = names_of(classifier, parameter_groups(classifier, config))
    assert all(name.endswith(".weight") and "norm" not in name for name in with_decay)
    assert all(name.endswith((".bias", "cls_token")) or "norm" in name for name in without)


def test_kernels_of_any_number_of_dimensions_are_decayed_and_tables_are_not():
    layers = {
        "conv1": nn.Conv1d(2, 2, 3),
        "conv3": nn.Conv3d(2, 2, 3),
        "up1": nn.ConvTranspose1d(2, 2, 3),
        "up2": nn.ConvTranspose2d(2, 2, 3),
        "up3": nn.ConvTranspose3d(2, 2, 3),
        "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
        "group": nn.GroupNorm(1, 2),
        "batch": nn.BatchNorm3d(2),
        "plane": nn.LayerNorm((2, 2)),
        "table": nn.Embedding(3, 4),
    }
    model = nn.ModuleDict(layers)
    found = decayed(model, OPTIONS)
    assert {name for name, p in model.named_parameters() if id(p) in found} == {
        *("conv1.weight", "conv3.weight", "up1.weight", "up2.weight", "up3.weight"),
        *("attention.in_proj_weight", "attention.out_proj.weight"),
    }


def test_tokens_are_decayed_where_it_is_asked_for_as_in_mae():
    model = everything()
    plain, asked = (decayed(model, replace(OPTIONS, decay_on=value)) for value in ("layers", "tokens"))
    more = {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if id(p) in asked - plain}
    assert plain < asked and more == {"cls_token", "mask_token", "queries"}


@pytest.mark.parametrize("kind", ["adamw", "adam_l2"])
def test_the_optimizer_is_what_it_was_told_to_be(kind):
    options = replace(OPTIONS, kind=kind)
    optimizer = build_optimizer([{"params": [nn.Parameter(torch.ones(1))]}], options, fused=False)
    assert type(optimizer) is (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.8) and optimizer.defaults["lr"] == 1e-3
    # By hand, from moments 0: after gradients 1 and 3 the means are weighted by the betas.
    (weight,) = optimizer.param_groups[0]["params"]
    for gradient in (1.0, 3.0):
        optimizer.param_groups[0]["weight_decay"] = 0.0
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    state = optimizer.state[weight]
    assert state["exp_avg"].item() == pytest.approx(0.7 * 0.3 * 1 + 0.3 * 3)
    assert state["exp_avg_sq"].item() == pytest.approx(0.8 * 0.2 * 1 + 0.2 * 9)


def stepped(classifier, config):
    """An optimizer of fine-tuning after a step, with moments that tell parameters apart."""
    optimizer = build_optimizer(parameter_groups(classifier, config), config.optimizer, fused=False)
    for number, parameter in enumerate(classifier.parameters(), 1):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"decay_on": "tokens"}, {"betas": (0.1, 0.2)}, {}])
def test_moments_stay_with_their_parameters_where_groups_change(change):
    """Without decay there are fewer groups, with decayed tokens others: the same number means another parameter."""
    config = replace(parse_finetune(["--data=d", "--out=o", "--layer-decay=0.5"]), encoder=SMALLEST.encoder)
    classifier = Classifier(SMALLEST.encoder, inputs="av", classes=3)
    before = stepped(classifier, config)
    saved = copy.deepcopy(before.state_dict())
    now = replace(config, optimizer=replace(config.optimizer, **change))
    after = build_optimizer(parameter_groups(classifier, now), now.optimizer, fused=False)
    options = [{k: v for k, v in group.items() if k != "params"} for group in after.param_groups]
    load_moments(after, saved, in_order(before))
    assert [{k: v for k, v in group.items() if k != "params"} for group in after.param_groups] == options
    for parameter in classifier.parameters():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(after.state[parameter][name], before.state[parameter][name])


def test_the_moments_of_another_model_are_refused():
    small, large = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    saved = make_optimizer(large, OPTIONS, fused=False).state_dict()
    optimizer = make_optimizer(small, OPTIONS, fused=False)
    with pytest.raises(ValueError, match="it is the state of 4 parameters, expected 2"):
        load_moments(optimizer, saved, in_order(optimizer))


# -------------------------------------------------------------------- the rate


def test_the_rate_rises_linearly_and_falls_along_half_a_cosine():
    options = OptimizerConfig(lr=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, options, 512) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert (rates[10], rates[100]) == (2.0, pytest.approx(0, abs=1e-12))
    for step in (25, 55, 85):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 10) / 90))


@pytest.mark.parametrize(("batch_size", "steps"), [(512, 1171), (3, 26), (7, 1)])
def test_counting_samples_gives_the_rates_of_counted_steps_to_the_bit(batch_size, steps):
    for step in range(steps):
        done = step * batch_size / batch_size
        assert learning_rate(done, done + (steps - step), OPTIONS, batch_size) == learning_rate(step, steps, OPTIONS, 1)


def test_between_two_steps_the_rate_never_rises_above_the_peak():
    options = OptimizerConfig(lr=2.0, warmup=0.5)
    assert max(learning_rate(step / 7, 20.3, options, 1) for step in range(143)) <= 2.0
