"""Fine-tuning: its parts against hand-computed values, and the command killed, resumed and misused."""

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.runs import command_line, environment, run_to_end, train
from tests.test_model_step import Waits
from tests.test_probe import with_classes
from tests.test_train import assert_same_weights, keys, losses, wait_for
from training.checkpoint import checkpoints
from training.evaluate import main as evaluate
from training.finetune.augment import AugmentConfig, Mix, augment, draw_mix, mix_fbanks, shift, spec_augment, uniform
from training.finetune.balanced import BalancedStream, sample_weights
from training.finetune.classifier import Classifier, load_classifier
from training.finetune.config import parse_finetune
from training.finetune.finetune import Finetuning, layer_scale, parameter_groups, smooth
from training.finetune.labels import Labels, read_labels
from training.methods.cav_mae.classifier import Head
from training.methods.crossmae.config import PRESETS
from training.methods.interface import Inputs
from training.methods.shared.encoder import EncoderConfig
from training.stream.index import open_index
from training.stream.order import Place, sample_seeds
from training.train import main

TINY = EncoderConfig(dim=16, depth=2, heads=2)


def labels_of(*lists, classes=4):
    starts = np.cumsum([0, *map(len, lists)])
    return Labels(classes=classes, starts=starts, ids=np.array([i for ids in lists for i in ids], np.int32))


# -------------------------------------------------------------------- labels, balance


def test_labels_of_a_dataset(tmp_path):
    index = open_index(with_classes(make_dataset(tmp_path / "set", (3, 2))))
    labels = read_labels(index)
    assert [labels.of(number) for number in range(5)] == [index.label_ids(number) for number in range(5)]
    numbers = np.array([4, 0, 4])
    matrix = labels.matrix(numbers)
    assert matrix.shape == (3, 8) and matrix.dtype == np.float32
    assert [np.flatnonzero(row).tolist() for row in matrix] == [labels.of(number) for number in numbers]


def test_matrix_of_several_and_no_classes():
    labels = labels_of([2, 0], [], [1])
    assert labels.matrix(np.array([1, 0, 2])).tolist() == [[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]]
    assert labels.per_sample.tolist() == [2, 0, 1] and labels.per_class.tolist() == [1, 1, 1, 0]


def test_weights_are_the_sum_over_classes():
    weights = sample_weights(labels_of([0], [0, 1], [], [0]))
    np.testing.assert_allclose(weights, [1000 / 3.01, 1000 / 3.01 + 1000 / 1.01, 0, 1000 / 3.01])


def test_balanced_draws_are_a_function_of_their_position():
    stream = BalancedStream([1.0, 0.0, 5.0, 2.0, 0.5], seed=3)
    whole, positions = stream.take(Place(), 40)
    assert positions.tolist() == list(range(40))
    for first in range(0, 40, 7):
        for count in (1, 6, 13):
            place = Place().advance(first, stream.n)
            numbers, part = BalancedStream([1.0, 0.0, 5.0, 2.0, 0.5], seed=3).take(place, min(count, 40 - first))
            assert numbers.tolist() == whole[first : first + count].tolist()
            assert part.tolist() == positions[first : first + count].tolist()
    assert BalancedStream([1.0, 0.0, 5.0, 2.0, 0.5], seed=4).take(Place(), 40)[0].tolist() != whole.tolist()


def test_balanced_draws_come_as_often_as_their_weights_say():
    generator = np.random.default_rng(0)
    weights = generator.exponential(size=400) * (generator.random(400) < 0.9)
    stream = BalancedStream(weights, seed=1)
    expected = weights / weights.sum() * 400
    for epoch in range(3):
        counts = np.bincount(stream.take(Place(epoch=epoch), 400)[0], minlength=400)
        assert (np.abs(counts - expected) < 2).all() and not counts[weights == 0].any()
    counts = np.bincount(stream.take(Place(), 40_000)[0], minlength=400)
    assert np.abs(counts - 100 * expected).max() < 20  # independent draws would stray further: sqrt(100 x 6) = 24


