"""Features of a dataset: what they are, that they are computed once, and that nothing changes them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shards_spec.errors import UserError
from shards_spec.messages import speaking_as
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset
from tests.refusals import longest_file
from tests.runs import command_line, run_to_end
from tests.whole_samples import whole_dataset
from training.checkpoint import checkpoints, load_weights
from training.evaluate import main
from training.evaluation import row_cache
from training.evaluation.features import LoadedModel, dense_features, embed_dataset, load_model
from training.evaluation.metadata import label_ids, read_metadata
from training.evaluation.results import result_path, run_folder
from training.launcher import Launch
from training.methods.crossmae.config import config_from_dict
from training.methods.crossmae.model import CrossMAE
from training.stream.index import open_index
from training.stream.loader import load
from training.stream.shares import all_shares

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(str(make_dataset(tmp_path_factory.mktemp("data") / "d", (5, 4, 3))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def loaded(run):
    return load_model(run, CPU)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(row_cache, "PIECE", 4)  # twelve samples in three pieces


@pytest.fixture
def encoded(monkeypatch):
    """Counts the samples that are encoded."""
    counts = []
    original = LoadedModel.encode_audio

    def counting(self, fbank):
        counts.append(len(fbank))
        return original(self, fbank)

    monkeypatch.setattr(LoadedModel, "encode_audio", counting)
    return counts


def embed(index, loaded, cache=None, **options):
    return embed_dataset(index, loaded, cache=cache, workers=0, **({"batch_size": 4} | options))


def test_features_are_those_of_the_model_on_normalised_inputs(index, loaded, run):
    """By the model alone: none of the evaluation's code but its result."""
    (checkpoint,) = checkpoints(run)
    model = CrossMAE(config_from_dict(json.loads((checkpoint / "config.json").read_text())["model"]))
    load_weights(checkpoint, model)
    (batch,) = load(index, all_shares(12, 12), seed=0, batch_size=12, workers=0)
    pixels = (batch.image[:, 0].float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        image = model.encode_image(pixels.permute(0, 3, 1, 2))
        audio = model.encode_audio((batch.fbank.float() + 4) / 4)
    ours = embed(index, loaded)
    assert ours.keys == batch.keys and ours.numbers.tolist() == list(range(12))
    torch.testing.assert_close(ours.image, image.tokens.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.audio, audio.tokens.mean(dim=1), rtol=1e-4, atol=1e-5)
    cls = embed(index, loaded, pool="cls")
    torch.testing.assert_close(cls.audio, audio.cls, rtol=1e-4, atol=1e-5)
    dense = list(dense_features(index, loaded, np.array([3, 8, 11]), batch_size=2, workers=0))
    assert [batch.numbers.tolist() for batch in dense] == [[3, 8], [11]]
    tokens = torch.cat([batch.image.tokens for batch in dense])
    torch.testing.assert_close(tokens, image.tokens[[3, 8, 11]], rtol=1e-4, atol=1e-5)
    assert all(b.audio is None for b in dense_features(index, loaded, batch_size=12, workers=0, with_audio=False))


def test_a_model_that_leaves_out_padding_is_told_where_it_begins(loaded):
    """Read off the fbanks as stored: 998 rows, and 498."""
    config = replace(loaded.model.config, encoder=replace(loaded.model.config.encoder, padding="left_out"))
    model = CrossMAE(config).eval()
    model.load_state_dict(loaded.model.state_dict())
    stored = torch.randn(2, 1024, 128, generator=torch.Generator().manual_seed(0)).half()
    stored[0, 998:], stored[1, 498:] = 0, 0
    found = replace(loaded, model=model).encode_audio(stored)
    with torch.no_grad():
        expected = model.encode_audio((stored.float() + 4) / 4, torch.tensor([998, 498]))
    torch.testing.assert_close(found.pooled, expected.pooled)
    assert not torch.allclose(found.pooled, loaded.encode_audio(stored).pooled, atol=1e-3)


def test_the_second_time_nothing_is_encoded(index, loaded, tmp_path, small_pieces, encoded):
    first = embed(index, loaded, tmp_path)
    assert sum(encoded) == 12
    again = embed(index, loaded, tmp_path, batch_size=1)
    assert sum(encoded) == 12 and torch.equal(first.audio, again.audio) and torch.equal(first.image, again.image)
    some = embed(index, loaded, tmp_path, numbers=np.array([9, 2]))  # in another order
    assert sum(encoded) == 12 and torch.equal(some.image, first.image[[9, 2]]) and some.keys[0] == first.keys[9]
    (about,) = tmp_path.glob("*/about.json")
    assert json.loads(about.read_text())["dataset"] == index.fingerprint


def test_a_subset_is_completed(index, loaded, tmp_path, small_pieces, encoded):
    embed(index, loaded, tmp_path, numbers=np.array([1, 2, 7]))
    assert sum(encoded) == 3
    everything = embed(index, loaded, tmp_path)
    assert sum(encoded) == 12
    torch.testing.assert_close(everything.audio, embed(index, loaded).audio, rtol=1e-5, atol=1e-6)


def test_a_killed_extraction_goes_on(index, loaded, tmp_path, small_pieces, encoded, monkeypatch):
    whole = embed(index, loaded)
    encoded.clear()
    original = LoadedModel.encode_image

    def killed(self, frames):
        if len(encoded) == 3:  # in the third piece, behind its sound
            raise KeyboardInterrupt
        return original(self, frames)

    monkeypatch.setattr(LoadedModel, "encode_image", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(index, loaded, tmp_path)
    monkeypatch.setattr(LoadedModel, "encode_image", original)
    encoded.clear()
    resumed = embed(index, loaded, tmp_path)
    assert encoded == [4]
    assert torch.equal(resumed.audio, whole.audio) and torch.equal(resumed.image, whole.image)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_piece_is_computed_again(index, loaded, tmp_path, small_pieces, encoded, capsys, damage):
    whole = embed(index, loaded, tmp_path)
    piece = sorted(tmp_path.glob("*/piece-*"))[1]
    content = bytearray(piece.read_bytes())
    content[-3] ^= 1
    piece.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])
    encoded.clear()
    again = embed(index, loaded, tmp_path)
    assert encoded == [4] and torch.equal(again.audio, whole.audio)
    said = capsys.readouterr().err
    assert f"warning: {piece} is " in said and "computed again" in said
    embed(index, loaded, tmp_path)
    assert encoded == [4] and "warning" not in capsys.readouterr().err


