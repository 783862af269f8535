"""Each file of a checkpoint cut, zeroed, of other values: one line of UserError, and nothing that only fails later."""

import io
import json

import pytest
import torch
from safetensors.torch import load, save

from shards_spec.errors import UserError
from training.checkpoint import (
    TO_RESUME,
    TrainState,
    load_weights,
    read_config,
    read_json,
    read_state,
    save_checkpoint,
)
from training.resume import resume_optimizer

SAMPLES = 20
STEP = 12


def fresh():
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, optimizer):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


@pytest.fixture
def checkpoint(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer)
    state = TrainState(step=STEP, fingerprint="f", seed=0, epoch=2, cursor=8, next_shard="s", next_offset=0)
    saved = {"optimizer": optimizer.state_dict()}
    return save_checkpoint(tmp_path, state, model=model, optimizer=saved, config={"steps": 20}, keep=1)


def resume(checkpoint):
    """All that resuming reads; and a step, which must not be the first to notice."""
    model, optimizer = fresh()
    read_json(checkpoint / "config.json")
    state = read_state(checkpoint, SAMPLES)
    load_weights(checkpoint, model)
    resume_optimizer(checkpoint, optimizer, lambda options: torch.optim.AdamW(model.parameters()))
    train(model, optimizer)
    return state


def refused(checkpoint, name):
    """What is said of a file that is damaged."""
    with pytest.raises(UserError) as raised:
        resume(checkpoint)
    said = str(raised.value)
    assert said.startswith(str(checkpoint / name)) and "another" in said and len(said) < 400, said
    return said


def test_a_whole_one_is_taken(checkpoint):
    assert resume(checkpoint).step == STEP


DAMAGE = {
    "empty": lambda whole: b"",
    "cut early": lambda whole: whole[: len(whole) // 50],
    "cut in the middle": lambda whole: whole[: len(whole) // 2],
    "cut late": lambda whole: whole[:-2],
    "zeroed": lambda whole: bytes(len(whole)),
    "beginning zeroed": lambda whole: bytes(64) + whole[64:],
    "end zeroed": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    "a web page": lambda whole: b"<html>not found</html>\n",
    "a list": lambda whole: b"[1, 2]",
    "nested": lambda whole: b"[" * 100_000,
    "no UTF-8": lambda whole: b"\xff\xfe{}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", TO_RESUME)
def test_bytes_that_are_damaged(checkpoint, name, damage):
    path = checkpoint / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refused(checkpoint, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("step", "epoch", "cursor") for value in (-1, 2.0, True, None, "5", [], 10**30)),
        *(("next_offset", value) for value in (-2, None)),
        *(("fingerprint", value) for value in (None, 5)),
        ("seed", "0"),
        ("step", STEP + 1),  # not what the folder says
        ("cursor", SAMPLES),  # none of this epoch
        ("epoch", 0),  # 8 samples, for 12 steps
        ("unknown", 1),
    ],
)
def test_a_state_that_no_run_writes(checkpoint, field, value):
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert field in refused(checkpoint, "state.json") or (field, value) == ("epoch", 0)


def test_a_state_that_lacks_something(checkpoint):
    path = checkpoint / "state.json"
    for field in ("step", "seed", "next_shard"):
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != field}))
        assert field in refused(checkpoint, "state.json")
        path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w | {"weight": w["weight"].to(torch.int8)}, "weight is of type int8, expected float32"),
        (lambda w: w | {"bias": w["bias"] > 0}, "bias is of type bool, expected float32"),
        (lambda w: w | {"bias": w["bias"].to(torch.complex64)}, "bias is of type complex64, expected float32"),
        (lambda w: w | {"weight": w["weight"][:1].clone()}, "holds another model"),
        (lambda w: w | {"more": torch.zeros(1)}, "holds another model"),
        (lambda w: {}, "holds another model"),
    ],
)
def test_weights_of_other_types_and_shapes(checkpoint, change, said):
    path = checkpoint / "model.safetensors"
    path.write_bytes(save(change(load(path.read_bytes()))))
    assert said in refused(checkpoint, path.name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", None),
        ("batch_size", 0),
        ("steps", "9"),
        ("seed", []),
        ("fbank_mean", "0"),
        ("fbank_std", float("nan")),
        ("fbank_std", -1),
    ],
)
def test_a_configuration_that_no_run_writes(checkpoint, name, value):
    path = checkpoint / "config.json"
    with pytest.raises(UserError, match=r"config\.json lacks data: use another"):
        read_config(checkpoint, needed=("data",))
    path.write_text(json.dumps({name: value}))
    with pytest.raises(UserError, match=rf"config\.json is damaged \({name} is "):
        read_config(checkpoint)


def test_weights_some_of_whose_bytes_are_zero(checkpoint):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    assert "its bytes are not those that were written" in refused(checkpoint, path.name)
    path.write_bytes(save(load(whole[:-4] + bytes(4))))  # as an older version wrote it, without a checksum
    resume(checkpoint)


def test_floats_of_another_width_are_weights_too(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(save({name: value.half() for name, value in load(path.read_bytes()).items()}))
    resume(checkpoint)


def test_a_file_of_an_older_torch_is_read_and_one_that_broke_off_is_not(checkpoint):
    path = checkpoint / "optimizer.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    resume(checkpoint)
    whole = path.read_bytes()
    for share in range(1, 20):
        path.write_bytes(whole[: len(whole) * share // 20])
        said = refused(checkpoint, path.name)
        assert "is no whole PyTorch file (" in said or "or the file is cut there" in said  # in the middle of a name


STRANGE = [None, 5, "x", [], {}, torch.zeros(2)]


@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_an_optimizer_of_other_parts(checkpoint, value):
    path = checkpoint / "optimizer.pt"
    whole = path.read_bytes()

    def with_part(*place):
        """The file with `value` at a place in it."""
        content = torch.load(io.BytesIO(whole), weights_only=True)
        part = content
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        torch.save(content, path)
        return refused(checkpoint, path.name)

    torch.save(value, path)
    refused(checkpoint, path.name)
    for place in (("optimizer",), ("optimizer", "state"), ("optimizer", "param_groups")):
        with_part(*place)
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        with_part("optimizer", "state", 0, moment)
    with_part("optimizer", "state", 0)
    with_part("optimizer", "param_groups", 0)


def test_moments_of_integers_and_of_other_shapes(checkpoint):
    path = checkpoint / "optimizer.pt"
    whole = torch.load(path, weights_only=True)
    for strange in (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3)):
        whole["optimizer"]["state"][0]["exp_avg"] = strange
        torch.save(whole, path)
        assert "exp_avg of its parameter 0" in refused(checkpoint, path.name)
