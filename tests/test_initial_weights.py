"""Files of MAE, AudioMAE, CAV-MAE and CrossMAE, made here with random weights, against timm's own ViT and blocks."""

import argparse
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from shards_spec.errors import UserError
from training.initial_weights import initialise
from training.methods.crossmae import CrossMAE, CrossMAEConfig, crossmae_large
from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.shared.encoder import EncoderConfig
from training.trained import FbankScale

DIM, DEPTH, HEADS = 32, 3, 4
SCALE = FbankScale(mean=-4.0, std=4.0)


def tiny(dim=DIM, depth=DEPTH, targets="online", **pixel):
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=dim, depth=depth, heads=HEADS),
        pixel=PixelConfig(dim=32, depth=1, heads=2, **pixel),
        embedding=EmbeddingConfig(dim=32, depth=1, heads=2, targets=targets),
    )


def model(config=None, seed=0):
    torch.manual_seed(seed)
    return CrossMAE(config or tiny())


def random_tensors(shapes, seed=1):
    """Of a size at which attention is far from uniform and no layer's output is drowned."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def block_shapes(dim, norms=("norm1", "norm2")):
    shapes = {"attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,)}
    shapes |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
    shapes |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
    shapes |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
    return shapes | {f"{norm}.{part}": (dim,) for norm in norms for part in ("weight", "bias")}


def vit_state(channels=3, tokens=196, dim=DIM, depth=DEPTH, full=False):
    """The state dict of MAE (AudioMAE: 1 channel, 512 tokens); `full`: with a decoder."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + tokens, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, channels, 16, 16), "patch_embed.proj.bias": (dim,)}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    shapes |= {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block_shapes(dim).items()}
    if full:
        shapes |= {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 1 + tokens, 16), "decoder_norm.weight": (16,)}
        shapes |= {f"decoder_blocks.0.{name}": shape for name, shape in block_shapes(16).items()}
    return random_tensors(shapes)


def cav_state(dim=DIM, own=DEPTH - 1):
    norms = ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v")
    shapes = {}
    for letter, channels, tokens in (("a", 1, 512), ("v", 3, 196)):
        shapes |= {f"patch_embed_{letter}.proj.weight": (dim, channels, 16, 16)}
        shapes |= {f"patch_embed_{letter}.proj.bias": (dim,), f"modality_{letter}": (1, 1, dim)}
        shapes |= {f"pos_embed_{letter}": (1, tokens, dim)}
        shapes |= {f"blocks_{letter}.{i}.{n}": s for i in range(own) for n, s in block_shapes(dim, norms).items()}
    shapes |= {f"blocks_u.0.{name}": shape for name, shape in block_shapes(dim, norms).items()}
    shapes |= {f"{norm}.{part}": (dim,) for norm in ("norm", "norm_a", "norm_v") for part in ("weight", "bias")}
    shapes |= {"decoder_embed.weight": (16, dim), "mask_token": (1, 1, 16)}
    return random_tensors(shapes)


def written(path, state, wrapped=True):
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3, data="x")} if wrapped else state, path)
    return path


def timm_vit(state, size=224, channels=3):
    vit = VisionTransformer(
        img_size=size,
        patch_size=16,
        in_chans=channels,
        num_classes=0,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    vit.load_state_dict(state, strict=True)
    return vit.eval()


def inputs(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 224, 224, generator=generator), torch.randn(2, 1024, 128, generator=generator)


def assert_close(ours, theirs):
    assert theirs.std() > 0.1  # not the same only because nothing is left
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def assert_features(features, sequence):
    """Ours against the output [B, 1 + N, D] of a ViT."""
    assert_close(features.tokens, sequence[:, 1:])
    assert_close(features.cls, sequence[:, 0])


# ---------------------------------------------------------------- layouts


@torch.no_grad()
@pytest.mark.parametrize("full", [False, True])
def test_an_image_file_of_mae_gives_timms_features(tmp_path, full):
    ours, state = model(), vit_state(full=full)
    audio = {name: value.clone() for name, value in ours.audio_encoder.state_dict().items()}
    lines = initialise(ours, visual=written(tmp_path / "mae.pth", state), audio=None, scale=SCALE)
    image, _ = inputs()
    encoder = {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}
    assert_features(ours.encode_image(image), timm_vit(encoder).forward_features(image))
    assert (
        lines[0] == f"image encoder: {len(encoder)} tensors from {tmp_path / 'mae.pth'} (layout of MAE, AudioMAE, timm)"
    )
    left = "  left in the file: mask_token, decoder_pos_embed, decoder_norm, decoder_blocks (12)"
    assert lines[1:] == ([left] if full else [])
    assert all(torch.equal(value, audio[name]) for name, value in ours.audio_encoder.state_dict().items())


@torch.no_grad()
def test_an_audiomae_file_gives_timms_features_with_its_own_positions(tmp_path):
    ours, state = model(), vit_state(channels=1, tokens=512)
    initialise(ours, visual=None, audio=written(tmp_path / "audiomae.pth", state), scale=SCALE)
    _, fbank = inputs()
    vit = timm_vit(state, size=(1024, 128), channels=1)
    assert_features(ours.encode_audio(fbank), vit.forward_features(fbank.unsqueeze(1)))
    assert torch.equal(ours.audio_encoder.pos_embed, state["pos_embed"])


@torch.no_grad()
def test_an_image_file_in_the_audio_encoder_sees_the_spectrogram_as_a_grey_picture(tmp_path):
    ours, state = model(), vit_state()
    positions = ours.audio_encoder.pos_embed.clone()
    lines = initialise(ours, visual=None, audio=written(tmp_path / "mae.pth", state), scale=SCALE)
    _, fbank = inputs()
    expected = state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], positions[:, 1:]], dim=1)}
    grey = fbank.unsqueeze(1).expand(-1, 3, -1, -1)
    assert_features(ours.encode_audio(fbank), timm_vit(expected, size=(1024, 128)).forward_features(grey))
    assert lines[1] == "  adapted: patch_embed.proj.weight (summed over the three colours)"
    assert lines[2].startswith("  kept as they start here: positions of the patches (14 x 14 do not fit 64 x 8)")