def test_the_cache_knows_what_it_depends_on(index, run, loaded, tmp_path, encoded):
    other_run = make_checkpoint(tmp_path / "other", weights_seed=2)
    other_data = open_index(str(make_dataset(tmp_path / "d2", (5, 4, 3), seed=1)))
    cache = tmp_path / "cache"
    for i, (data, model, pool) in enumerate([
        (index, loaded, "mean"), (index, loaded, "cls"), (other_data, loaded, "mean"),
        (index, load_model(other_run, CPU), "mean"), (index, load_model(run, CPU, untrained=True), "mean"),
        (index, load_model(run, CPU, precision="bf16"), "mean"),
    ]):  # fmt: skip
        embed(data, model, cache, pool=pool)
        assert sum(encoded) == 12 * (i + 1) and len(list(cache.iterdir())) == i + 1


def test_the_normalisation_is_part_of_the_fingerprint(run, loaded, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = checkpoints(copy)[0] / "config.json"
    assert load_model(copy, CPU).fingerprint == loaded.fingerprint
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fbank_mean": -5.0}))
    assert load_model(copy, CPU).fingerprint != loaded.fingerprint


def test_untrained_are_the_weights_that_the_seed_draws(run, loaded):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    untrained = load_model(run, CPU, untrained=True)
    assert torch.equal(before, torch.get_rng_state())  # nobody else's numbers change
    torch.manual_seed(0)
    drawn = CrossMAE(untrained.model.config).state_dict()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in untrained.model.state_dict().items())
    assert not torch.equal(drawn["image_encoder.cls_token"], loaded.model.state_dict()["image_encoder.cls_token"])
    assert untrained.fingerprint != loaded.fingerprint == load_model(run, CPU).fingerprint
    assert (untrained.step, untrained.is_trained, loaded.step) == (0, False, 7)


def test_features_that_are_not_finite_are_refused(index, loaded, tmp_path):
    broken = load_model(loaded.checkpoint, CPU)
    with torch.no_grad():
        broken.model.audio_encoder.cls_token.fill_(float("nan"))
    with pytest.raises(UserError, match="audio features of sample clip0000000_0 are not finite"):
        embed(index, broken, tmp_path)
    assert not list(tmp_path.glob("*/piece-*"))


def test_two_processes_find_what_one_finds(run, tmp_path):
    """In processes of their own, 132 samples in two pieces; equal to the bit."""
    dataset = make_dataset(tmp_path / "d", (70, 62))
    results, pieces = [], []
    for world in (1, 2):
        out, cache = tmp_path / f"{world}.json", tmp_path / f"cache{world}"
        told = [f"--data={dataset}", f"--checkpoint={run}", f"--out={out}", f"--cache-features={cache}", "--workers=0"]
        done = run_to_end(command_line("evaluate.py", "retrieval", *told, processes=world))
        assert done.stdout.count("retrieval: 132 samples") == 1  # one of them speaks
        share = 132 if world == 1 else 128  # the first process takes the first piece, the other one the second
        assert f"encode: {share} of {share} samples" in done.stderr
        results.append(json.loads(out.read_text()))
        pieces.append([load_file(path) for path in sorted(cache.glob("*/piece-*"))])
    assert results[0] == results[1]
    assert len(pieces[0]) == len(pieces[1]) == 2
    for one, two in zip(*pieces, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in ("numbers", "audio", "image"))


