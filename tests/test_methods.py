"""What holds for every method: the contract of training/methods/interface.py, tested on the smallest preset of each."""

import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.datasets import make_dataset
from training.checkpoint import checkpoints, load_weights
from training.evaluation.features import embed_dataset, load_model
from training.grad_cache import cache_contrast
from training.methods import METHODS, method_of
from training.methods.interface import Inputs
from training.recipes import PRESETS, parse_arguments, recipe
from training.run_folder import read_step_log
from training.stream.index import open_index
from training.task import Pretraining
from training.train import main
from training.trained import read_trained

TINY = {"crossmae": "crossmae-tiny", "cav-mae": "cav-mae-tiny"}
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shards", (9, 8), frames=4)


def small(name):
    """The preset's config, two blocks deep at most."""
    config = PRESETS[TINY[name]]().model
    return replace(config, encoder=replace(config.encoder, dim=32, depth=2, heads=2))


def build(name, seed=0):
    torch.manual_seed(seed)
    return METHODS[name].build(small(name))


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, 1, 3, 224, 224, generator=generator)
    fbank = torch.randn(size, 1024, 128, generator=generator)
    return Inputs(
        image=image,
        fbank=fbank,
        seeds=torch.arange(size),
        numbers=torch.arange(size),
        valid_frames=torch.full((size,), 998),
    )


def piece(inputs, part):
    values = {name: value[part] for name, value in vars(inputs).items() if value is not None}
    return replace(inputs, **values)


def test_the_methods_are_those_that_have_presets():
    assert {PRESETS[name]().method for name in PRESETS} == set(METHODS) == set(TINY)
    for name, make in PRESETS.items():
        run = make()
        assert run.preset == name and run.variant == METHODS[run.method].variants[0]
    assert all(f"{name}-{size}" in PRESETS for name in METHODS for size in ("base", "tiny"))


@every_method
def test_every_weight_gets_a_gradient_or_says_that_it_gets_none(name):
    for variant in METHODS[name].variants:
        torch.manual_seed(0)
        model = METHODS[name].build(METHODS[name].with_variant(small(name), variant))
        model(batch()).loss.backward()
        for parameter, value in model.named_parameters():
            assert value.requires_grad == (value.grad is not None), (variant, parameter)


@every_method
def test_a_sample_is_seen_alike_in_any_batch(name):
    """Masks are functions of the seed alone: what is rebuilt of a sample does not depend on its neighbours."""
    model, inputs = build(name), batch(4)
    whole = model.rebuild(inputs)
    alone = model.rebuild(piece(inputs, slice(2, 3)))
    assert whole
    for side, rebuilt in whole.items():
        assert torch.equal(rebuilt.is_masked[2:3], alone[side].is_masked)
        torch.testing.assert_close(rebuilt.patches[2:3], alone[side].patches, rtol=1e-4, atol=1e-4)


@every_method
def test_another_seed_gives_another_mask(name):
    model, inputs = build(name), batch(2)
    other = replace(inputs, seeds=inputs.seeds + 7)
    for side, rebuilt in model.rebuild(inputs).items():
        assert not torch.equal(rebuilt.is_masked, model.rebuild(other)[side].is_masked)


@every_method
def test_the_gradient_cache_gives_the_gradient_of_the_whole_batch(name):
    model, inputs = build(name).double(), batch()
    inputs = replace(inputs, image=inputs.image.double(), fbank=inputs.fbank.double())
    assert model.has_contrast
    cached = copy.deepcopy(model)
    model(inputs).loss.backward()
    # Losses over masked patches are means of the piece: only equal pieces add up to the batch, so halves here.
    pieces = [piece(inputs, slice(0, 4)), piece(inputs, slice(4, 8))]
    for part, known in zip(pieces, cache_contrast(cached, pieces), strict=True):
        (cached(part, known).loss / len(pieces)).backward()
    for (parameter, whole), (_, own) in zip(model.named_parameters(), cached.named_parameters(), strict=True):
        if whole.grad is not None:
            torch.testing.assert_close(
                own.grad, whole.grad, rtol=1e-5, atol=1e-8, msg=lambda text, p=parameter: p + text
            )


@every_method
def test_encoding_one_modality_does_not_look_at_the_other(name):
    model, inputs = build(name).eval(), batch(2)
    if not model.encodes_apart:
        pytest.skip("it encodes pairs alone")
    with torch.no_grad():
        both = model.encode(image=inputs.image, fbank=inputs.fbank, valid_frames=inputs.valid_frames)
        image = model.encode(image=inputs.image).image
        audio = model.encode(fbank=inputs.fbank, valid_frames=inputs.valid_frames).audio
    assert torch.equal(both.image.tokens, image.tokens) and torch.equal(both.audio.tokens, audio.tokens)
    assert image.pooled.shape == (2, model.dim) and image.tokens.shape == (2, 196, model.dim)
    assert image.grid == (14, 14) and audio.grid == (64, 8) and audio.tokens.shape == (2, 512, model.dim)


