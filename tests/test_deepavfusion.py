"""DeepAVFusion: golden vectors, the authors' files, counts, masks, the split of pairs, and what learns."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.clips import FIXTURES
from tools import check_vectors
from training.methods.deepavfusion import VARIANTS, DeepAVFusion, DeepAVFusionConfig, with_variant
from training.methods.deepavfusion import config as c
from training.methods.deepavfusion.encoder import Encoder, Streams
from training.methods.deepavfusion.fusion import EPS, DenseAttention, FactorizedAttention
from training.methods.deepavfusion.masking import uniform_mask
from training.methods.deepavfusion.model import FULL
from training.methods.deepavfusion.segmentation import SegmentationDecoder
from training.methods.deepavfusion.separation import SeparationDecoder
from training.methods.deepavfusion.spectrogram import from_fbank
from training.methods.deepavfusion.weights import from_audiomae, from_authors, is_authors
from training.methods.interface import Inputs
from training.methods.shared.config_values import from_dict
from training.methods.shared.patches import Grids

VECTORS = FIXTURES / "peers" / "deepavfusion_tiny.safetensors"
TINY = DeepAVFusionConfig(
    encoder=c.StackConfig(dim=32, depth=2, heads=2),
    decoder=c.DecoderConfig(dim=16, image_depth=1, audio_depth=1, heads=2),
    fusion=c.FusionConfig(fusion_tokens=4, image_tokens=2, audio_tokens=3, heads=2),
)
AS2M = DeepAVFusionConfig(fusion=c.FusionConfig(attn_ratio=1.0, mlp_ratio=4.0))
with_vectors = pytest.mark.skipif(not VECTORS.is_file(), reason="no golden vectors here")


def batch(size=2):
    generator = torch.Generator().manual_seed(0)
    return Inputs(
        image=torch.randn(size, 1, 3, 224, 224, generator=generator),
        fbank=torch.randn(size, 1024, 128, generator=generator),
        valid_frames=torch.full((size,), 998),
        seeds=torch.arange(size),
        numbers=torch.arange(size),
        waveform=torch.rand(size, 48000, generator=generator) - 0.5,
    )


def small(**changes):
    """TINY with other options of its fusion."""
    return replace(TINY, fusion=replace(TINY.fusion, **changes))


@with_vectors
def test_the_golden_vectors_of_the_authors_code():
    rows = check_vectors.check(VECTORS, torch.float64, 2e-6)
    assert len(rows) == 706
    assert [row for row in rows if not row.is_equal] == []


def authors_layout(fusion, depth=12, dim=768, decoder_dim=512, decoder_depth=8):
    """The names and shapes of a released file, as its authors' classes have them."""
    narrow, hidden = int(dim * fusion.attn_ratio), int(dim * fusion.mlp_ratio)

    def block(stem, width, inner):
        return {
            f"{stem}.norm1": (width,),
            f"{stem}.attn.qkv": (3 * width, width),
            f"{stem}.attn.proj": (width, width),
            f"{stem}.norm2": (width,),
            f"{stem}.mlp.fc1": (inner, width),
            f"{stem}.mlp.fc2": (width, inner),
        }

    layers, alone = {"encoder.fusion_norm": (dim,)}, {"encoder.fusion_tokens": (1, fusion.tokens, dim)}
    for side, channels, tokens in (("image", 3, 196), ("audio", 1, 96)):
        alone[f"encoder.{side}.pos_embed"] = (1, tokens, dim)
        alone[f"{side}_decoder_pos_embed"] = (1, tokens, decoder_dim)
        alone[f"{side}_decoder_mask_token"] = (1, 1, decoder_dim)
        layers[f"encoder.{side}.patch_embed.proj"] = (dim, channels, 16, 16)
        layers[f"encoder.{side}.norm"] = (dim,)
        layers[f"{side}_decoder_embed"] = (decoder_dim, dim)
        layers[f"{side}_decoder_norm"] = (decoder_dim,)
        layers[f"{side}_decoder_pred"] = (256 * channels, decoder_dim)
        for i in range(depth):
            layers |= block(f"encoder.{side}.blocks.{i}", dim, 4 * dim)
        for i in range(decoder_depth):
            layers |= block(f"{side}_decoder_blocks.{i}", decoder_dim, 4 * decoder_dim)
    for i in range(depth):
        stem = f"encoder.fusion_blocks.{i}"
        layers |= dict.fromkeys((f"{stem}.{norm}" for norm in ("norm1_mm", "norm1_aud", "norm1_img", "norm2")), (dim,))
        for side in ("v", "a"):
            layers[f"{stem}.attn.attn_{side}.q"] = layers[f"{stem}.attn.attn_{side}.proj"] = (dim, dim)
            layers[f"{stem}.attn.attn_{side}.kv"] = (2 * dim, dim)
        layers |= {f"{stem}.attn.q": (narrow, dim), f"{stem}.attn.k": (narrow, 2 * dim)}
        layers |= {f"{stem}.attn.v": (dim, 2 * dim), f"{stem}.attn.proj": (dim, dim)}
        layers |= {f"{stem}.mlp.fc1": (hidden, dim), f"{stem}.mlp.fc2": (dim, hidden)}
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return alone | weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()}