def test_a_sample_drawn_twice_makes_other_choices():
    _, positions = BalancedStream([0.0, 1.0], seed=0).take(Place(), 6)  # always sample 1
    assert len(set(sample_seeds(0, positions, ["key"] * 6).tolist())) == 6


def test_no_label_anywhere_is_refused():
    with pytest.raises(UserError, match="no sample has a label"):
        BalancedStream([0.0, 0.0], seed=0)


# -------------------------------------------------------------------- augmentation


def test_uniform_is_uniform_and_a_function_of_seed_and_stream():
    draws = uniform(torch.arange(1000), 7, 100)
    assert draws.min() >= 0 and draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.005) and draws.var() == pytest.approx(1 / 12, abs=0.002)
    assert torch.equal(uniform(torch.tensor([5, 9]), 7, 3)[1], uniform(torch.tensor([9]), 7, 3)[0])
    assert not torch.equal(uniform(torch.tensor([5]), 7, 3), uniform(torch.tensor([5]), 8, 3))


def test_mixing_shares_are_beta_distributed_and_as_frequent_as_asked():
    mix = draw_mix(torch.arange(4000), AugmentConfig(mixup=0.25, mixup_alpha=10))
    mixed = mix.share[mix.share < 1]
    assert len(mixed) / 4000 == pytest.approx(0.25, abs=0.02)
    assert mixed.mean() == pytest.approx(0.5, abs=0.015)
    assert mixed.var() == pytest.approx(1 / (4 * 21), abs=0.002)  # of Beta(10, 10)
    assert mix.partner.min() >= 0 and mix.partner.max() < 4000
    assert mix.partner.double().mean() == pytest.approx(2000, abs=60)


def test_fbanks_are_mixed_as_powers():
    mean, std = -4.0, 2.0
    raw = torch.tensor([[[-6.0, 1.0], [-15.9, 2.0], [0.0, 0.0]], [[-3.0, 0.5], [0.0, 0.0], [0.0, 0.0]]])
    mix = Mix(torch.tensor([0.25, 1.0]), torch.tensor([1, 0]))
    mixed = mix_fbanks((raw - mean) / std, mix, mean=mean, std=std) * std + mean
    both = (0.0625 * raw[0, 0].exp() + 0.5625 * raw[1, 0].exp()).log()
    one = raw[0, 1] + torch.tensor(0.0625).log()  # the other sound has ended: silence, not its padding's 0
    torch.testing.assert_close(mixed[0], torch.stack([both, one, torch.zeros(2)]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], raw[1])


def test_spec_augment_blanks_one_band_and_one_run_of_rows():
    fbank = torch.ones(200, 64, 32)
    blanked = spec_augment(fbank, torch.arange(200), AugmentConfig(spec_frequency=8, spec_time=16), fill=-3.0) == -3.0
    bands, rows = blanked.all(dim=1), blanked.all(dim=2)  # [B, M], [B, T]
    assert torch.equal(blanked, bands[:, None, :] | rows[:, :, None])
    for found, widest in ((bands, 8), (rows, 16)):
        assert Counter(found.sum(dim=1).tolist()).keys() == set(range(widest))  # 0 to widest - 1, all of them
        assert (found.int().diff(dim=1).abs().sum(dim=1) <= 2).all()  # one run


def test_shift_rolls_in_time():
    fbank = torch.arange(10.0).view(1, 10, 1).expand(300, 10, 2)
    rolled = shift(fbank, torch.arange(300), 4)
    by = rolled[:, 0, 0].neg().long() % 10
    assert set(by.tolist()) == {6, 7, 8, 9, 0, 1, 2, 3}  # -4 to 3
    assert all(torch.equal(rolled[i], fbank[i].roll(int(by[i]), 0)) for i in range(300))


