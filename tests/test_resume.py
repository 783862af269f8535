"""A run that goes on with other options: what takes effect and is told, what is refused, and the rate."""

import json
import shutil

import pytest
import torch

from shards_spec.messages import speaking_as
from tests.datasets import make_dataset
from tests.runs import SMALL, mistake
from tools.where import describe
from training.checkpoint import checkpoints, load_optimizer
from training.loop import Window
from training.optimizer import learning_rate
from training.processes import StopRequest, signals_given_back, start_processes
from training.recipes import parse_arguments
from training.train import make_loop

BEGUN = ["--batch-size=2", "--epochs=4", "--fbank-mean=-3.5", "--optimizer.lr=1e-3", "--optimizer.warmup=0.2"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (7, 6))  # 4 epochs are 52 samples


def loop_of(dataset, out, *told):
    config = parse_arguments([*SMALL, f"--data={dataset}", f"--out={out}", "--workers=0", *told])
    with speaking_as("train.py"):
        return make_loop(config, start_processes(config))


def advance(loop, steps):
    with signals_given_back():
        batches = loop._batches(StopRequest())
    for _ in range(steps):
        loop._one_step(batches, Window(first_step=loop.step))


@pytest.fixture(scope="module")
def begun(dataset, tmp_path_factory):
    """A run that was stopped after 10 of 26 steps."""
    run = tmp_path_factory.mktemp("run") / "begun"
    loop = loop_of(dataset, run, *BEGUN)
    advance(loop, 10)
    loop._save(is_last=True)
    return run


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def rate_of(loop):
    return learning_rate(*loop._progress(), loop.config.optimizer, loop.config.batch_size)


def test_the_same_command_has_nothing_to_tell(dataset, run, capsys):
    (checkpoint,) = checkpoints(run)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["optimizer"]["decay_on"]  # an older version's
    (checkpoint / "config.json").write_text(json.dumps(config))
    loop_of(dataset, run, *BEGUN)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(f"train.py: resuming {checkpoint} at step 10 of 26")


def test_options_that_may_change_take_effect_and_are_told(dataset, run, capsys):
    told = [
        "--optimizer.weight-decay=0.5",
        "--optimizer.betas",
        "0.5",
        "0.6",
        "--optimizer.clip-grad=1.0",
        "--epochs=8",
    ]
    loop = loop_of(dataset, run, *BEGUN, *told, "--optimizer.lr=2e-3", "--save-every=7", "--device-batch-size=1")
    said = capsys.readouterr().out
    assert said.startswith("train.py: changed since step-00000010: ") and said.count("\n") == 3  # and that of pieces
    for change in (
        *("--epochs 4.0 -> 8.0", "--device-batch-size None -> 1", "--optimizer.lr 0.001 -> 0.002"),
        *("--optimizer.weight-decay 0.05 -> 0.5", "--optimizer.betas (0.9, 0.95) -> (0.5, 0.6)"),
        "--optimizer.clip-grad None -> 1.0",
    ):
        assert change in said
    assert "save-every" not in said
    groups = loop.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [group["betas"] for group in groups] == [(0.5, 0.6)] * 2
    assert loop.steps == 52
    saved = load_optimizer(checkpoints(run)[-1])["optimizer"]["state"]
    for number, parameter in enumerate(p for group in groups for p in group["params"]):
        assert torch.equal(loop.optimizer.state[parameter]["exp_avg"], saved[number]["exp_avg"])
    assert json.loads((run / "config.json").read_text())["optimizer"]["weight_decay"] == 0.5


def test_a_decay_that_is_changed_is_the_decay_that_is_taken(dataset, run):
    """Two runs that go on with nothing but the decay between them."""
    loop = loop_of(dataset, run, *BEGUN, "--optimizer.weight-decay=0.5", "--optimizer.lr=1e-2")
    model, rate = loop.task.weights, rate_of(loop)
    weight = model.image_encoder.patch_embed.proj.weight
    before = weight.detach().clone()
    without = loop_of(dataset, run, *BEGUN, "--optimizer.weight-decay=0", "--optimizer.lr=1e-2")
    other = without.task.weights.image_encoder.patch_embed.proj.weight
    assert torch.equal(other, before)
    for one in (loop, without):
        advance(one, 1)
    torch.testing.assert_close(other - weight, 0.5 * rate * before, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.kind=adam_l2"], "was trained with --optimizer.kind adamw, not adam_l2: say the former, or"),
        (["--fbank-mean=-4"], "was trained with --fbank-mean -3.5, not -4.0: say the former, or begin a new run"),
        (["--fbank-std=9"], "was trained with --fbank-std 4.0, not 9.0"),
    ],
)
def test_what_may_not_change_is_refused(dataset, run, arguments, message, capsys):
    assert message in mistake(capsys, *SMALL, f"--data={dataset}", f"--out={run}", *BEGUN, *arguments)