@pytest.mark.parametrize("config", [DeepAVFusionConfig(), AS2M], ids=["VGGSound", "AS2M"])
def test_a_released_file_fits_the_model_whole(config):
    layout = authors_layout(config.fusion)
    assert len(layout) == 893
    with torch.device("meta"):
        model = DeepAVFusion(config)
        file = {name: torch.empty(shape) for name, shape in layout.items()}
    assert is_authors(file) and not is_authors(model.state_dict())
    model.load_state_dict(from_authors(file), strict=True, assign=True)


def test_an_audiomae_starts_the_audio_branch():
    kernel = torch.randn(32, 1, 16, 16)
    file = {"cls_token": torch.zeros(1, 1, 32), "patch_embed.proj.weight": kernel, "blocks.0.norm1.bias": kernel[:, 0]}
    found = from_audiomae(file)
    assert found.keys() == {"encoder.audio.proj.weight", "encoder.audio.blocks.0.norm1.bias"}
    assert torch.equal(found["encoder.audio.proj.weight"], kernel.transpose(2, 3))
    assert torch.equal(from_audiomae(file, kernel="as_code")["encoder.audio.proj.weight"], kernel)


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("config", "blocks", "whole"),
    [
        (DeepAVFusionConfig(), 97.51, 320.56),
        (AS2M, 155.94, 379.00),
        (with_variant(DeepAVFusionConfig(), "dense"), 24.88, 247.94),
        (with_variant(DeepAVFusionConfig(), "token"), 21.34, 244.40),
        (with_variant(DeepAVFusionConfig(), "none"), 0, 223.05),
    ],
    ids=["factorized", "AS2M", "dense", "token", "none"],
)
def test_parameters_are_as_many_as_in_the_authors_classes(config, blocks, whole):
    with torch.device("meta"):
        model = DeepAVFusion(config)
    encoder = model.encoder
    parts = [encoder.image, encoder.audio, encoder.fusion_blocks, model.image_decoder, model.audio_decoder, model]
    assert [millions(part) for part in parts] == pytest.approx([85.80, 85.33, blocks, 26.11, 25.80, whole], abs=0.006)


