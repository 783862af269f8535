"""Padding: where it begins, and that a model which leaves it out is told nothing by it."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from shards_spec.errors import UserError
from tests.models import SMALLEST, batch, build, gradients, switched, told
from training.finetune.augment import AugmentConfig, draw_mix, mixed_frames
from training.finetune.classifier import Classifier
from training.finetune.config import parse_finetune
from training.flops import flops_per_sample
from training.methods.crossmae import CrossMAEConfig
from training.methods.crossmae.diagnostics import diagnose, effective_rank, spread
from training.methods.shared.encoder import EncoderConfig, Features
from training.methods.shared.losses import Normalise, embedding_loss, pixel_loss
from training.methods.shared.masking import AudioStrategy, kept_count, mask_audio
from training.methods.shared.padding import valid_tokens
from training.methods.shared.patches import FBANK_GRID, patchify_image
from training.stream.loader import count_valid_frames

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = torch.tensor([998, 498, 24])  # 10 s, 5 s, a quarter of a second: 504, 256 and 16 of 512 tokens
TOKENS = [504, 256, 16]


def leaving_out(config: CrossMAEConfig) -> CrossMAEConfig:
    return replace(config, encoder=replace(config.encoder, padding="left_out"))


def padded(filling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Image, fbank and seeds of clips of FRAMES, the tokens that hold no sound filled with a value."""
    image, fbank, seeds = batch(len(FRAMES))
    rows = torch.arange(1024) >= -(-FRAMES // 16)[:, None] * 16
    return image, fbank.masked_fill(rows[:, :, None], filling), seeds


# -------------------------------------------------------------------- where it begins


def test_valid_frames_of_stored_fbanks() -> None:
    """Up to the last row that is not all zero; digital silence is log(eps), and no row of sound is zero in bin 3."""
    fbank = torch.zeros(5, 1024, 128, dtype=torch.float16)
    fbank[0, :998] = 2.5
    fbank[1, :498] = -15.94
    fbank[2, :1, 3] = -15.94
    fbank[3] = 1
    counted = count_valid_frames(fbank)  # the last one is nothing but zeros: there is no padding to tell from sound
    assert counted.dtype == torch.int64 and counted.tolist() == [998, 498, 1, 1024, 1024]
    fbank[0, 100:200] = 0  # no fbank of ours; rows count to the last one that holds anything
    assert count_valid_frames(fbank)[0] == 998


def test_a_token_with_one_row_of_sound_is_valid() -> None:
    frames = torch.tensor([0, 1, 16, 17, 998, 1024])
    is_valid = valid_tokens("left_out", frames)
    assert is_valid is not None and is_valid.shape == (6, 512)
    assert is_valid.sum(dim=1).tolist() == [8, 8, 8, 16, 504, 512]
    assert is_valid[3].nonzero().flatten().tolist() == list(range(16))  # time-major: the first two steps
    assert valid_tokens("counted", None) is None and valid_tokens("counted", frames) is None
    with pytest.raises(ValueError, match="needs valid_frames"):
        valid_tokens("left_out", None)


# -------------------------------------------------------------------- masks


@pytest.mark.parametrize("strategy", get_args(AudioStrategy))
@pytest.mark.parametrize("ratio", [0.0, 0.75, 0.9])
def test_the_mask_ratio_is_one_of_the_valid_tokens(strategy: AudioStrategy, ratio: float) -> None:
    seeds, is_valid = torch.arange(3), valid_tokens("left_out", FRAMES)
    assert is_valid is not None
    mask = mask_audio(seeds, FBANK_GRID, ratio, strategy, is_valid)
    shown = ~mask.is_masked
    assert mask.visible.shape == (3, kept_count(512, 1 - ratio))
    assert torch.equal(shown.nonzero()[:, 1].view(3, -1), mask.visible)  # ascending, and what is_masked says
    assert (shown & is_valid).sum(dim=1).tolist() == [kept_count(count, 1 - ratio) for count in TOKENS]


@pytest.mark.parametrize("strategy", get_args(AudioStrategy))
def test_without_padding_the_mask_is_the_same(strategy: AudioStrategy) -> None:
    seeds = torch.arange(4)
    plain = mask_audio(seeds, FBANK_GRID, 0.75, strategy)
    mask = mask_audio(seeds, FBANK_GRID, 0.75, strategy, torch.ones(4, 512, dtype=torch.bool))
    assert torch.equal(mask.visible, plain.visible) and torch.equal(mask.is_masked, plain.is_masked)


def test_a_step_that_is_shown_is_whole_among_the_valid_ones() -> None:
    is_valid = valid_tokens("left_out", torch.tensor([320]))  # 20 steps, of which 5 are shown
    assert is_valid is not None
    mask = mask_audio(torch.tensor([5]), FBANK_GRID, 0.75, "time", is_valid)
    steps = (~mask.is_masked & is_valid).view(64, 8).sum(dim=1)
    assert sorted(steps.tolist()) == [0] * 59 + [8] * 5


# -------------------------------------------------------------------- the model


KINDS: dict[str, CrossMAEConfig] = {
    "crossmae": SMALLEST,
    "every_block": replace(
        switched("pixel", conditioning="every_block", loss_on="all"),
        embedding=replace(SMALLEST.embedding, targets="visible_only", normalise="feature"),
        contrast=replace(SMALLEST.contrast, pooling="cls"),
    ),
    "tokens": replace(
        switched("embedding", queries="tokens", targets="ema"),
        attentive=replace(SMALLEST.attentive, score="cosine", base="patches"),
    ),
    "feature": replace(
        switched("pixel", loss_on="visible", norm_pix=False),
        embedding=replace(SMALLEST.embedding, normalise="feature", target_gradient=True),
        attentive=replace(SMALLEST.attentive, kind="random"),
        checkpoint_activations=True,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_left_out_padding_reaches_nothing(kind: str) -> None:
    """Whatever it is filled with, every loss, gradient and diagnosis is the same to the bit."""
    models = [build(leaving_out(KINDS[kind])) for _ in range(2)]
    parts, found = [], []
    for model, filling in zip(models, (0.8, -7.0), strict=True):
        output = model(told(*padded(filling), FRAMES))
        output.loss.backward()
        parts.append(output.parts)
        found.append(diagnose(model, told(*padded(filling), FRAMES)))
    assert all(value.isfinite() for value in (parts[0] | found[0]).values())
    torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    ours, theirs = map(gradients, models)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in ours.values())
    assert all(torch.equal(part, found[0].get(f"{name}_matched", part)) for name, part in parts[0].items())


def test_counted_padding_counts_as_in_the_papers() -> None:
    model = build()
    first, second = (model(told(*padded(filling), FRAMES)).parts for filling in (0.8, -7.0))
    assert not any(torch.equal(first[name], second[name]) for name in first)
    without = model(told(*padded(0.8))).parts
    torch.testing.assert_close(first, without, rtol=0, atol=0)  # nobody looks where it begins


def test_without_padding_both_are_the_same() -> None:
    counted, left_out = build(), build(leaving_out(SMALLEST))
    whole = torch.full((2,), 1024)
    torch.testing.assert_close(left_out(told(*batch(), whole)).parts, counted(told(*batch())).parts)
    found, expected = diagnose(left_out, told(*batch(), whole)), diagnose(counted, told(*batch()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_is_its_valid_tokens_alone() -> None:
    """Full view and masked view are those of an encoder that is shown the valid tokens and no others."""
    model, plain = build(leaving_out(SMALLEST)), build()
    _, fbank, seeds = padded(0.8)
    features, view = model.encode_audio(fbank, FRAMES), model.see_audio(fbank, seeds, FRAMES)
    for i, count in enumerate(TOKENS):
        one = fbank[i : i + 1].unsqueeze(1)
        alone = plain.audio_encoder(one, torch.arange(count)[None])
        torch.testing.assert_close(features.pooled[i], alone.pooled[0])
        torch.testing.assert_close(features.cls[i], alone.cls[0])
        torch.testing.assert_close(features.tokens[i, :count], alone.tokens[0])
        torch.testing.assert_close(features.attention[i], torch.nn.functional.pad(alone.attention[0], (0, 512 - count)))
        visible = view.mask.visible[i : i + 1]
        visible = visible[visible < count][None]
        seen = plain.audio_encoder(one, visible)
        torch.testing.assert_close(view.features.pooled[i], seen.pooled[0])
        chosen = seen.attention[0].topk(max(1, kept_count(visible.shape[1], 0.25))).indices
        assert view.is_attentive[i].nonzero().flatten().tolist() == visible[0, chosen].sort().values.tolist()
    with pytest.raises(ValueError, match="needs valid_frames"):
        model.encode_audio(fbank)


@torch.no_grad()
def test_a_batch_of_unequal_lengths_is_its_samples() -> None:
    config = replace(SMALLEST, contrast=replace(SMALLEST.contrast, enabled=False))
    model, inputs = build(leaving_out(config)), padded(0.8)
    whole = model(told(*inputs, FRAMES)).parts
    alone = [model(told(*(x[i : i + 1] for x in inputs), FRAMES[i : i + 1])).parts for i in range(3)]
    for name, part in whole.items():
        torch.testing.assert_close(part, torch.stack([parts[name] for parts in alone]).mean())


def test_another_clips_tokens_bring_their_own_padding() -> None:
    """The shuffled diagnosis: sample i with the Attentive Tokens, and those alone, that sample i - 1 has."""
    model = build(leaving_out(SMALLEST))
    image, fbank, seeds = padded(0.8)
    found = diagnose(model, told(image, fbank, seeds, FRAMES))
    seen, heard = model.see_image(image, seeds), model.see_audio(fbank, seeds, FRAMES)
    assert model.image_decoder is not None and heard.is_chosen is not None
    assert heard.is_chosen.sum(dim=1).tolist() == [kept_count(kept_count(n, 0.25), 0.25) for n in TOKENS]
    errors, own = [], seen.features
    for i, other in enumerate((2, 0, 1)):
        chosen = heard.attentive[other][heard.is_chosen[other]][None]
        features = Features(*(value[i : i + 1] for value in (own.pooled, own.tokens, own.cls, own.attention)))
        made = model.image_decoder(features, seen.mask.visible[i : i + 1], chosen)
        one = replace(seen.mask, visible=seen.mask.visible[i : i + 1], is_masked=seen.mask.is_masked[i : i + 1])
        errors.append(model.pixel_loss(made, patchify_image(image[i : i + 1]), one))
    torch.testing.assert_close(found["cdt_visual_shuffled"], torch.stack(errors).mean())


# -------------------------------------------------------------------- losses by hand


def test_losses_by_hand() -> None:
    predicted, true = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    is_masked = torch.tensor([[True, True, False, True], [True, False, True, True]])
    is_valid = torch.tensor([[True, True, True, False], [True, True, False, False]])
    error = (predicted - true).square().mean(dim=2)
    plain: dict[str, Any] = {"norm_pix": False, "reduction": "mean"}
    masked = pixel_loss(predicted, true, is_masked, is_valid, on="masked", **plain)
    torch.testing.assert_close(masked, ((error[0, 0] + error[0, 1]) / 2 + error[1, 0]) / 2)
    everything = pixel_loss(predicted, true, is_masked, is_valid, on="all", **plain)
    torch.testing.assert_close(everything, (error[0, :3].mean() + error[1, :2].mean()) / 2)
    for normalise in get_args(Normalise):
        target = [true[0, :3], true[1, :2]]
        if normalise == "feature":
            rows = torch.cat(target)
            target = [(t - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + 1e-6).sqrt() for t in target]
        else:
            target = [torch.nn.functional.layer_norm(t, (3,), eps=1e-6) for t in target]
        errors = [(p[: len(t)] - t).square().mean() for p, t in zip(predicted, target, strict=True)]
        loss = embedding_loss(predicted, true, is_valid, normalise=normalise, reduction="mean")
        torch.testing.assert_close(loss, sum(errors) / 2)
    rows = torch.cat([true[0, :3], true[1, :2]])
    torch.testing.assert_close(spread(true, is_valid), spread(rows))
    torch.testing.assert_close(effective_rank(true, is_valid), effective_rank(rows))


# -------------------------------------------------------------------- around it


def test_bf16_and_the_count_of_flops() -> None:
    config = leaving_out(SMALLEST)
    model = build(config)
    exact = model(told(*padded(0.8), FRAMES)).parts
    with torch.autocast("cpu", torch.bfloat16):
        found = model(told(*padded(0.8), FRAMES)).parts
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    assert flops_per_sample("crossmae", config) == flops_per_sample("crossmae", SMALLEST)


def test_a_classifier_leaves_it_out_too() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(dim=32, depth=2, heads=2, padding="left_out")
    model = Classifier(config, inputs="av", classes=3)
    (image, fbank, _), (_, other, _) = padded(0.8), padded(-7.0)
    assert torch.equal(model(image, fbank, FRAMES), model(image, other, FRAMES))
    assert not torch.equal(model(image, fbank, FRAMES), model(image, fbank, FRAMES.flip(0)))


def test_of_two_mixed_sounds_the_longer_ends_last() -> None:
    config, seeds = AugmentConfig(mixup=0.5), torch.arange(40)
    frames = torch.arange(40) * 20 + 10
    mix = draw_mix(seeds, config)
    expected = [
        own if share == 1 else max(own, other)
        for own, other, share in zip(frames.tolist(), frames[mix.partner].tolist(), mix.share.tolist(), strict=True)
    ]
    assert mixed_frames(frames, seeds, config).tolist() == expected != frames.tolist()
    assert torch.equal(mixed_frames(frames, seeds, AugmentConfig()), frames)


def test_what_would_roll_padding_into_the_sound_is_refused() -> None:
    words = ["--data=d", "--out=o", "--encoder.padding=left_out"]
    assert parse_finetune([*words, "--augment.shift=0"]).encoder.padding == "left_out"
    with pytest.raises(UserError, match=r"--augment.shift 16 rolls the padding"):
        parse_finetune([*words, "--augment.shift=16"])
    with pytest.raises(ValueError, match=r"encoder\.padding is 'both'"):
        EncoderConfig(padding="both")  # type: ignore[arg-type]