@pytest.mark.parametrize(
    "damage", [{"lr": "2e-5"}, {"betas": 3}, {"betas": ["a", "b"]}, {"betas": {}}, {"betas": [0.9]}, {"clip_grad": -1}]
)
def test_damaged_options_of_the_optimizer_are_told_with_their_file(damage, dataset, run, capsys):
    (checkpoint,) = checkpoints(run)
    config = json.loads((checkpoint / "config.json").read_text())
    config["optimizer"] |= damage
    (checkpoint / "config.json").write_text(json.dumps(config))
    said = mistake(capsys, *SMALL, f"--data={dataset}", f"--out={run}", *BEGUN)
    assert f"error: {checkpoint / 'config.json'} is damaged (" in said and "resume from another checkpoint" in said


def test_the_scale_of_fbanks_stays_where_nothing_is_said_of_it(dataset, run):
    loop = loop_of(dataset, run, *(word for word in BEGUN if "fbank" not in word))
    assert (loop.config.fbank_mean, loop.config.fbank_std) == (-3.5, 4.0)
    assert loop.normalise.fbank_mean.item() == -3.5


def test_what_a_run_began_with_is_not_looked_at_again(dataset, run, capsys):
    loop_of(dataset, run, *BEGUN, "--init=elsewhere")
    assert "train.py: --init elsewhere is not looked at: this run began with none" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["init"] is None


def test_the_moments_of_another_model_are_refused_in_one_line(dataset, run, capsys):
    path = checkpoints(run)[-1] / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    saved["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(saved, path)
    said = mistake(capsys, *SMALL, f"--data={dataset}", f"--out={run}", *BEGUN)
    assert f"{path}: it is the state of " in said and "resume from another checkpoint" in said


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_after_another_batch_size_the_rate_goes_on_where_it_was(batch_size, dataset, run):
    """Each sample counts the same: 20 of 52 were done, whatever the steps are from here on."""
    before = loop_of(dataset, run, *BEGUN)
    after = loop_of(dataset, run, *BEGUN, f"--batch-size={batch_size}")
    assert after.steps == 10 + -(-32 // batch_size)
    assert rate_of(after) == pytest.approx(rate_of(before), rel=0.1)  # the warm-up ends with a step
    done, in_all = after._progress()
    assert done * batch_size == 20 and 52 <= in_all * batch_size < 52 + batch_size
    after.step, after.place = after.step + 1, after.place.advance(batch_size, 13)
    assert after._progress() == pytest.approx((done + 1, in_all))


def test_with_a_number_of_steps_the_rate_goes_by_steps(dataset, run, capsys):
    told = [*BEGUN, "--steps=26"]
    before = loop_of(dataset, run, *told)
    capsys.readouterr()
    after = loop_of(dataset, run, *told, "--batch-size=4")
    assert (after.steps, rate_of(after)) == (26, rate_of(before))
    assert "the run still ends after step 26, and the rate goes by steps" in capsys.readouterr().out
    advance(after, 1)
    after._save(is_last=True)
    assert "samples left  60 of 84" in describe(run)  # 15 steps of 4, after 10 of 2 and one of 4


def test_a_peak_that_grows_with_the_batch_is_told(dataset, run, capsys):
    loop_of(dataset, run, *BEGUN, "--optimizer.scale-lr", "--batch-size=4")
    assert "the peak rate goes with the batch size: 7.8125e-06 -> 1.5625e-05" in capsys.readouterr().out


def test_a_run_that_was_not_resumed_counts_steps_and_samples_alike(dataset, begun, tmp_path):
    loop = loop_of(dataset, tmp_path / "new", *BEGUN)
    for step in range(loop.steps):
        assert loop._progress() == (step, 26)
        loop.step, loop.place = loop.step + 1, loop.place.advance(2, 13)
