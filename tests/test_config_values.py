"""Values and combinations of options that train.py refuses, in one line each; and what the allowed ones then do."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.datasets import make_dataset
from tests.runs import SMALL, mistake
from training.checkpoint import TO_RESUME, checkpoint_folder
from training.config import OptimizerConfig
from training.finetune.config import parse_finetune
from training.methods.crossmae.config import PRESETS, config_from_dict
from training.methods.shared.contrast import MIN_TEMPERATURE, Contrast, ContrastConfig
from training.recipes import parse_arguments
from training.task import Pretraining
from training.train import main, make_loop

GIVEN = ["--data=d", "--out=o"]


# -------------------------------------------------------------------- values


@pytest.mark.parametrize("command", [[], ["finetune"]], ids=["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["--optimizer.lr=0"], "--optimizer.lr must be a finite number above 0, got 0.0"),
        (["--optimizer.lr=nan"], "--optimizer.lr must be a finite number above 0, got nan"),
        (["--optimizer.lr=inf"], "--optimizer.lr must be a finite number above 0, got inf"),
        (["--optimizer.weight-decay=-0.1"], "--optimizer.weight-decay must be a finite number, at least 0, got -0.1"),
        (["--optimizer.weight-decay=inf"], "--optimizer.weight-decay must be a finite number, at least 0, got inf"),
        (["--optimizer.betas", "0.9", "1"], "--optimizer.betas must be numbers from 0 to below 1, got 0.9 1.0"),
        (["--optimizer.betas", "nan", "0.9"], "--optimizer.betas must be numbers from 0 to below 1, got nan 0.9"),
        (["--optimizer.warmup=-1"], "--optimizer.warmup is a share of the steps, 0 to 1, got -1.0"),
        (["--optimizer.warmup=nan"], "--optimizer.warmup is a share of the steps, 0 to 1, got nan"),
        (["--optimizer.clip-grad=0"], "--optimizer.clip-grad must be a finite number above 0, or None for no limit"),
        (["--optimizer.clip-grad=inf"], "--optimizer.clip-grad must be a finite number above 0, or None for no limit"),
        (["--epochs=nan"], "--epochs must be a finite number above 0, got nan"),
        (["--epochs=inf"], "--epochs must be a finite number above 0, got inf"),
        (["--fbank-mean=-inf"], "--fbank-mean must be a finite number, got -inf"),
        (["--fbank-std=0"], "--fbank-std must be a finite number above 0, got 0.0"),
        (["--fbank-std=nan"], "--fbank-std must be a finite number above 0, got nan"),
    ],
)
def test_values_that_no_run_can_use_are_refused(command, told, message, capsys):
    assert message in mistake(capsys, *command, *GIVEN, *told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("--layer-decay=nan", "--layer-decay must be a finite number above 0, got nan"),
        ("--head-lr=inf", "--head-lr must be a finite number above 0, got inf"),
        ("--video-lr=0", "--video-lr must be a finite number above 0, got 0.0"),
        ("--label-smoothing=nan", "--label-smoothing is a share, 0 to below 1, got nan"),
        ("--average-from=nan", "--average-from is a share of the steps, 0 to below 1, got nan"),
        ("--augment.mixup=nan", "--augment.mixup is a share, 0 to 1, got nan"),
        ("--augment.noise=inf", "--augment.noise must be a finite number, at least 0, got inf"),
    ],
)
def test_values_that_no_fine_tuning_can_use_are_refused(told, message, capsys):
    assert message in mistake(capsys, "finetune", *GIVEN, told)


@pytest.mark.parametrize("name", ["weight", "temperature"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_the_contrastive_loss_takes_finite_numbers(name, value, capsys):
    said = mistake(capsys, *GIVEN, f"--model.contrast.{name}={value}")
    assert f"contrast.{name} is {float(value)}: allowed are numbers above 0, and finite" in said


def test_the_ends_of_what_is_allowed():
    told = ["--optimizer.betas", "0", "0", "--optimizer.weight-decay=0", "--optimizer.warmup=0"]
    told += ["--optimizer.clip-grad=None", "--fbank-mean=0", "--epochs=0.5"]
    config = parse_arguments([*GIVEN, *told])
    assert config.optimizer == OptimizerConfig(betas=(0, 0), weight_decay=0, warmup=0)
    assert (config.fbank_mean, config.epochs) == (0, 0.5)


# -------------------------------------------------------------------- combinations


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["--variant=selfmae", "--contrast-cache"], "--contrast-cache is given, but the model has no contrastive loss"),
        (
            ["--variant=cl-selfmae", "--model.embedding.targets=teacher"],
            "--model.embedding.targets is teacher, but the model has no embedding loss",
        ),
        (
            ["--variant=cl-av", "--model.embedding.targets=ema"],
            "--model.embedding.targets is ema, but the model has no",
        ),
        (
            ["--model.contrast.learnable-temperature", "--model.contrast.temperature=0.005"],
            "--model.contrast.temperature is 0.005, where a learned one starts: allowed are 0.01",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(told, message, capsys):
    assert message in mistake(capsys, *GIVEN, *told)


def test_what_older_runs_wrote_is_still_read():
    values = {
        "embedding": {"enabled": False, "targets": "teacher"},
        "contrast": {"learnable_temperature": True, "temperature": 0.005},
    }
    config = config_from_dict(values)
    assert (config.embedding.targets, config.contrast.temperature) == ("teacher", 0.005)


# -------------------------------------------------------------------- --contrast-cache without pieces


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (4,))


def test_the_contrast_is_cached_where_there_are_pieces(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("training.train.Loop", lambda *given: given[-1])
    for told, world, expected in (
        (["--contrast-cache"], 1, False),
        (["--contrast-cache", "--device-batch-size=4"], 1, False),
        (["--contrast-cache", "--device-batch-size=2"], 1, True),
        (["--contrast-cache", "--device-batch-size=2"], 2, False),  # a process's share is one piece
        (["--device-batch-size=2"], 1, False),
    ):
        config = parse_arguments([*SMALL, f"--data={dataset}", f"--out={tmp_path}", "--batch-size=4", *told])
        assert make_loop(config, SimpleNamespace(num_processes=world)).needs_all_pieces == expected


def test_one_piece_is_encoded_once(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr("training.task.cache_contrast")  # nothing asks for it
    told = [f"--data={dataset}", f"--out={tmp_path / 'run'}", "--batch-size=4", "--steps=1", "--workers=0"]
    main([*SMALL, *told, "--contrast-cache"])
    assert "batch 4 = 1 x 1 x 4" in capsys.readouterr().out


# -------------------------------------------------------------------- a learned temperature at its floor


def test_a_learned_temperature_leaves_its_floor():
    """Of two clips: pairs that fit want a lower temperature, exchanged ones a higher."""
    contrast = Contrast(ContrastConfig(temperature=0.0101, learnable_temperature=True), 2)
    assert contrast.log_temperature is not None
    optimizer = torch.optim.SGD(contrast.parameters(), lr=0.1)
    audio = torch.tensor([[1.0, 0.0], [0.99, 0.1]])  # near each other: the loss still tells temperatures apart

    def step(image):
        optimizer.zero_grad()
        contrast.loss(audio, image).backward()
        optimizer.step()
        contrast.hold_temperature()
        return contrast.log_temperature.exp().item()

    held = [step(audio) for _ in range(3)]
    assert held == [pytest.approx(MIN_TEMPERATURE)] * 3
    risen = [step(audio.flip(0)) for _ in range(3)]
    assert MIN_TEMPERATURE * 1.01 < risen[0] < risen[1] < risen[2]


def test_each_step_of_pre_training_holds_the_temperature():
    told = ["--model.contrast.learnable-temperature", "--model.contrast.temperature=0.01"]
    task = Pretraining(parse_arguments([*SMALL, *GIVEN, *told]))
    temperature = task.weights.contrast.log_temperature
    for given, expected in ((0.001, MIN_TEMPERATURE), (0.5, 0.5)):
        temperature.data.fill_(math.log(given))
        task.after_step(1, 10)
        assert temperature.exp().item() == pytest.approx(expected)
    Pretraining(parse_arguments([*SMALL, *GIVEN, "--variant=selfmae"])).after_step(1, 10)  # without a contrastive loss


def test_a_dataset_without_any_deviation_is_refused(tmp_path, capsys):
    """All clips silent, say: there is nothing to divide by."""
    dataset = make_dataset(tmp_path / "shards", (7, 6))
    told = json.loads((dataset / "dataset.json").read_text())
    told["std"] = 0.0
    (dataset / "dataset.json").write_text(json.dumps(told))
    said = mistake(capsys, *SMALL, f"--data={dataset}", f"--out={tmp_path / 'run'}", "--steps=1", "--batch-size=2")
    assert "a standard deviation of 0.0" in said and "--fbank-std" in said


# -------------------------------------------------------------------- a forgotten --preset


def saved(run, step, config):
    """What tells of a checkpoint, and its config.json."""
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    for name in TO_RESUME:
        (folder / name).write_text(json.dumps(config.to_dict()) if name == "config.json" else "{}")
    return folder


def test_a_run_that_goes_on_is_of_its_own_model(tmp_path):
    told = ["--data=d", f"--out={tmp_path}"]
    began = parse_arguments([*told, *SMALL, "--variant=cl-av"])
    first, second = saved(tmp_path, 1, began), saved(tmp_path, 2, parse_arguments([*told, "--preset=world-tiny"]))
    config = parse_arguments([*told, f"--resume={first}"])
    assert (config.preset, config.variant, config.model) == ("crossmae-tiny", "cl-av", began.model)
    assert parse_arguments(told).preset == "world-tiny"  # the newest
    assert parse_arguments([*told, "--model.encoder.depth=7"]).model.encoder.depth == 7
    for words in (["--preset=crossmae-small"], ["--resume=never"], [f"--resume={tmp_path / 'none'}"]):
        fresh = parse_arguments([*told, *words])
        assert fresh.model == PRESETS[fresh.preset]() and fresh.preset in ("crossmae-small", "crossmae-base")
    (second / "config.json").write_text(json.dumps({"model": {"a": 1}}))
    assert parse_arguments(told).preset == "crossmae-base"  # and resuming says what it is


@pytest.mark.parametrize("command", [[], ["finetune"]], ids=["pretrain", "finetune"])
@pytest.mark.parametrize("option", ["--preset", "--out", "--resume"])
def test_an_option_without_its_value_is_named(command, option, capsys):
    assert option in mistake(capsys, *command, "--data=d", option)


def test_a_fine_tuning_run_that_goes_on_has_its_own_encoders(tmp_path):
    told = ["--data=d", f"--out={tmp_path}"]
    saved(tmp_path, 1, parse_finetune([*told, "--preset=crossmae-tiny", "--fbank-mean=0", "--fbank-std=1"]))
    assert parse_finetune(told).encoder == PRESETS["crossmae-tiny"]().encoder
    assert parse_finetune([*told, "--preset=crossmae-small"]).encoder == PRESETS["crossmae-small"]().encoder