def test_augmentation_of_a_sample_depends_on_its_seed_alone():
    config = AugmentConfig(spec_frequency=8, spec_time=16, noise=0.1, shift=5)
    image, fbank, targets = torch.randn(3, 3, 4, 4), torch.randn(3, 20, 12), torch.eye(3)
    seeds = torch.tensor([11, 22, 33])
    together = augment(image, fbank, targets, seeds, config, mean=-4.0, std=4.0)[1]
    alone = augment(image[1:2], fbank[1:2], targets[1:2], seeds[1:2], config, mean=-4.0, std=4.0)[1]
    assert torch.equal(together[1:2], alone)
    untouched = augment(image, fbank, targets, seeds, AugmentConfig(), mean=-4.0, std=4.0)
    assert all(torch.equal(a, b) for a, b in zip(untouched, (image, fbank, targets), strict=True))


def test_smoothing():
    torch.testing.assert_close(
        smooth(torch.tensor([[1.0, 0, 0, 0]]), 0.1), torch.tensor([[0.925, 0.025, 0.025, 0.025]])
    )


# -------------------------------------------------------------------- model, rates, mean of weights


@pytest.mark.parametrize(("inputs", "used"), [("a", {"audio"}), ("v", {"image"}), ("av", {"audio", "image"})])
def test_only_what_is_used_is_built_and_all_of_it_learns(inputs, used):
    classifier = Classifier(TINY, inputs=inputs, classes=3)
    torch.nn.init.normal_(classifier.head.weight)
    assert {name.split("_")[0] for name, _ in classifier.named_children() if "encoder" in name} == used
    classifier(torch.randn(2, 3, 224, 224), torch.randn(2, 1024, 128)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in classifier.parameters())


def test_heads_score_in_float32_under_autocast():
    """bf16 keeps 8 bits: of 309 classes whose scores lie close together many would tie."""
    torch.manual_seed(0)
    audio, video = torch.randn(64, 48), torch.randn(64, 48)
    ours = Classifier(EncoderConfig(dim=48, depth=1, heads=3), inputs="av", classes=309)
    theirs = Head(48, 309)
    nn.init.constant_(ours.head.bias, 8.0)
    nn.init.constant_(theirs.linear.bias, 8.0)
    for score in (lambda a, v: ours.classify(a, v), lambda a, _: theirs(a)):
        expected = score(audio, video)
        with torch.autocast("cpu", torch.bfloat16):
            found = score(audio, video)
        assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_rates_by_layer_head_and_modality():
    options = ["--data=d", "--out=o", "--layer-decay=0.5", "--head-lr=10", "--video-lr=0.5", "--encoder.depth=2"]
    config = parse_finetune([*options, "--encoder.dim=16", "--encoder.heads=2"])
    classifier = Classifier(TINY, inputs="av", classes=3, keep_average=True)
    names = {parameter: name for name, parameter in classifier.named_parameters()}
    groups = parameter_groups(classifier, config)
    found = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(not name.startswith("average.") for name in names.values())
    assert found["head.weight"] == (10, 0.05) and found["head.bias"] == (10, 0)
    assert found["audio_encoder.norm.weight"] == (1, 0)
    assert found["audio_encoder.blocks.1.attn.qkv.weight"] == (0.5, 0.05)
    assert found["audio_encoder.blocks.0.mlp.fc1.bias"] == (0.25, 0)
    assert found["audio_encoder.patch_embed.proj.weight"] == (0.125, 0.05)
    assert found["audio_encoder.cls_token"] == (0.125, 0)
    assert found["image_encoder.blocks.0.mlp.fc1.weight"] == (0.125, 0.05)
    assert groups[0]["lr_scale"] == 1  # the rate that is logged
    assert layer_scale("image_encoder.norm.bias", config) == 1


def averaging(head_values, progress):
    """Fine-tuning whose weights are averaged from a quarter of the run on, after steps with these heads."""
    options = ["--data=d", "--out=o", "--average-from=0.25", "--inputs=a", "--loss=bce"]
    task = Finetuning(replace(parse_finetune(options), encoder=TINY, classes=3), labels_of([2, 0], [], [1], classes=3))
    for value, (done, in_all) in zip(head_values, progress, strict=True):
        torch.nn.init.constant_(task.weights.head.weight, value)
        task.after_step(done, in_all)
    return task.weights


