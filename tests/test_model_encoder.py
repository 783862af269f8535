"""The encoder against timm's own ViT, the attention of [CLS], and the choice of Attentive Tokens."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from training.methods.crossmae.attentive import attentive_places, attentive_tokens
from training.methods.crossmae.config import AttentiveConfig
from training.methods.shared.blocks import LayerNorm, take
from training.methods.shared.encoder import Encoder, EncoderConfig, Features, cls_attention
from training.methods.shared.masking import Mask, mask_image
from training.methods.shared.streams import IMAGE_ATTENTIVE

TINY = EncoderConfig(dim=64, depth=3, heads=4)
SIZES = [((224, 224), 3, 196), ((1024, 128), 1, 512)]


def encoder(shape: tuple[int, int], channels: int) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(TINY, shape=shape, channels=channels).eval()
    for name, parameter in made.named_parameters():  # biases and norms start at 0 and 1, which would hide mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.2)
    return made


@pytest.mark.parametrize(("shape", "channels", "tokens"), SIZES)
def test_equals_timm(shape: tuple[int, int], channels: int, tokens: int) -> None:
    """Same names, same weights, same features as timm's VisionTransformer on the full view."""
    ours = encoder(shape, channels)
    vit = VisionTransformer(
        img_size=shape,  # type: ignore[arg-type]
        patch_size=16,
        in_chans=channels,
        num_classes=0,
        embed_dim=TINY.dim,
        depth=TINY.depth,
        num_heads=TINY.heads,
        norm_layer=LayerNorm,
    ).eval()
    vit.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, channels, *shape)
    with torch.no_grad():
        expected = vit.forward_features(x)
        features = ours(x)
    assert features.tokens.shape == (2, tokens, TINY.dim)
    torch.testing.assert_close(features.cls, expected[:, 0])
    torch.testing.assert_close(features.tokens, expected[:, 1:])
    torch.testing.assert_close(features.pooled, expected[:, 1:].mean(dim=1))


def test_positions_are_fixed_and_saved() -> None:
    """A stored table (AudioMAE's is not its formula's) is loaded, never trained."""
    made = encoder((224, 224), 3)
    assert "pos_embed" in made.state_dict() and "pos_embed" not in dict(made.named_parameters())
    assert not made.pos_embed[:, 0].any()


def test_visible_tokens_only() -> None:
    """Hidden pixels reach nothing, and a visible token is the same wherever it stands in the list."""
    made, x = encoder((224, 224), 3), torch.randn(2, 3, 224, 224)
    visible = torch.tensor([[0, 17, 30], [5, 6, 195]])
    is_masked = torch.ones(2, 196, dtype=torch.bool).scatter(1, visible, False)
    changed = x + 10 * is_masked.view(2, 1, 14, 14).repeat_interleave(16, 2).repeat_interleave(16, 3)
    with torch.no_grad():
        a, b, c = made(x, visible), made(changed, visible), made(x, visible.flip(1))
    torch.testing.assert_close(vars(a), vars(b))
    torch.testing.assert_close(a.tokens, c.tokens.flip(1))
    torch.testing.assert_close(a.cls, c.cls)


@pytest.mark.parametrize(("shape", "channels", "tokens"), SIZES)
def test_cls_attention_is_the_row_of_the_full_softmax(shape: tuple[int, int], channels: int, tokens: int) -> None:
    made, x = encoder(shape, channels), torch.randn(2, channels, *shape)
    inputs: list[Tensor] = []
    last: Any = made.blocks[-1]
    last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    features = made(x)
    qkv = last.attn.qkv(last.norm1(inputs[0])).view(2, 1 + tokens, 3, TINY.heads, -1)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    full = (q @ k.transpose(-1, -2) / (TINY.dim // TINY.heads) ** 0.5).softmax(dim=-1)  # [B, heads, 1 + N, 1 + N]
    torch.testing.assert_close(features.attention, full.mean(dim=1)[:, 0, 1:])
    assert not features.attention.requires_grad and features.tokens.requires_grad
    torch.testing.assert_close(cls_attention(last, inputs[0]), features.attention)


def test_cls_attention_is_float32_under_autocast() -> None:
    """Its top tokens are the Attentive ones: rounded to bf16, tokens tie and chance chooses among them."""
    made, x = encoder((1024, 128), 1), torch.randn(2, 513, TINY.dim)
    last: Any = made.blocks[-1]
    expected = cls_attention(last, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cls_attention(last, x), expected)


SEEDS = torch.tensor([3, 4])
MASK = mask_image(SEEDS, 196, 0.75)


def shown() -> Features:
    """Features of 49 visible tokens; attention and tokens know nothing of each other."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 49, 8, generator=generator).requires_grad_()
    attention = torch.rand(2, 49, generator=generator)
    return Features(tokens.mean(dim=1), tokens, torch.randn(2, 8, generator=generator), attention)


def places(config: AttentiveConfig, features: Features, mask: Mask = MASK, seeds: Tensor = SEEDS) -> Tensor:
    return attentive_places(config, features, mask, 12, seeds=seeds, stream=IMAGE_ATTENTIVE)


def test_attentive_tokens_are_the_top_k() -> None:
    features = shown()
    chosen = places(AttentiveConfig(), features)
    for b in range(2):
        scores = features.attention[b].tolist()
        assert set(chosen[b].tolist()) == set(sorted(range(49), key=lambda n: -scores[n])[:12])


def test_cosine_is_the_letter_of_eq_5() -> None:
    features = shown()
    chosen = places(AttentiveConfig(score="cosine"), features)
    for b in range(2):
        cls, tokens = features.cls[b].double(), features.tokens[b].detach().double()
        scores = [float(token @ cls / token.norm() / cls.norm()) for token in tokens]
        assert set(chosen[b].tolist()) == set(sorted(range(49), key=lambda n: -scores[n])[:12])


def test_random_tokens_are_the_seeds() -> None:
    """Table 6: whatever the attention, and alone as in a batch."""
    config, features = AttentiveConfig(kind="random"), shown()
    chosen = places(config, features)
    alone = Features(*(value[1:] for value in (features.pooled, features.tokens, features.cls, -features.attention)))
    mask = Mask(MASK.visible[1:], MASK.is_masked[1:])
    assert torch.equal(places(config, alone, mask, SEEDS[1:])[0], chosen[1])
    assert len(set(chosen[0].tolist())) == 12
    assert not torch.equal(chosen, places(config, features, seeds=SEEDS + 1))


def test_a_choice_has_no_gradient_and_the_chosen_have() -> None:
    features = shown()
    chosen = places(AttentiveConfig(score="cosine"), features)
    assert not chosen.is_floating_point()
    attentive_tokens(AttentiveConfig(), features, chosen).sum().backward()
    assert features.tokens.grad is not None
    kept = torch.zeros(2, 49).scatter(1, chosen, 1.0)
    assert torch.equal(features.tokens.grad, kept.unsqueeze(-1).expand_as(features.tokens))


def test_zero_vectors() -> None:
    features = shown()
    tokens = attentive_tokens(AttentiveConfig(kind="zeros"), features, places(AttentiveConfig(), features))
    assert tokens.shape == (2, 12, 8) and not tokens.any()


def test_take() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert take(x, torch.tensor([[2], [0]])).tolist() == [[[4, 5]], [[6, 7]]]
