"""from_pretrained, save_pretrained, push_to_hub. Nothing here reaches the Hub: its calls are replaced."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file

import training.pretrained
from shards_spec.errors import UserError
from tests.datasets import make_dataset
from tests.runs import SMALL
from training.checkpoint import checkpoints
from training.pretrained import CrossMAE
from training.stream.loader import Normalise
from training.train import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of train.py with a checkpoint after each of its two steps."""
    folder = tmp_path_factory.mktemp("run")
    dataset = make_dataset(folder / "data", (4, 4))
    main([*SMALL, f"--data={dataset}", f"--out={folder / 'run'}", "--batch-size=4", "--steps=2", "--save-every=1"])
    return folder / "run"


def assert_same_weights(state, folder):
    file = load_file(folder / "model.safetensors")
    assert state.keys() == file.keys() and all(torch.equal(state[name], file[name]) for name in state)


def test_a_checkpoint_and_a_run_folder_are_loaded_whole(run):
    first, last = checkpoints(run)
    assert_same_weights(CrossMAE.from_pretrained(str(first)).state_dict(), first)
    model = CrossMAE.from_pretrained(run)
    assert_same_weights(model.state_dict(), last)
    assert not model.training
    assert (model.fbank_mean, model.fbank_std) == (-4.0, 4.0)  # the dataset's


@torch.no_grad()
def test_saved_and_loaded_again_it_is_the_same_to_the_bit(run, tmp_path):
    model = CrossMAE.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    again = CrossMAE.from_pretrained(tmp_path / "saved")
    assert_same_weights(again.state_dict(), checkpoints(run)[-1])
    assert again.config == model.config

    frames = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    fbanks = torch.randn(2, 1024, 128).half()
    image, fbank = again.normalise(frames, fbanks)
    expected = Normalise(-4.0, 4.0)(frames, fbanks)
    assert torch.equal(image, expected[0]) and torch.equal(fbank, (fbanks.float() + 4) / 4)
    assert torch.equal(again.encode_image(image).tokens, model.encode_image(image).tokens)
    assert torch.equal(again.encode_audio(fbank).pooled, model.encode_audio(fbank).pooled)


def test_what_is_saved_tells_of_the_training_and_not_of_the_machine(run, tmp_path):
    CrossMAE.from_pretrained(run).save_pretrained(tmp_path)
    said = (tmp_path / "config.json").read_text()
    values, whole = json.loads(said), json.loads((run / "config.json").read_text())
    assert values == {name: whole[name] for name in values}
    assert {"model", "fbank_mean", "fbank_std", "batch_size", "optimizer"} <= values.keys()
    assert str(run.parent) not in said and str(run.parent) in json.dumps(whole)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: crossmae" in card and "from_pretrained" in card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hub: HfApi writes to it, hf_hub_download reads from it."""
    folder = tmp_path / "hub"

    def upload(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, folder / repo_id)
        return f"https://huggingface.co/{repo_id}"

    def download(repo_id, filename, **_):
        validate_repo_id(repo_id)
        file = folder / repo_id / filename
        if not file.is_file():
            raise LocalEntryNotFoundError(f"no {filename}\nand more lines")
        return str(file)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(training.pretrained, "hf_hub_download", download)
    return folder


def test_pushed_to_the_hub_and_loaded_from_there(run, hub):
    model = CrossMAE.from_pretrained(run)
    model.push_to_hub("me/crossmae")
    assert {path.name for path in (hub / "me" / "crossmae").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert_same_weights(CrossMAE.from_pretrained("me/crossmae").state_dict(), checkpoints(run)[-1])


def test_what_is_not_there_is_said_in_one_line(hub, tmp_path):
    with pytest.raises(
        UserError, match=r"^me/none is no folder here, and the Hugging Face Hub did not give it: no config"
    ):
        CrossMAE.from_pretrained("me/none")
    with pytest.raises(UserError, match=r"^runs/a/b is no folder, and no name on the Hugging Face Hub either"):
        CrossMAE.from_pretrained(Path("runs/a/b"))
    with pytest.raises(UserError, match="is no checkpoint and no run folder with checkpoints"):
        CrossMAE.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="not map_location"):
        CrossMAE.from_pretrained(tmp_path, map_location="cuda")


def changed(run, folder, change):
    shutil.copytree(checkpoints(run)[-1], folder)
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("fbank_std"), "the config.json of a CrossMAE has 'fbank_std', which this one lacks"),
        (
            lambda values: values["model"].update(size=3),
            "not the config.json of a CrossMAE: unknown in the model's config",
        ),
        (
            lambda values: values["model"]["encoder"].update(depth=3),
            "holds another model than its config.json describes",
        ),
        (
            lambda values: values["model"]["encoder"].update(dim=65_536),
            r"holds another model than its config.json describes: \S+ is \[1, 1, 32\], expected \[1, 1, 65536\]",
        ),
        (
            lambda values: values["model"]["encoder"].update(dim=4 * 10**17),
            r"not the config.json of a CrossMAE: encoder.dim is 400000000000000000: allowed are multiples of 4",
        ),
        (
            lambda values: values["model"]["pixel"].update(depth=10**9),
            r"not the config.json of a CrossMAE: pixel.depth is 1000000000: allowed are 1 to 1000",
        ),
    ],
)
def test_a_damaged_config_is_said_in_one_line(run, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        CrossMAE.from_pretrained(changed(run, tmp_path / "damaged", change))


def test_missing_weights_are_not_passed_over(run, tmp_path):
    folder = changed(run, tmp_path / "less", lambda values: None)
    state = load_file(folder / "model.safetensors")
    del state["image_encoder.norm.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"image_encoder\.norm\.bias"):
        CrossMAE.from_pretrained(folder)