def test_the_mean_of_the_late_weights():
    classifier = averaging([1.0, 5.0, 2.0, 9.0], [(step, 4) for step in (1, 2, 3, 4)])
    torch.testing.assert_close(classifier.average.head.weight, torch.full((3, 16), 16 / 3))
    assert (int(classifier.steps_done), int(classifier.steps_averaged)) == (4, 3)


def test_the_mean_is_one_of_steps_where_the_batch_size_changes_on_the_way():
    """Of 16 steps 6 are done; then each is as large as two, and of 8 there are 3 done."""
    progress = [(step, 16) for step in range(1, 7)] + [(step, 8) for step in range(4, 9)]
    classifier = averaging([100.0] * 4 + [3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0], progress)
    torch.testing.assert_close(classifier.average.head.weight, torch.full((3, 16), 9.0))
    assert (int(classifier.steps_done), int(classifier.steps_averaged)) == (11, 7)


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="torch 2.7 asks a real GPU for random numbers here")
def test_a_step_is_taken_on_the_device_and_never_waits_for_it(monkeypatch):
    """On a pretended GPU. The targets come out of page-locked memory: from there alone a copy goes on by itself."""
    locked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor) or tensor)
    options = ["--data=d", "--out=o", "--augment.mixup=0.5", "--augment.spec-frequency=48", "--augment.spec-time=192"]
    options += ["--augment.noise=0.1", "--augment.shift=16", "--label-smoothing=0.1", "--loss=bce"]
    config = replace(parse_finetune(options), encoder=TINY, classes=4, fbank_mean=-4.0, fbank_std=4.0)
    numbers = SimpleNamespace(numpy=lambda: np.array([2, 0, 1]))  # a tensor would be pretended, too, without values
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            task = Finetuning(config, labels_of([2, 0], [], [1]))
            inputs = Inputs(
                image=torch.empty(3, 1, 3, 224, 224),
                fbank=torch.empty(3, 1024, 128),
                valid_frames=torch.empty(3, dtype=torch.int64),
                seeds=torch.empty(3, dtype=torch.int64),
                numbers=numbers,
            )
        with Waits() as waits:
            loss, _ = task.losses(task.weights, inputs, 0)
    assert loss.device.type == "cuda" and waits.found == [] and len(locked) == 1


# -------------------------------------------------------------------- recipes


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_size_of_the_encoders(preset):
    assert parse_finetune(["--data=d", "--out=o", f"--preset={preset}"]).encoder == PRESETS[preset]().encoder


def test_recipes_have_the_figures_of_their_sources():
    def parsed(*words):
        return parse_finetune(["--data=d", "--out=o", *words])

    plain = parsed()
    assert plain.augment == AugmentConfig() and plain.optimizer.lr == 2e-5 and plain.average_from is None
    for dataset, lr, head, epochs, batch, balanced in (
        ("as20k", 5e-5, 100, 15, 36, False),
        ("as2m", 1e-5, 50, 10, 48, True),
        ("vgg", 1e-4, 10, 10, 48, True),
    ):
        config = parsed("--recipe=strong", f"--dataset-recipe={dataset}")
        assert (config.optimizer.lr, config.head_lr, config.epochs, config.batch_size) == (lr, head, epochs, batch)
        assert config.balanced == balanced and config.label_smoothing == 0.1
        assert (config.augment.mixup, config.augment.spec_frequency, config.augment.spec_time) == (0.5, 48, 192)
        assert config.loss == ("ce" if dataset == "vgg" else "bce")
    mavil = parsed("--recipe=mavil")
    assert (mavil.layer_decay, mavil.video_lr, mavil.optimizer.scale_lr) == (0.75, 0.5, True)
    assert parsed("--recipe=strong", "--augment.mixup=0", "--head-lr=3").augment.mixup == 0  # a flag overrides


