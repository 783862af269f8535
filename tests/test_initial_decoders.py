"""Decoders of full files of MAE and AudioMAE, made here with random weights, against timm's own blocks."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from tests.test_initial_weights import DIM, SCALE, block_shapes, inputs, model, random_tensors, vit_state, written
from training.initial_weights import initialise
from training.methods.crossmae import CrossMAEConfig
from training.methods.crossmae.config import EmbeddingConfig, PixelConfig
from training.methods.shared.encoder import EncoderConfig
from training.methods.shared.patches import FBANK_GRID, IMAGE_GRID, sincos_positions

WIDTH, BLOCKS, HEADS = 32, 2, 2


def config(**pixel):
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=DIM, depth=3, heads=4),
        pixel=PixelConfig(**{"dim": WIDTH, "depth": BLOCKS, "heads": HEADS} | pixel),
        embedding=EmbeddingConfig(dim=32, depth=1, heads=2),
    )


def decoder_state(grid=IMAGE_GRID, values=768, width=WIDTH, blocks=BLOCKS):
    """The decoder of a full MAE, or of an AudioMAE with plain blocks."""
    shapes = {"mask_token": (1, 1, width), "decoder_embed.weight": (width, DIM), "decoder_embed.bias": (width,)}
    shapes |= {"decoder_norm.weight": (width,), "decoder_norm.bias": (width,)}
    shapes |= {"decoder_pred.weight": (values, width), "decoder_pred.bias": (values,)}
    shapes |= {f"decoder_blocks.{i}.{n}": s for i in range(blocks) for n, s in block_shapes(width).items()}
    table = torch.cat([torch.zeros(1, width), sincos_positions(width, grid)]).unsqueeze(0)
    return random_tensors(shapes, seed=2) | {"decoder_pos_embed": table}


def mae_decoder(state, sequence, is_masked):
    """MAE's decoder out of timm's blocks: the encoder's output [B, 1 + N, D] with hidden tokens replaced -> patches."""
    x = nn.functional.linear(sequence, state["decoder_embed.weight"], state["decoder_embed.bias"])
    x[:, 1:][is_masked] = state["mask_token"].flatten()
    x = x + state["decoder_pos_embed"]
    for i in range(BLOCKS):
        block = Block(WIDTH, HEADS, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        block.load_state_dict({name: state[f"decoder_blocks.{i}.{name}"] for name in block.state_dict()})
        x = block(x)
    x = nn.functional.layer_norm(x, (WIDTH,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
    return nn.functional.linear(x, state["decoder_pred.weight"], state["decoder_pred.bias"])[:, 1:]


def in_full(view):
    """The encoder's output for all places, where hidden ones are zeros."""
    cls, tokens = view.features.cls.unsqueeze(1), view.features.tokens
    full = tokens.new_zeros(len(tokens), view.mask.is_masked.shape[1], tokens.shape[2])
    full.scatter_(1, view.mask.visible.unsqueeze(-1).expand_as(tokens), tokens)
    return torch.cat([cls, full], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["first", "every_block"])
def test_a_full_file_gives_the_pixels_of_its_own_decoder(tmp_path, conditioning):
    """The cross-attention that is more in ours starts at zero, in either place."""
    ours = model(config(conditioning=conditioning))
    image_state = vit_state() | decoder_state()
    audio_state = vit_state(channels=1, tokens=512) | decoder_state(FBANK_GRID, 256)
    mae, audiomae = written(tmp_path / "mae.pth", image_state), written(tmp_path / "audiomae.pth", audio_state)
    lines = initialise(ours, visual=mae, audio=audiomae, scale=SCALE)
    image, fbank = inputs()
    seeds = torch.tensor([3, 4])
    image_view, audio_view = ours.see_image(image, seeds), ours.see_audio(fbank, seeds)
    image_patches, audio_patches = ours.decode_pixels(image_view, audio_view)
    for patches, view, state in ((image_patches, image_view, image_state), (audio_patches, audio_view, audio_state)):
        expected = mae_decoder(state, in_full(view), view.mask.is_masked)
        assert expected.std() > 0.1
        torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-4)
    count = 7 + 12 * BLOCKS
    assert lines[1] == f"image decoder: {count} tensors from {mae}"
    assert lines[3] == f"audio decoder: {count} tensors from {audiomae}" and len(lines) == 4


def with_windows(state):
    """As AudioMAE's released decoder has them."""
    more = {f"decoder_blocks.{i}.attn.tau": torch.ones(HEADS) for i in range(BLOCKS)}
    return state | more | {"decoder_blocks.0.attn.meta_mlp.fc1.weight": torch.ones(384, 2)}


def changed(state, name, value):
    return {key: v for key, v in state.items() if key != name} | ({} if value is None else {name: value})


@pytest.mark.parametrize(
    ("side", "state", "why"),
    [
        ("audio", with_windows(decoder_state(FBANK_GRID, 256)), "its blocks have shifted windows, ours attend to all"),
        ("image", decoder_state(blocks=3), "it has 3 blocks of width 32, ours 2 of width 32"),
        ("image", decoder_state(width=16), "it has 2 blocks of width 16, ours 2 of width 32"),
        ("image", changed(decoder_state(), "decoder_norm.bias", None), "it lacks norm.bias"),
        ("image", decoder_state() | {"decoder_pred.scale": torch.ones(1)}, "it has predict.scale and ours has not"),
        ("audio", decoder_state(), "its predict.weight is [768, 32], ours [256, 32]"),
        ("audio", decoder_state(values=256), "it has positions for 196 patches, ours for 512"),
        ("image", changed(decoder_state(), "decoder_pos_embed", None), "it has positions for no patches, ours for 196"),
        (
            "image",
            changed(decoder_state(), "decoder_pos_embed", torch.zeros(1, 197, WIDTH)),
            "its positions are not the fixed sines and cosines of ours",
        ),
    ],
)
def test_a_decoder_that_does_not_fit_is_left_whole_and_the_reason_is_told(tmp_path, side, state, why):
    ours = model(config())
    decoder = ours.image_decoder if side == "image" else ours.audio_decoder
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    encoder = vit_state() if side == "image" or state["decoder_pos_embed"].shape[1] == 197 else None
    path = written(tmp_path / "file.pth", (encoder or vit_state(channels=1, tokens=512)) | state)
    paths = {"visual": path, "audio": None} if side == "image" else {"visual": None, "audio": path}
    lines = initialise(ours, **paths, scale=SCALE)
    assert lines[-1].startswith(f"{side} decoder: {why}") and lines[-1].endswith(f", so not from {path}")
    assert any(line.startswith("  left in the file: ") and "decoder_blocks (" in line for line in lines)
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_without_a_pixel_loss_there_is_no_decoder_to_start(tmp_path):
    path = written(tmp_path / "mae.pth", vit_state() | decoder_state())
    lines = initialise(model(config(target="none")), visual=path, audio=None, scale=SCALE)
    assert "decoder_blocks (24)" in lines[-1] and lines[-1].startswith("  left in the file: ")