def gmacs(module, *inputs):
    """10^9 multiply-adds of a forward pass on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops() / 2e9


def saved(config, image, audio):
    """10^9 multiply-adds that the split of pairs saves, for so many image and audio tokens: the authors build them."""
    dim, fusion = config.encoder.dim, config.fusion
    narrow = int(dim * fusion.attn_ratio)
    queries, values = fusion.tokens, narrow
    if fusion.phi == "factorized_mmi":
        queries, values, image, audio = fusion.fusion_tokens, dim, fusion.image_tokens, fusion.audio_tokens
    elif fusion.phi != "dense_mmi":
        return 0.0
    width = narrow + values
    pairs, tokens = image * audio, image + audio
    each = (pairs * 2 - tokens) * dim * width + queries * (pairs - tokens) * width
    return len(config.fusion_layers) * each / 1e9


def encoder_gmacs(config, grids, masks=(None, None)):
    """Of a pass at full depth: that of one layer, and eleven times what a second one adds."""
    counts = []
    for depth in (1, 2):
        with torch.device("meta"):
            encoder = Encoder(replace(config, encoder=replace(config.encoder, depth=depth)), grids)
            encoder.requires_grad_(False)
            image, spectrogram = torch.empty(1, 3, 224, 224), torch.empty(1, *(16 * side for side in grids.audio))
        counts.append(gmacs(encoder, image, spectrogram, *masks))
    return counts[0] + 11 * (counts[1] - counts[0])


@pytest.fixture(scope="module")
def masks_on_meta():
    seeds = torch.empty(1, dtype=torch.int64, device="meta")
    return uniform_mask(seeds, 0, 196, 0.75), uniform_mask(seeds, 1, 96, 0.8)


@pytest.mark.parametrize(
    ("config", "masked", "whole"),
    [
        (DeepAVFusionConfig(), 24.11, 37.77),
        (AS2M, 26.24, 39.90),
        (with_variant(DeepAVFusionConfig(), "token"), 21.99, None),
        (with_variant(DeepAVFusionConfig(), "dense"), 28.47, 168.15),
        (with_variant(DeepAVFusionConfig(), "none"), 15.62, 25.81),
    ],
    ids=["factorized", "AS2M", "token", "dense", "none"],
)
def test_an_encoder_costs_what_the_authors_does(config, masked, whole, masks_on_meta):
    """With what the split saves; without, dense interactions cost 33 unmasked. `masked` includes the decoders."""
    found = encoder_gmacs(config, FULL, masks_on_meta)
    assert found + saved(config, 49, 19) + 6.27 + 3.39 == pytest.approx(masked, abs=0.015)
    if whole is not None:
        found = encoder_gmacs(config, FULL)
        assert found + saved(config, 196, 96) == pytest.approx(whole, abs=0.006) and found < 39.5


def test_longer_sounds_cost_what_the_authors_do():
    config = DeepAVFusionConfig()
    assert encoder_gmacs(config, Grids(audio=(8, 64))) + saved(config, 0, 0) == pytest.approx(84.29, abs=0.006)


def test_decoders_and_heads_cost_what_the_authors_do(masks_on_meta):
    with torch.device("meta"):
        model = DeepAVFusion(DeepAVFusionConfig()).requires_grad_(False)
        segmentation = SegmentationDecoder(768, classes=1, grid=(14, 14)).eval()
        separation = SeparationDecoder(768, grid=(8, 12)).eval()
        streams = [Streams(*(torch.empty(1, tokens, 768) for tokens in (196, 96, 32)))] * 12
    image, audio = masks_on_meta
    for decoder, tokens, mask, expected in (
        (model.image_decoder, 49, image, 6.27),
        (model.audio_decoder, 19, audio, 3.39),
    ):
        seen = torch.empty(1, tokens, 768, device="meta")
        found = gmacs(decoder, seen, streams[0].fusion, mask)
        assert found == pytest.approx(expected, abs=0.006)
    for head, size, whole in ((segmentation, 37.8, 67.9), (separation, 46.9, 53.7)):
        assert round(millions(head), 1) == size
        assert gmacs(head, streams) + 37.77 == pytest.approx(whole, abs=0.06)


def every_pair(first, second):
    """[B, N1 * N2, 2 D]: what the split never builds."""
    first = first.unsqueeze(2).expand(-1, -1, second.shape[1], -1)
    second = second.unsqueeze(1).expand_as(first[:, :, : second.shape[1]])
    return torch.cat([first, second], dim=-1).flatten(1, 2)


def attention(q, k, v, heads, scale):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3) * scale).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("scale", ["full", "reduced"])
def test_dense_interactions_are_those_of_all_pairs(scale):
    torch.manual_seed(0)
    own = DenseAttention(32, replace(TINY.fusion, scale=scale)).double()
    tokens, image, audio = (torch.randn(2, count, 32).double() for count in (9, 7, 5))
    keys, values = own.kv(every_pair(audio, image)).chunk(2, dim=-1)
    width = 4 if scale == "reduced" else 16  # of a head
    expected = own.proj(attention(own.q(tokens), keys, values, 2, width**-0.5))
    assert torch.allclose(own(tokens, image, audio), expected, atol=1e-14)


def test_factorized_interactions_are_those_of_the_aggregates_pairs():
    torch.manual_seed(0)
    own = FactorizedAttention(32, TINY.fusion).double()
    torch.nn.init.normal_(own.k.bias)
    fusion, image, audio = (torch.randn(2, count, 32).double() for count in (4, 2, 3))
    pairs = every_pair(image, audio)
    expected = own.proj(attention(own.q(fusion), own.k(pairs), own.v(pairs), 2, 16**-0.5))
    assert torch.allclose(own.pairs(fusion, image, audio), expected, atol=1e-14)


def test_the_split_is_the_same_without_fused_kernels(monkeypatch):
    torch.manual_seed(0)
    own = DenseAttention(32, TINY.fusion).double()
    inputs = [torch.randn(2, count, 32).double() for count in (9, 7, 5)]
    fused = own(*inputs)
    monkeypatch.setattr("training.methods.deepavfusion.fusion.use_fused_attn", lambda: False)
    assert torch.allclose(own(*inputs), fused, atol=1e-14)


@pytest.mark.parametrize(
    "config",
    [
        *(with_variant(TINY, name) for name in VARIANTS),
        small(aggregates="block", residual="prenorm", scale="reduced"),
        replace(small(layers=(0,)), decoder=replace(TINY.decoder, sees="fusion_only", positions="frozen")),
    ],
    ids=[*VARIANTS, "letter of the text", "fusion only"],
)
def test_every_weight_learns_or_says_that_it_does_not(config):
    torch.manual_seed(0)
    model = DeepAVFusion(config)
    model(batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


def test_a_layer_reads_the_layer_before():
    """In no layer's image tokens is that layer's fusion block."""
    torch.manual_seed(0)
    model = DeepAVFusion(TINY)
    image, spectrogram = torch.randn(1, 3, 224, 224), torch.randn(1, 128, 192)
    before = model.encoder.layers(image, spectrogram)
    torch.nn.init.ones_(model.encoder.fusion_blocks["0"].norm2.bias)
    after = model.encoder.layers(image, spectrogram)
    assert torch.equal(before[0].image, after[0].image) and not torch.equal(before[0].fusion, after[0].fusion)
    assert not torch.equal(before[1].image, after[1].image)


def test_a_mask_is_a_function_of_the_seed_alone():
    model = DeepAVFusion(TINY)
    seeds = torch.arange(4)
    for mask, visible in ((model.image_mask, 49), (model.audio_mask, 19)):
        whole, one = mask(seeds), mask(seeds[2:3])
        assert torch.equal(whole.visible[2], one.visible[0]) and whole.visible.shape[1] == visible
        assert torch.equal((~whole.is_masked).sum(dim=1), torch.full((4,), visible))
        assert not torch.equal(whole.visible[0], whole.visible[1])


def test_recomputed_activations_change_nothing():
    inputs, losses = batch(), []
    for again in (False, True):
        torch.manual_seed(0)
        model = DeepAVFusion(replace(TINY, checkpoint_activations=again))
        output = model(inputs)
        output.loss.backward()
        losses.append((output.loss.detach(), model.encoder.image.proj.weight.grad))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-7)


def test_both_modalities_are_encoded_together():
    model = DeepAVFusion(TINY).eval()
    inputs = batch()
    encoded = model.encode(image=inputs.image, waveform=inputs.waveform)
    assert [x.tokens.shape[1] for x in (encoded.image, encoded.audio, encoded.joint)] == [196, 96, 9]
    assert not model.encodes_apart
    with pytest.raises(ValueError, match="one of them is missing"):
        model.encode(image=inputs.image)
    with pytest.raises(ValueError, match="no waveform is given"):
        model.encode(image=inputs.image, fbank=inputs.fbank)


def test_the_fbank_s_3_seconds_hold_the_middle_frame():
    config = replace(TINY, sound=c.SoundConfig(source="fbank", fbank_mean=-5.0, fbank_std=4.0))
    model, inputs = DeepAVFusion(config), batch()
    assert model.reads.choose == "middle" and not model.reads.waveform_seconds
    assert model(inputs).loss.isfinite()
    stored = inputs.fbank * 4 - 5
    encoded = model.eval().encode(image=inputs.image, fbank=inputs.fbank, valid_frames=inputs.valid_frames)
    expected = model.encode_both(inputs.image[:, 0], from_fbank(stored, inputs.valid_frames))
    assert torch.equal(encoded.audio.tokens, expected.audio.tokens)


def test_variants_fuse_in_the_layers_of_table_4():
    found = {name: with_variant(DeepAVFusionConfig(), name) for name in VARIANTS}
    assert {name: config.fusion_layers for name, config in found.items()} == {
        **dict.fromkeys(("deepavfusion", "dense", "token", "mbt"), tuple(range(12))),
        "mid": (8, 9, 10, 11),
        "late": (11,),
        "none": (),
    }
    assert found["deepavfusion"] == DeepAVFusionConfig()
    with pytest.raises(ValueError, match="variant is 'both'"):
        with_variant(TINY, "both")


def test_a_config_comes_back_from_json():
    config = small(phi="dense_mmi", layers=(0, 1))
    values = asdict(config)
    values["fusion"]["layers"] = list(config.fusion.layers)
    assert from_dict(DeepAVFusionConfig, values) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(layers=(2,)), "fusion.layers is"),
        (lambda: small(layers=(1, 0)), "ascending"),
        (lambda: small(heads=3), "fusion.heads is 3"),
        (lambda: small(attn_ratio=0), "fusion.attn_ratio is 0"),
        (lambda: c.MaskConfig(audio_ratio=0.995), "mask.audio_ratio is 0.995"),
        (lambda: c.SoundConfig(source="fbank"), "sound.fbank_mean"),
        (lambda: replace(small(layers=()), decoder=c.DecoderConfig(sees="fusion_only")), "decoder.sees"),
    ],
)
def test_a_config_that_cannot_be_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_norms_of_the_fusion_branch_have_their_own_eps():
    encoder = DeepAVFusion(TINY).encoder
    assert encoder.fusion_norm.eps == encoder.fusion_blocks["0"].norm2.eps == EPS == 1e-5
    assert encoder.image.norm.eps == encoder.audio.blocks[0].norm1.eps == 1e-6