def test_two_runs_fill_one_cache(index, loaded, tmp_path, small_pieces):
    """What another run wrote into a piece meanwhile stays."""
    halves = [np.arange(0, 12, 2), np.arange(1, 12, 2)]
    folder = None
    for numbers in halves:
        embed(index, loaded, tmp_path, numbers=numbers)
        (folder,) = tmp_path.iterdir()
    assert all(len(load_file(path)["numbers"]) == 4 for path in folder.glob("piece-*"))
    assert not list(folder.glob("*.tmp"))


def test_json_members_and_labels(tmp_path):
    index = open_index(str(whole_dataset(tmp_path)))
    numbers = np.array([5, 0, 6])
    found = list(read_metadata(index, numbers))
    assert [m["key"] for m in found] == [index.key(int(n)) for n in numbers]
    assert [m["label_ids"] for m in found] == label_ids(index, numbers)


def test_where_results_go(run, index, tmp_path):
    (checkpoint,) = checkpoints(run)
    assert run_folder(checkpoint) == run.resolve() == result_path(checkpoint, "x", index).parent.parent
    assert result_path(checkpoint, "retrieval", index).name == "retrieval-d.json"
    lone = tmp_path / "lone"
    assert run_folder(lone) == lone.resolve()


def test_progress_is_readable_in_a_file(index, loaded, capsys):
    with speaking_as("evaluate.py"):
        embed(index, loaded)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("evaluate.py: encode: 12 of 12 samples, ") and "\r" not in said[-1]


def test_no_cache_is_no_folder(run, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", "--out=r.json", "--workers=0"]
    main([*common, "--cache-features=none"])
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    main([*common, "--cache-features=auto"])
    assert (run / "evaluation" / "cache").is_dir()


def test_mistakes_are_answered_in_one_line(run, index, tmp_path, capsys):
    data = f"--data={index.folders[0]}"
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([data, f"--checkpoint={tmp_path}"], "is no checkpoint and no run folder"),
        ([data, f"--checkpoint={run}", f"--out={tmp_path / 'gone' / 'r.json'}"], "gone does not exist"),
        ([data, f"--checkpoint={run}", f"--out={tmp_path}"], f"--out {tmp_path} is a folder"),
        ([data, f"--checkpoint={run}", f"--cache-features={tmp_path / 'file'}"], "cannot make the folder"),
        ([data, f"--checkpoint={run}", "--batch-size=0"], "--batch-size must be at least 1, got 0"),
        ([data, f"--checkpoint={run}", "--pool=some"], "--pool is all, per-class:N"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["retrieval", *arguments])
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and said in printed and printed.count("\n") == 1, printed


@pytest.mark.parametrize("task", ["retrieval", "classification", "segmentation"])
def test_a_launcher_that_starts_too_few_processes_is_found_out_first(task, monkeypatch, capsys):
    launch = Launch(processes=2, processes_asked_by="--num_processes 2")
    monkeypatch.setattr("training.processes.find_launch", lambda: launch)
    with pytest.raises(SystemExit) as ended:
        main([task, "--data=nowhere", "--checkpoint=nowhere"])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count("\n") == 1
    assert "asked for 2 processes and started 1 (--num_processes 2)" in printed


def test_numbers_are_told_where_they_cannot_be_written(run, index, tmp_path, capsys):
    out = tmp_path / "found.json"
    told = ["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", "--workers=0", f"--out={out}"]
    with longest_file(100), pytest.raises(SystemExit) as ended:
        main([*told, "--cache-features=none"])
    printed = capsys.readouterr()
    assert "audio -> image" in printed.out
    assert ended.value.code == 1 and printed.err.splitlines()[-1] == f"evaluate.py: error: {out}: File too large"
    assert not list(tmp_path.iterdir())


def test_features_that_cannot_be_kept_end_in_one_line(run, index, tmp_path, capsys):
    told = ["retrieval", f"--data={index.folders[0]}", f"--checkpoint={run}", "--workers=0"]
    with longest_file(1000), pytest.raises(SystemExit) as ended:
        main([*told, f"--cache-features={tmp_path}", f"--out={tmp_path / 'found.json'}"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1 and said.startswith(f"evaluate.py: error: {tmp_path}/"), said
    assert said.endswith("piece-00000000.safetensors: File too large") and not list(tmp_path.rglob("*.tmp"))
