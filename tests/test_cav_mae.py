"""CAV-MAE: the authors' golden vectors, the layout of their files, masks, losses, and which weights learn."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.clips import FIXTURES
from tools import check_vectors
from training.methods.cav_mae import CAVMAE, CAVMAEConfig
from training.methods.cav_mae import config as c
from training.methods.cav_mae.encoder import fbank_positions
from training.methods.cav_mae.losses import contrast
from training.methods.cav_mae.masking import mask_audio, mask_image
from training.methods.cav_mae.weights import from_authors, order_time_first, tokens_time_first
from training.methods.interface import Inputs
from training.methods.shared.patches import sincos_positions

VECTORS = FIXTURES / "peers" / "cav_mae_tiny.safetensors"
TINY = CAVMAEConfig(
    encoder=c.StackConfig(dim=32, depth=1, heads=2), decoder=c.StackConfig(dim=16, depth=1, heads=2), joint_depth=1
)
with_vectors = pytest.mark.skipif(not VECTORS.is_file(), reason="no golden vectors here")


def batch(size=4):
    generator = torch.Generator().manual_seed(0)
    return Inputs(
        image=torch.randn(size, 1, 3, 224, 224, generator=generator),
        fbank=torch.randn(size, 1024, 128, generator=generator),
        valid_frames=torch.full((size,), 998),
        seeds=torch.arange(size),
        numbers=torch.arange(size),
    )


@with_vectors
def test_the_golden_vectors_of_the_authors():
    rows = check_vectors.check(VECTORS, torch.float64, 2e-6)
    assert len(rows) == 232
    assert [row for row in rows if not row.is_equal] == []


@with_vectors
def test_the_command_tells_a_difference(monkeypatch, capsys):
    monkeypatch.setattr("training.methods.cav_mae.classifier.EPS", 1e-6)
    with pytest.raises(SystemExit) as ended:
        check_vectors.main([str(VECTORS)])
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "outputs/logits_multimodal" in printed and "DIFFERS" in printed


@with_vectors
def test_the_command_counts_what_is_not_compared(monkeypatch, capsys):
    monkeypatch.setitem(check_vectors.METHODS, "weights/patch_embed_a.proj.weight", lambda vectors: {})
    with pytest.raises(SystemExit) as ended:
        check_vectors.main([str(VECTORS)])
    assert ended.value.code == 1
    assert "232 not compared" in capsys.readouterr().out


def test_a_file_that_is_none_is_one_line(tmp_path, capsys):
    path = tmp_path / "a file.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        check_vectors.main([str(path)])
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err


def authors_layout(dim=768, own=11, shared=1, decoder=8, decoder_dim=512):
    """The names and shapes of a released file, as its authors' class has them."""

    def block(stem, width, norms):
        shapes = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for layer, shape in shapes.items():
            yield f"{stem}.{layer}.weight", shape
            yield f"{stem}.{layer}.bias", shape[:1]
        for norm in norms:
            yield f"{stem}.{norm}.weight", (width,)
            yield f"{stem}.{norm}.bias", (width,)

    all_norms = [f"norm{i}{side}" for i in (1, 2) for side in ("", "_a", "_v")]
    layout = {}
    for side, channels, tokens in (("a", 1, 512), ("v", 3, 196)):
        layout[f"modality_{side}"] = (1, 1, dim)
        layout[f"pos_embed_{side}"] = (1, tokens, dim)
        layout[f"patch_embed_{side}.proj.weight"] = (dim, channels, 16, 16)
        layout[f"patch_embed_{side}.proj.bias"] = (dim,)
        layout[f"decoder_modality_{side}"] = (1, 1, decoder_dim)
        layout[f"decoder_pos_embed_{side}"] = (1, tokens, decoder_dim)
        layout[f"decoder_pred_{side}.weight"] = (256 * channels, decoder_dim)
        layout[f"decoder_pred_{side}.bias"] = (256 * channels,)
        for i in range(own):
            layout |= block(f"blocks_{side}.{i}", dim, all_norms)
    for i in range(shared):
        layout |= block(f"blocks_u.{i}", dim, all_norms)
    for i in range(decoder):
        layout |= block(f"decoder_blocks.{i}", decoder_dim, all_norms)
    for norm, width in (("norm", dim), ("norm_a", dim), ("norm_v", dim), ("decoder_norm", decoder_dim)):
        layout[f"{norm}.weight"] = layout[f"{norm}.bias"] = (width,)
    layout["decoder_embed.weight"], layout["decoder_embed.bias"] = (decoder_dim, dim), (decoder_dim,)
    layout["mask_token"] = (1, 1, decoder_dim)
    return layout


def test_a_released_file_fits_the_paper_s_model_whole():
    layout = authors_layout()
    assert len(layout) == 647
    with torch.device("meta"):
        model = CAVMAE(CAVMAEConfig())
        file = {f"module.{name}": torch.empty(shape) for name, shape in layout.items()}
    state, left = from_authors(file)
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert all(state[name].shape == own[name].shape for name in own)
    assert all(name.endswith(("_a.weight", "_a.bias", "_v.weight", "_v.bias")) and "norm" in name for name in left)
    # The authors' class counts the norms that it never uses.
    unused = sum(torch.Size(layout[name]).numel() for name in left)
    assert sum(value.numel() for value in own.values()) + unused == 191_036_160