# -------------------------------------------------------------------- the command

COMMON = ["--recipe=strong", "--dataset-recipe=vgg", "--steps=8", "--batch-size=4", "--save-every=2", "--log-every=1"]
COMMON += ["--trace-keys", "--layer-decay=0.75"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return with_classes(make_dataset(tmp_path_factory.mktemp("data set") / "shards", (7, 6)))


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "pretrained"
    train(f"--data={dataset}", f"--out={run}", "--steps=1", "--batch-size=4", "--workers=0")
    return run


def finetune_command(*arguments, processes=1):
    return command_line("train.py", "finetune", *arguments, processes=processes)


def finetune(*arguments, processes=1):
    return run_to_end(finetune_command(*arguments, processes=processes))


@pytest.fixture(scope="module")
def finetuned(dataset, pretrained, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    said = finetune(f"--data={dataset}", f"--out={run}", f"--init={pretrained}", *COMMON).stdout
    assert f"audio_encoder: 30 tensors of {checkpoints(pretrained)[-1]}" in said
    assert "head: new, 64 features to 8 classes" in said
    return run


def test_a_run_begins_with_the_encoders_of_init(dataset, pretrained, tmp_path):
    run = tmp_path / "still"
    finetune(f"--data={dataset}", f"--out={run}", f"--init={pretrained}", "--steps=1", "--optimizer.lr=1e-30")
    ours = load_file(checkpoints(run)[-1] / "model.safetensors")
    theirs = load_file(checkpoints(pretrained)[-1] / "model.safetensors")
    assert set(ours) == {name for name in theirs if "_encoder." in name} | {"head.weight", "head.bias"}
    for name in ours.keys() & theirs.keys():
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-29, rtol=0)


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(dataset, pretrained, finetuned, tmp_path):
    """With everything that draws or remembers: balance, mixup, SpecAugment, noise, shift, mean of the weights."""
    run = tmp_path / "killed"
    arguments = [f"--data={dataset}", f"--out={run}", f"--init={pretrained}", *COMMON]
    process = subprocess.Popen(finetune_command(*arguments), env=environment(), start_new_session=True)
    wait_for(run / "checkpoints" / "step-00000006", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "resuming" in finetune(*arguments, "--workers=0").stdout
    assert keys(run) == keys(finetuned)
    assert losses(run) == losses(finetuned)
    assert_same_weights(run, finetuned)
    weights = load_file(checkpoints(run)[-1] / "model.safetensors")
    assert (int(weights["steps_done"]), int(weights["steps_averaged"])) == (8, 6)  # from 0.3 x 8 on
    assert not torch.equal(weights["head.weight"], weights["average.head.weight"])


def test_two_processes_take_the_same_samples(dataset, pretrained, finetuned, tmp_path):
    run = tmp_path / "two"
    arguments = [f"--data={dataset}", f"--init={pretrained}", *COMMON, "--augment.mixup=0", "--steps=4"]
    finetune(*arguments, f"--out={run}", processes=2)
    finetune(*arguments, f"--out={tmp_path / 'one'}")
    assert keys(run, world=2) == keys(tmp_path / "one") == keys(finetuned)[:4]
    one, two = losses(tmp_path / "one"), losses(run)
    assert one.keys() == two.keys() and all(one[step] == pytest.approx(two[step], rel=2e-4) for step in one)


def test_evaluation_takes_the_mean_of_the_weights(dataset, finetuned):
    loaded = load_classifier(finetuned, torch.device("cpu"))
    weights = load_file(checkpoints(finetuned)[-1] / "model.safetensors")
    assert loaded.averaged == 6
    assert torch.equal(loaded.classifier.head.weight, weights["average.head.weight"])
    evaluate(["classification", f"--data={dataset}", f"--checkpoint={finetuned}", "--workers=0"])
    result = json.loads((finetuned / "evaluation" / "classification-shards.json").read_text())
    assert result["pool"] == 13 and result["step"] == 8
    assert list(result["metrics"]) == ["audio + image"]
    assert result["paper"] == {"CrossMAE, VGGSound, A-V": {"top-1": 67.0}}
    assert "mean of the weights after 6 steps" in result["protocol"]


def test_it_learns_what_can_be_learned(tmp_path):
    """The label is the red of the frame: fine-tuning from scratch on frames finds it, on sets of other samples."""
    data, other = (with_classes(make_dataset(tmp_path / name, (32, 32), seed=s)) for name, s in (("a", 0), ("b", 1)))
    run = tmp_path / "run"
    size = ["--encoder.dim=32", "--encoder.depth=1", "--encoder.heads=2", "--inputs=v", "--task=multilabel"]
    schedule = ["--steps=60", "--batch-size=16", "--optimizer.lr=3e-3", "--head-lr=5", "--log-every=20"]
    finetune(f"--data={data}", f"--out={run}", *size, *schedule)
    evaluate(["classification", f"--data={other}", f"--checkpoint={run}", "--workers=0"])
    result = json.loads((run / "evaluation" / "classification-b.json").read_text())
    assert result["metrics"]["image"]["mAP"] > 2 * result["baselines"]["class prior"]["mAP"]
    assert result["metrics"]["image"]["AUC"] > 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init=nowhere"], "nowhere is no checkpoint and no run folder"),
        (["--recipe=weak"], "--recipe"),
        (["--encoder.dim=48"], "holds another model: model.encoder.dim is 32, asked for 48"),
        (["--inputs=a"], "holds another finetune: finetune.inputs is av, asked for a"),
        (["--augment.mixup=0.4"], "finetune.augment.mixup is 0.5, asked for 0.4"),
        (["--no-balanced"], "was trained in another order: order.balanced is True, asked for False"),
        (["--augment.mixup=2"], "--augment.mixup is a share, 0 to 1, got 2"),
        (["--shuffle=block"], "--balanced draws from all samples"),
        (["--task=multilabel"], "--loss ce needs"),
        (["--average-from=1"], "--average-from is a share of the steps"),
    ],
)
def test_a_mistake_gets_one_line(dataset, pretrained, finetuned, arguments, message, capsys):
    common = [f"--data={dataset}", f"--out={finetuned}", f"--init={pretrained}", *COMMON]
    with pytest.raises(SystemExit) as ended:
        main(["finetune", *common, *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("train.py: error: ") and said.count("\n") == 1
    assert message in said


def test_encoders_of_another_size_are_refused_in_one_line(dataset, pretrained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["finetune", f"--data={dataset}", f"--out={tmp_path}", f"--init={pretrained}", "--encoder.dim=64"])
    said = capsys.readouterr().err
    assert "have dim 32, this run's have dim 64: give --encoder.dim 32" in said and said.count("\n") == 1


def test_a_pretrained_model_is_no_classifier(dataset, pretrained, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate(["classification", f"--data={dataset}", f"--checkpoint={pretrained}"])
    assert ended.value.code == 2 and "was not fine-tuned" in capsys.readouterr().err


def test_no_place_for_the_result_is_said_before_any_work(dataset, finetuned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluation.classification.classify", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    run = shutil.copytree(finetuned, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (run / "evaluation").write_text("")
    for more, expected in (
        ([], f"cannot make the folder {run.resolve() / 'evaluation'} (File exists): give --out FILE"),
        ([f"--out={tmp_path / 'r.json'}"], f"the folder {tmp_path} cannot be written to: give --out FILE"),
        (["--cache-features=auto"], "'auto' for argument '--cache-features'. Expected one of ('none',)"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate(["classification", f"--data={dataset}", f"--checkpoint={run}", "--workers=0", *more])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and expected in said and said.count("\n") == 1, said


def test_a_classifier_is_no_pretrained_model(dataset, finetuned, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate(["retrieval", f"--data={dataset}", f"--checkpoint={finetuned}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "is a fine-tuned classifier" in said and said.count("\n") == 1