@torch.no_grad()
def test_positions_without_one_for_cls_are_timms_no_embed_class(tmp_path):
    ours, state = model(), vit_state()
    state["pos_embed"] = state["pos_embed"][:, 1:]
    initialise(ours, visual=written(tmp_path / "vit.pth", state, wrapped=False), audio=None, scale=SCALE)
    image, _ = inputs()
    vit = VisionTransformer(
        embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=0, no_embed_class=True, norm_layer="layernorm"
    )
    vit.load_state_dict(state, strict=True)
    assert_features(ours.encode_image(image), vit.eval().forward_features(image))


def cav_forward(state, x, letter, eps, cls=None):
    """One modality of CAV-MAE out of timm's blocks; cls [1, 1, D] joins the tokens in front where it is given."""
    norm = partial(nn.LayerNorm, eps=eps)
    kernel, bias = state[f"patch_embed_{letter}.proj.weight"], state[f"patch_embed_{letter}.proj.bias"]
    tokens = nn.functional.conv2d(x, kernel, bias, stride=16).flatten(2).transpose(1, 2)
    tokens = tokens + state[f"pos_embed_{letter}"] + state[f"modality_{letter}"]
    if cls is not None:
        tokens = torch.cat([cls.expand(len(x), -1, -1), tokens], dim=1)
    for name, suffix in [*((f"blocks_{letter}.{i}", "") for i in range(DEPTH - 1)), ("blocks_u.0", f"_{letter}")]:
        block = Block(DIM, HEADS, qkv_bias=True, norm_layer=norm)
        own = block.state_dict()
        block.load_state_dict(
            {
                key: state[f"{name}.{key.replace('norm1', f'norm1{suffix}').replace('norm2', f'norm2{suffix}')}"]
                for key in own
            }
        )
        tokens = block(tokens)
    return nn.functional.layer_norm(tokens, (DIM,), state[f"norm_{letter}.weight"], state[f"norm_{letter}.bias"], eps)


def time_major(tokens):
    """[B, 512, D] from index f * 64 + t to t * 8 + f, written out."""
    return torch.stack([tokens[:, f * 64 + t] for t in range(64) for f in range(8)], dim=1)


@pytest.fixture
def cav_model(tmp_path):
    ours, state = model(), cav_state()
    path = written(tmp_path / "cav.pth", {f"module.{name}": value for name, value in state.items()}, wrapped=False)
    return ours, state, initialise(ours, visual=path, audio=path, scale=SCALE)


@torch.no_grad()
@pytest.mark.parametrize("letter", ["a", "v"])
def test_a_cav_mae_file_gives_its_forward_of_each_modality(cav_model, letter):
    """With our [CLS], which CAV-MAE has not, as one token more; and without it, for the weights alone."""
    ours, state, _ = cav_model
    image, fbank = inputs()
    encoder = ours.audio_encoder if letter == "a" else ours.image_encoder
    x, theirs = (fbank.unsqueeze(1), fbank.transpose(1, 2).unsqueeze(1)) if letter == "a" else (image, image)
    order = time_major if letter == "a" else (lambda tokens: tokens)

    sequence = cav_forward(state, theirs, letter, 1e-6, cls=encoder.cls_token)
    features = encoder(x)
    assert_close(features.tokens, order(sequence[:, 1:]))
    assert_close(features.cls, sequence[:, 0])

    tokens = encoder.patch_embed(x) + encoder.pos_embed[:, 1:]
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = encoder.norm(tokens)
    assert_close(tokens, order(cav_forward(state, theirs, letter, 1e-6)))
    torch.testing.assert_close(tokens, order(cav_forward(state, theirs, letter, 1e-5)), rtol=0, atol=1e-3)


def test_a_cav_mae_file_says_what_was_adapted(cav_model):
    _, _, lines = cav_model
    assert "layout of CAV-MAE" in lines[0] and "layout of CAV-MAE" in lines[4]
    assert lines[5] == (
        "  adapted: order of positions (f * 64 + t to t * 8 + f), patch_embed.proj.weight (transposed),"
        " modality_a (added to the positions), layer norms (eps 1e-5 there, 1e-6 here)"
    )
    assert lines[6] == "  kept as they start here: cls_token (there is none)"
    assert "patch_embed_v (2)" in lines[7] and "decoder_embed" in lines[7]