@every_method
def test_a_config_comes_back_from_json(name):
    for preset, make in PRESETS.items():
        run = make()
        if run.method == name:
            values = json.loads(json.dumps(asdict(run.model)))
            assert METHODS[name].config_from_dict(values) == run.model, preset
    with pytest.raises(ValueError, match="unknown in the model's config: nonsense"):
        METHODS[name].config_from_dict({"nonsense": 1})


def test_a_checkpoint_that_names_no_method_is_crossmae_s():
    assert method_of({}) is METHODS["crossmae"]
    with pytest.raises(ValueError, match="method is 'nonsense': known are crossmae, cav-mae"):
        method_of({"method": "nonsense"})


@every_method
def test_a_run_resumes_to_the_bit_and_is_read_back(name, dataset, tmp_path):
    """Eight steps at once, and in two parts; then evaluation takes the method from the checkpoint."""
    told = [f"--preset={TINY[name]}", "--model.encoder.dim=32", "--model.encoder.heads=2", f"--data={dataset}"]
    told += ["--steps=6", "--batch-size=8", "--workers=0", "--log-every=1", "--save-every=3", "--diagnose-every=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main([*told, f"--out={whole}"])
    main([*told, f"--out={parts}"])
    (parts / "checkpoints" / "step-00000006").rename(tmp_path / "gone")
    main([*told, f"--out={parts}"])
    first, second = (read_trained(checkpoints(run)[-1]) for run in (whole, parts))
    assert first.method is METHODS[name] and first.told["method"] == name
    one, two = first.load(), second.load()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    lines = [read_step_log(run / "metrics.jsonl") for run in (whole, parts)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert all(np.isfinite(line["loss"]) for line in lines[0])
    index = open_index(dataset)
    found = embed_dataset(index, load_model(whole, torch.device("cpu")), batch_size=8, workers=0)
    assert found.audio.shape == found.image.shape == (17, 32) and found.audio.isfinite().all()


@every_method
def test_the_forward_pass_is_one_graph(name):
    """Traced, not built: what inductor makes of it is tested elsewhere."""
    model, inputs = build(name), batch(8)
    traced = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(inputs).loss, model(inputs).loss, rtol=1e-5, atol=1e-6)


def test_a_run_of_another_method_is_no_start(dataset, tmp_path, capsys):
    told = ["--model.encoder.dim=32", "--model.encoder.heads=2", f"--data={dataset}", "--steps=1", "--batch-size=8"]
    told += ["--workers=0"]
    main(["--preset=crossmae-tiny", *told, f"--out={tmp_path / 'cross'}"])
    for option in ("--init", "--teacher"):
        with pytest.raises(SystemExit) as ended:
            main(["--preset=cav-mae-tiny", *told, f"--out={tmp_path / 'cav'}", f"{option}={tmp_path / 'cross'}"])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and option in said


def test_a_preset_that_is_none_is_refused(capsys):
    for words, said in (
        (["--preset=nonsense"], "--preset nonsense: allowed are crossmae-base"),
        (["--preset=cav-mae-tiny", "--variant=cl-av"], "--variant cl-av: of cav-mae allowed are cav-mae, cav, av-mae"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--data=d", "--out=o"])
        assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("told", [["--batch-size=4"], ["--batch-size=8", "--device-batch-size=4"]])
def test_a_batch_whose_groups_would_compare_nothing_is_refused(dataset, tmp_path, capsys, told):
    with pytest.raises(SystemExit) as ended:
        main(["--preset=cav-mae-tiny", f"--data={dataset}", f"--out={tmp_path / 'run'}", "--steps=1", *told])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "within each of 4 groups of the batch, which has 4 samples" in said
    assert said.count("\n") == 1
    Pretraining(parse_arguments(["--preset=cav-mae-tiny", "--data=d", "--out=o", "--batch-size=8"]))
    cached = ["--batch-size=8", "--device-batch-size=4", "--contrast-cache"]
    Pretraining(parse_arguments(["--preset=cav-mae-tiny", "--data=d", "--out=o", *cached]))


def test_a_recipe_is_what_the_command_line_begins_with():
    config = parse_arguments(["--preset=cav-mae-base", "--data=d", "--out=o", "--epochs=3"])
    expected = recipe("cav-mae-base", None)
    assert config.epochs == 3 and config.optimizer == expected.optimizer and config.model == expected.model
    assert config.optimizer.decay_on == "all" and config.augment.shift == 1024 and config.fbank_mean == -5.081
    assert Pretraining(replace(config, model=small("cav-mae"))).weights.reads.choose == "middle"


def test_weights_of_a_method_are_read_strictly(dataset, tmp_path):
    model = build("cav-mae")
    state = dict(model.state_dict())
    state.pop("audio_encoder.token")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"audio_encoder\.token"):
        load_weights(tmp_path, model)