def test_positions_are_those_of_the_picture_with_mel_rows():
    theirs = sincos_positions(32, (8, 64))
    assert torch.equal(fbank_positions(32, (64, 8)), theirs[order_time_first()])
    assert torch.equal(fbank_positions(32, (64, 8))[5 * 8 + 3], theirs[3 * 64 + 5])


def test_tokens_come_to_time_first():
    assert tokens_time_first(torch.tensor([0, 1, 64, 511])).tolist() == [0, 8, 1, 511]
    order = order_time_first()
    assert order[tokens_time_first(torch.arange(512))].tolist() == list(range(512))


@pytest.mark.parametrize(
    ("ratio", "visible"), [(0.75, (128, 49)), (0.65, (179, 68)), (0.85, (76, 29)), (0.9, (51, 19))]
)
def test_visible_tokens_are_counted_as_in_the_code(ratio, visible):
    seeds = torch.arange(3)
    audio, image = mask_audio(seeds, (64, 8), ratio, "uniform"), mask_image(seeds, 196, ratio)
    assert (audio.visible.shape[1], image.visible.shape[1]) == visible


@with_vectors
@pytest.mark.parametrize(
    ("drawn", "strategy"),
    [("time_0.75", "time"), ("freq_0.75", "frequency"), ("tf_0.75", "time-frequency"), ("tf_0.5", "time-frequency")],
)
def test_structured_masks_hide_as_the_authors_draws_do(drawn, strategy):
    """The same number of tokens, of whole columns, and of whole rows."""
    ratio = float(drawn.rpartition("_")[2])
    theirs_drawn = load_file(VECTORS)[f"masks_structured/{drawn}"].bool()[:, order_time_first()]
    ours = mask_audio(torch.arange(64), (64, 8), ratio, strategy).is_masked

    def counts(is_masked):
        grid = is_masked.unflatten(1, (64, 8))
        return is_masked.sum(1), grid.all(2).sum(1), grid.all(1).sum(1)

    theirs = [set(values.tolist()) for values in counts(theirs_drawn)]
    found = [set(values.tolist()) for values in counts(ours)]
    assert found[0] == theirs[0]
    assert all(a & b for a, b in zip(found, theirs, strict=True)), (found, theirs)


def test_the_contrast_is_of_the_frames_over_the_sounds_of_their_group():
    generator = torch.Generator().manual_seed(1)
    audio, image = torch.randn(8, 5, generator=generator).double(), torch.randn(8, 5, generator=generator).double()
    logits = F.normalize(image.float(), dim=1) @ F.normalize(audio.float(), dim=1).T / 0.05
    own = torch.arange(8)
    expected = F.cross_entropy(logits, own)
    assert torch.allclose(contrast(audio, image, 0.05, direction="video_to_audio", in_groups=False), expected)
    both = (expected + F.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(contrast(audio, image, 0.05, direction="both", in_groups=False), both)
    groups = torch.stack([F.cross_entropy(logits[i : i + 2, i : i + 2], own[:2]) for i in range(0, 8, 2)]).mean()
    assert torch.allclose(contrast(audio, image, 0.05, direction="video_to_audio", in_groups=True), groups)


@pytest.mark.parametrize("variant", c.VARIANTS)
def test_every_weight_learns_or_says_that_it_does_not(variant):
    pixel, weight = c.VARIANTS[variant]
    config = CAVMAEConfig(
        encoder=TINY.encoder,
        decoder=TINY.decoder,
        pixel=c.PixelConfig(weight=pixel),
        contrast=c.ContrastConfig(weight=weight),
    )
    torch.manual_seed(0)
    model = CAVMAE(config)
    model(batch(8)).loss.backward()  # groups of two: of one there is nothing to compare
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_a_mask_is_a_function_of_the_seed_alone():
    torch.manual_seed(0)
    model = CAVMAE(TINY)
    inputs = batch()
    whole = model.see(inputs.image[:, 0], inputs.fbank, model.image_mask(inputs.seeds), model.audio_mask(inputs.seeds))
    one = model.audio_mask(inputs.seeds[2:3]), model.image_mask(inputs.seeds[2:3])
    assert torch.equal(whole.audio_mask.visible[2], one[0].visible[0])
    assert torch.equal(whole.image_mask.visible[2], one[1].visible[0])


def test_recomputed_activations_change_nothing():
    inputs, losses = batch(2), []
    for again in (False, True):
        torch.manual_seed(0)
        model = CAVMAE(CAVMAEConfig(encoder=TINY.encoder, decoder=TINY.decoder, checkpoint_activations=again))
        output = model(inputs)
        output.loss.backward()
        losses.append((output.loss.detach(), model.audio_encoder.proj.weight.grad))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-7)