@pytest.mark.parametrize("kind", ["whole", "encoder"])
def test_safetensors_of_our_own_and_of_mae(tmp_path, kind):
    ours, other = model(), model(seed=1)
    whole = {name: value.contiguous() for name, value in other.state_dict().items()}
    encoder = {name: value.contiguous() for name, value in other.image_encoder.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(whole if kind == "whole" else encoder, path)
    initialise(ours, visual=path, audio=path if kind == "whole" else None, scale=SCALE)
    for name, value in other.state_dict().items():
        same = name.startswith(("image_encoder.", "audio_encoder.") if kind == "whole" else "image_encoder.")
        assert not same or torch.equal(ours.state_dict()[name], value)
    assert not torch.equal(ours.image_decoder.predict.weight, other.image_decoder.predict.weight)


def test_vit_large_has_the_names_and_shapes_of_timms():
    with torch.device("meta"):
        ours = CrossMAE(crossmae_large()).image_encoder.state_dict()
        theirs = timm.create_model("vit_large_patch16_224", num_classes=0).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_a_running_mean_starts_at_the_loaded_encoder(tmp_path):
    ours, state = model(tiny(targets="ema")), vit_state()
    initialise(ours, visual=written(tmp_path / "mae.pth", state), audio=None, scale=SCALE)
    assert torch.equal(ours.teacher.image_encoder.norm.weight, state["norm.weight"])


# ---------------------------------------------------------------- refusals


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("side", "state", "message"),
    [
        ("visual", vit_state(dim=48), "holds 3 blocks of width 48, the encoder has 3 of width 32: choose the --preset"),
        ("visual", vit_state(depth=2), "holds 2 blocks of width 32, the encoder has 3 of width 32"),
        ("audio", cav_state(own=11), "holds 12 blocks of width 32, the encoder has 3 of width 32"),
        (
            "visual",
            vit_state(channels=1),
            "patch_embed.proj.weight is [32, 1, 16, 16], expected [32, 3, 16, 16] of the",
        ),
        ("visual", vit_state(tokens=576), "pos_embed is [1, 577, 32], expected [1, 197, 32] of the image encoder"),
        ("audio", vit_state(channels=1, tokens=600), "pos_embed is [1, 601, 32], expected [1, 513, 32] of the audio"),
        (
            "visual",
            without(vit_state(), "norm.bias"),
            "no whole encoder: 1 tensors are missing, the first is norm.bias",
        ),
        ("visual", without(vit_state(), "pos_embed"), "1 tensors are missing, the first is pos_embed"),
        (
            "visual",
            vit_state() | {f"blocks.{i}.ls1.gamma": torch.ones(DIM) for i in range(DEPTH)},
            "holds a ViT of another kind: it has blocks (3), which our encoder has not",
        ),
        ("visual", vit_state() | {"reg_token": torch.ones(1, 4, DIM)}, "it has reg_token, which our encoder has not"),
        ("audio", without(cav_state(), "modality_a"), "is a damaged file of CAV-MAE: modality_a is missing"),
        (
            "audio",
            cav_state() | {"pos_embed_a": torch.zeros(1, 500, DIM)},
            "pos_embed_a has 500 positions, expected 512",
        ),
        (
            "visual",
            {"encoder.image.norm.weight": torch.ones(3)},
            "has none of the layouts that can be read (MAE, AudioMAE, timm's ViT, CAV-MAE, CrossMAE): it begins",
        ),
        ("visual", {}, "it begins with no tensors"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, side, state, message):
    ours = model()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    path = written(tmp_path / "file.pth", state)
    good = written(tmp_path / "good.pth", vit_state())
    paths = {"visual": good, "audio": good} | {side: path}
    with pytest.raises(UserError) as raised:
        initialise(ours, **paths, scale=SCALE)
    assert str(raised.value).startswith(str(path)) and message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


class Anything:
    """Not a tensor."""


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.pth", lambda path: None, "cannot be read (No such file or directory)"),
        ("folder", lambda path: path.mkdir(), "is a folder, expected a file of weights: to start from a CrossMAE run"),
        ("text.pth", lambda path: path.write_text("none"), "is no whole PyTorch file (it cannot be unpickled)"),
        ("object.pth", lambda path: torch.save({"model": Anything()}, path), "nothing in a file is executed"),
        ("short.pth", lambda path: path.write_bytes(b""), "is no whole PyTorch file (it is cut)"),
        ("zip.pth", lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "is no whole PyTorch file"),
        ("text.safetensors", lambda path: path.write_text("no safetensors"), "is no whole safetensors file"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UserError) as raised:
        initialise(model(), visual=tmp_path / name, audio=None, scale=SCALE)
    assert str(raised.value).startswith(str(tmp_path / name)) and message in str(raised.value)
    assert "\n" not in str(raised.value)
