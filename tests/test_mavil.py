"""MAViL: masks, both stages' losses by hand, which weights learn, features, pictures, classifiers."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from tests.mavil import GRIDS, TINY, batch, on_meta, piece, tiny
from training.methods.interface import CachedLoss
from training.methods.mavil import MAViLConfig
from training.methods.mavil import config as c
from training.methods.mavil.classifier import MAViLClassifier
from training.methods.mavil.encoder import TubeProjection
from training.methods.mavil.losses import contrast
from training.methods.mavil.masking import finetune_audio_mask, finetune_video_mask
from training.methods.mavil.patches import patches_by_frame, patchify_video
from training.methods.shared.config_values import from_dict
from training.methods.shared.patches import patchify_image

# Masks


@pytest.mark.parametrize(
    ("frames", "ratio", "count", "kept"),
    [
        (8, 0.8, "floor", (102, 156)),
        (8, 0.8, "round", (102, 157)),
        (8, 0.7, "round", (154, 235)),
        (1, 0.8, "floor", (102, 39)),
    ],
)
def test_visible_tokens_are_counted_as_in_the_text(frames, ratio, count, kept):
    model, _ = on_meta(frames=frames, mask=c.MaskConfig(video_ratio=ratio, audio_ratio=ratio, count=count))
    views = model.views(torch.arange(3))
    assert {(mask.visible.shape[1], (~mask.is_masked).sum(1).unique().item()) for mask in views.audio} == {
        (kept[0],) * 2
    }
    assert {(mask.visible.shape[1], (~mask.is_masked).sum(1).unique().item()) for mask in views.video} == {
        (kept[1],) * 2
    }


@pytest.mark.parametrize("second", ["independent", "disjoint"])
def test_views_are_functions_of_the_seed_alone(second):
    model, _ = on_meta(mask=c.MaskConfig(second_view=second))
    whole, one = model.views(torch.arange(64)), model.views(torch.tensor([5]))
    for a, b in zip((*whole.audio, *whole.video), (*one.audio, *one.video), strict=True):
        assert torch.equal(a.visible[5], b.visible[0])
    for first, other in (whole.audio, whole.video):
        common = (~first.is_masked & ~other.is_masked).float().mean().item()
        assert common == (0 if second == "disjoint" else pytest.approx(0.04, abs=0.005))  # 20% of 20%


def test_structured_masks_hide_whole_times_and_twice_the_share_of_places():
    """At 0.8 of 64 x 8: 22 times and 6 bands, so 84 are left and 18 more are shown; of 4 x 196: a slot, 136 places."""
    model, _ = on_meta(mask=c.MaskConfig(audio_strategy="structured", video_strategy="structured"))
    views = model.views(torch.arange(5))
    for (first, second), kept in ((views.audio, 102), (views.video, 156)):
        assert first.visible.shape == second.visible.shape == (5, kept)
        assert not torch.equal(first.visible, second.visible)
    shown = (~views.audio[0].is_masked).unflatten(1, (64, 8))
    assert (shown.sum(1) >= 40).sum(1).tolist() == [2] * 5  # bands: shown at all 42 times, but for the rest
    hidden = views.video[0].is_masked.unflatten(1, (4, 196))
    assert hidden.all(2).sum(1).tolist() == [1] * 5 and bool((hidden.all(1).sum(1) >= 136).all())


def test_fine_tuning_hides_whole_times_and_bands():
    audio, video = finetune_audio_mask(torch.arange(3), (64, 8), 0.2), finetune_video_mask(torch.arange(3), 784, 0.2)
    assert audio.visible.shape == (3, 306) and video.visible.shape == (3, 627)
    grid = (~audio.is_masked).unflatten(1, (64, 8))
    assert grid.any(2).sum(1).tolist() == [51] * 3 and grid.any(1).sum(1).tolist() == [6] * 3
    assert torch.equal((~audio.is_masked).nonzero()[:, 1].view(3, -1), audio.visible)


# Stage 1


def by_hand(x, y, tau):
    """Eq. 2, as it stands."""
    x, y = x.double(), y.double()
    total = 0.0
    for i in range(len(x)):
        similar = torch.stack([x[i] @ other / x[i].norm() / other.norm() for other in y])
        total -= ((similar[i] / tau).exp() / (similar / tau).exp().sum()).log()
    return total / len(x)


def test_the_contrast_is_eq_2():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 5, generator=generator), torch.randn(24, 5, generator=generator)
    for tau in (0.1, 1.0):
        found = contrast(x, y, tau, negatives="global", is_symmetric=False)
        assert found.item() == pytest.approx(by_hand(x, y, tau).item(), rel=1e-5)
        both = contrast(x, y, tau, negatives="global", is_symmetric=True)
        assert both.item() == pytest.approx((by_hand(x, y, tau) + by_hand(y, x, tau)).item() / 2, rel=1e-5)
        groups = sum(by_hand(x[i : i + 8], y[i : i + 8], tau) for i in (0, 8, 16)) / 3
        assert contrast(x, y, tau, negatives="local", is_symmetric=False).item() == pytest.approx(
            groups.item(), rel=1e-5
        )


def test_the_side_compared_with_has_no_gradient_where_that_is_said():
    x, y = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    contrast(x, y, 1.0, negatives="no_gradient", is_symmetric=False).backward()
    assert x.grad is not None and y.grad is None


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(
            TINY,
            target=c.TargetConfig(norm_pix=False, reduction="patch_sum", video_values="frame"),
            contrast=c.ContrastConfig(intra_direction="symmetric", pooling="with_cls", inter_weight=0.3),
        ),
    ],
)
def test_the_loss_of_stage_1_is_eq_4(config):
    model, inputs = tiny(config), batch()
    output = model(inputs)
    views = model.views(inputs.seeds)
    seen = model.see(inputs.image, inputs.fbank, views)
    said_audio, said_video = model.decode(model.fusion(seen.audio, seen.video), views)
    first_frames = config.target.video_values == "frame"
    raw = 0.0
    for name, said, mask in (("pixel_audio", said_audio, views.audio[0]), ("pixel_image", said_video, views.video[0])):
        errors = []
        for b, n in mask.is_masked.nonzero().tolist():
            if name == "pixel_audio":
                t, f = divmod(n, 5)
                patch = inputs.fbank[b, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16].flatten()
            else:
                t, place = divmod(n, 12)
                y, x = divmod(place, 3)
                tube = inputs.image[b, 2 * t : 2 * t + (1 if first_frames else 2)]
                patch = tube[:, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].permute(0, 2, 3, 1).flatten()
            if config.target.norm_pix:
                patch = (patch - patch.mean()) / patch.std()
            error = (said[b, n] - patch).square()
            errors.append(error.mean() if config.target.reduction == "mean" else error.sum())
        expected = torch.stack(errors).mean()
        assert output.parts[name].item() == pytest.approx(expected.item(), rel=1e-4)
        raw = raw + expected.item()
    start = 0 if config.contrast.pooling == "with_cls" else 1
    a, a2, v, v2 = (
        sequence[:, start:].mean(1) for sequence in (seen.audio, seen.second_audio, seen.video, seen.second_video)
    )
    inter = (by_hand(a, v, 0.1) + by_hand(v, a, 0.1)) / 2
    intra = (by_hand(a, a2, 1.0) + by_hand(v, v2, 1.0)) / 2
    if config.contrast.intra_direction == "symmetric":
        intra = (intra + (by_hand(a2, a, 1.0) + by_hand(v2, v, 1.0)) / 2) / 2
    assert output.parts["inter"].item() == pytest.approx(inter.item(), rel=1e-4)
    assert output.parts["intra"].item() == pytest.approx(intra.item(), rel=1e-4)
    total = raw + config.contrast.inter_weight * inter.item() + 0.01 * intra.item()
    assert output.loss.item() == pytest.approx(total, rel=1e-4)


def test_the_second_view_is_encoded_by_itself():
    model, inputs = tiny(), batch()
    views = model.views(inputs.seeds)
    seen = model.see(inputs.image, inputs.fbank, views)
    swapped = model.see(inputs.image, inputs.fbank, replace(views, audio=views.audio[::-1], video=views.video[::-1]))
    assert torch.allclose(seen.second_audio, swapped.audio) and torch.allclose(seen.video, swapped.second_video)


def test_pieces_with_a_cached_contrast_have_the_gradient_of_the_batch():
    """All pairs of both losses, the second views' too."""
    model, inputs = tiny().double(), batch(6)
    inputs = replace(inputs, image=inputs.image.double(), fbank=inputs.fbank.double())
    whole = model(inputs)
    whole.loss.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    pieces = [piece(inputs, slice(0, 3)), piece(inputs, slice(3, 6))]
    with torch.no_grad():
        features = [model.contrast_features(p) for p in pieces]
    assert {name: len(pair) for name, pair in features[0].items()} == {"inter": 2, "intra": 4}
    cached = [{}, {}]
    for name in features[0]:
        sides = [torch.cat(side).requires_grad_() for side in zip(*(f[name] for f in features), strict=True)]
        loss = model.contrast_loss(name, sides)
        gradients = [(2 * g).split(3) for g in torch.autograd.grad(loss, sides)]
        for i in range(2):
            cached[i][name] = CachedLoss(loss=loss.detach(), features=tuple(g[i] for g in gradients))
    outputs = [model(p, known) for p, known in zip(pieces, cached, strict=True)]
    (sum(output.loss for output in outputs) / 2).backward()
    assert sum(output.loss.item() for output in outputs) / 2 == pytest.approx(whole.loss.item(), rel=1e-6)
    for name, value in model.named_parameters():
        assert torch.allclose(value.grad, expected[name], atol=1e-6), name


def test_hidden_tokens_of_one_place_say_the_same_at_all_times_where_positions_are_tiled():
    """The sheet's question 2: no position tells the times apart, and a hidden token has nothing else."""
    for positions, is_same in (("tiled", True), ("sincos3d", False)):
        model, inputs = tiny(replace(TINY, positions=positions)), batch()
        views = model.views(inputs.seeds)
        seen = model.see(inputs.image, inputs.fbank, views)
        said = model.decode(model.fusion(seen.audio, seen.video), views)[1].unflatten(1, (2, 12))
        hidden = views.video[0].is_masked.unflatten(1, (2, 12)).all(dim=1)
        assert hidden.any()
        assert torch.allclose(said[:, 0][hidden], said[:, 1][hidden], atol=1e-6) == is_same


VARIANTS = {
    "default": TINY,
    "still": replace(TINY, frames=1),
    "raw norms": replace(TINY, norms="raw"),
    "mbt": replace(TINY, fusion=c.FusionConfig(kind="mbt", depth=3)),
    "mbt separate": replace(TINY, fusion=c.FusionConfig(kind="mbt", mbt_blocks="separate")),
    "no fusion": replace(
        TINY, fusion=c.FusionConfig(depth=0), contrast=c.ContrastConfig(inter_weight=0, intra_weight=0)
    ),
    "inter": replace(TINY, contrast=c.ContrastConfig(intra_weight=0)),
    "intra": replace(TINY, contrast=c.ContrastConfig(inter_weight=0)),
    "recomputed": replace(TINY, checkpoint_activations=True),
    "stage 2": replace(TINY, target=c.TargetConfig(source="fusion")),
    "stage 2 uni, all": replace(TINY, target=c.TargetConfig(source="uni", on="all", normalised="norm")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_learns_or_says_that_it_does_not(name):
    config = VARIANTS[name]
    model, inputs = tiny(config), batch(frames=config.frames)
    if model.teacher is not None:
        model.set_teacher(tiny(config, seed=1).state_dict())
    output = model(inputs)
    output.loss.backward()
    assert model.has_contrast == ("inter" in output.parts or "intra" in output.parts)
    for of, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), of
        assert parameter.grad is None or parameter.grad.abs().sum() > 0 or "qkv.bias" in of, of
    assert from_dict(MAViLConfig, json.loads(json.dumps(asdict(config)))) == config


def test_recomputed_activations_change_nothing():
    inputs, found = batch(), []
    for again in (False, True):
        model = tiny(replace(TINY, checkpoint_activations=again))
        output = model(inputs)
        output.loss.backward()
        found.append((output.loss.detach(), model.video_encoder.proj.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)


@pytest.mark.parametrize("separate", [False, True])
def test_bottlenecks_are_the_only_way_between_the_modalities(separate):
    """MBT by hand: each modality attends with a copy of the bottleneck, the copies are averaged."""
    config = replace(
        TINY, fusion=c.FusionConfig(kind="mbt", mbt_blocks="separate" if separate else "shared"), norms="raw"
    )
    fusion = tiny(config).fusion
    audio, video = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    a, v, b = audio, video, fusion.bottleneck.expand(2, -1, -1)
    assert b.shape[1] == 4
    for i in range(2):
        of_a = fusion.blocks[i](torch.cat([a, b], dim=1))
        of_v = (fusion.video_blocks if separate else fusion.blocks)[i](torch.cat([v, b], dim=1))
        a, v, b = of_a[:, :5], of_v[:, :7], (of_a[:, 5:] + of_v[:, 7:]) / 2
    found = fusion(audio, video)
    assert torch.allclose(found[0], a, atol=1e-6) and torch.allclose(found[1], v, atol=1e-6)


# Stage 2


@pytest.mark.parametrize(
    ("source", "normalised"),
    [
        ("fusion", "layer_norm"),
        ("fusion", "none"),
        ("fusion", "norm"),
        ("fusion", "top3"),
        ("uni", "layer_norm"),
        ("separate", "norm"),
    ],
)
def test_targets_are_the_teacher_s_view_of_all_tokens(source, normalised):
    config = replace(TINY, target=c.TargetConfig(source=source, normalised=normalised))
    first = tiny(replace(TINY, fusion=c.FusionConfig(depth=0)) if source == "separate" else TINY, seed=1)
    for value in first.parameters():
        value.data.add_(torch.randn(value.shape), alpha=0.1)
    model, inputs = tiny(config), batch()
    with pytest.raises(ValueError, match="no teacher was loaded"):
        model(inputs)
    model.set_teacher(first.state_dict())
    sides = []
    for encoder, x in (
        (first.audio_encoder, inputs.fbank.unsqueeze(1)),
        (first.video_encoder, inputs.image.transpose(1, 2)),
    ):
        x = encoder.sequence(encoder.embed(x), None)
        states = []
        for block in encoder.blocks:
            states.append(x := block(x))
        sides.append((states, encoder.norm(x)))
    states, normed = ([side[i] for side in sides] for i in range(2))
    if source == "fusion":
        x = torch.cat(normed, dim=1)
        for block in first.fusion.blocks:
            x = block(x)
            states[0].append(x[:, :41])
            states[1].append(x[:, 41:])
        normed = [first.fusion.norm(state[-1]) for state in states]
    expected = {
        "layer_norm": [F.layer_norm(state[-1], (32,)) for state in states],
        "none": [state[-1] for state in states],
        "norm": normed,
        "top3": [sum(F.layer_norm(layer, (32,)) for layer in state[-3:]) / 3 for state in states],
    }[normalised]
    targets = model.teacher(inputs.image, inputs.fbank)
    for target, of in zip(targets, expected, strict=True):
        assert torch.allclose(target, of[:, 1:], atol=1e-4)
    output, views = model(inputs), model.views(inputs.seeds)
    seen = model.see(inputs.image, inputs.fbank, views)
    said = model.decode(model.fusion(seen.audio, seen.video), views)
    for name, pixels, target, mask in zip(
        ("context_audio", "context_image"), said, targets, (views.audio[0], views.video[0]), strict=True
    ):
        by_token = (pixels - target).square().mean(dim=-1)
        assert output.parts[name].item() == pytest.approx(by_token[mask.is_masked].mean().item(), rel=1e-5)
    assert set(output.parts) == {"context_audio", "context_image", "inter", "intra"}


def test_a_teacher_is_frozen_saved_and_the_next_student_s_start_where_that_is_said():
    first = tiny(seed=1)
    config = replace(TINY, target=c.TargetConfig(source="fusion", student="teacher"))
    model = tiny(config)
    model.set_teacher(first.state_dict())
    assert torch.equal(model.video_encoder.proj.weight, first.video_encoder.proj.weight)
    assert torch.equal(model.fusion.blocks[0].mlp.fc1.weight, first.fusion.blocks[0].mlp.fc1.weight)
    assert not torch.equal(model.audio_decoder.embed.weight, first.audio_decoder.embed.weight)
    assert not any(value.requires_grad for value in model.teacher.parameters())
    resumed = tiny(config, seed=5)
    resumed.load_state_dict(model.state_dict())
    inputs = batch()
    assert torch.equal(resumed(inputs).loss, model(inputs).loss)
    fresh = tiny(replace(config, target=c.TargetConfig(source="fusion")))
    fresh.set_teacher(model.state_dict())  # the next iteration: the last student teaches
    assert not torch.equal(fresh.video_encoder.proj.weight, first.video_encoder.proj.weight)
    assert torch.equal(fresh.teacher.video_encoder.proj.weight, model.video_encoder.proj.weight)


def test_a_teacher_of_another_size_is_refused_and_nothing_is_taken():
    model = tiny(replace(TINY, target=c.TargetConfig(source="fusion")))
    other = tiny(replace(TINY, frames=2), seed=1).state_dict()
    with pytest.raises(ValueError, match=r"video_encoder.positions is \[1, 13, 32\], the model's own is \[1, 25, 32\]"):
        model.set_teacher(other)
    with pytest.raises(ValueError, match="no teacher was loaded"):
        model(batch())
    with pytest.raises(ValueError, match="stage 1 and has no teacher"):
        tiny().set_teacher(other)


# Features, pictures, fine-tuning


def test_tubes_are_projected_as_by_a_convolution():
    projection, video = TubeProjection(3, 8, (2, 16, 16), (2, 16, 16)).double(), batch().image.transpose(1, 2).double()
    expected = F.conv3d(video, projection.weight, projection.bias, stride=(2, 16, 16))
    assert torch.allclose(projection(video), expected)


def test_features_of_one_modality_do_not_see_the_other():
    model, inputs = tiny(), batch()
    both, alone = model.encode(image=inputs.image, fbank=inputs.fbank), model.encode(image=inputs.image)
    assert alone.audio is None and alone.joint is None
    assert torch.equal(both.image.tokens, alone.image.tokens)
    assert (both.image.grid, both.audio.grid) == ((2, 4, 3), (8, 5))
    assert both.image.attention.shape == (4, 24) and bool((both.image.attention.sum(1) < 1).all())
    assert both.joint.tokens.shape == (4, 40 + 24, 32) and both.joint.pooled.shape == (4, 64)
    assert torch.allclose(both.joint.pooled[:, :32], both.joint.tokens[:, :40].mean(1), atol=1e-6)


@pytest.mark.parametrize("values", ["tube", "frame"])
def test_rebuilt_frames_lie_one_below_the_other(values):
    config = replace(TINY, target=c.TargetConfig(video_values=values))
    rebuilt, inputs = tiny(config).rebuild(batch()), batch()
    shown = 4 if values == "tube" else 2
    assert rebuilt["image"].grid == (shown * 4, 3) and rebuilt["image"].patches.shape == (4, shown * 12, 768)
    assert rebuilt["image"].is_masked.shape == (4, shown * 12)
    assert rebuilt["audio"].patches.shape == (4, 40, 256)
    frames = patches_by_frame(patchify_video(inputs.image, 2), 2, 768)
    assert torch.equal(frames, torch.cat([patchify_image(inputs.image[:, i]) for i in range(4)], dim=1))


@pytest.mark.parametrize(
    ("inputs", "given"), [(("joint",), "va"), (("audio", "video"), "a"), (("audio", "video"), "v")]
)
def test_a_classifier_learns_with_a_fifth_hidden(inputs, given):
    torch.manual_seed(0)
    model, data = MAViLClassifier(TINY, inputs=inputs, classes=7, grids=GRIDS), batch()
    video, fbank = (data.image if "v" in given else None), (data.fbank if "a" in given else None)
    torch.nn.init.normal_(model.heads[inputs[0 if given != "v" else -1]].linear.weight)
    scores = model(video, fbank, data.seeds)
    scores.square().sum().backward()
    used = {name for name, value in model.named_parameters() if value.grad is not None}
    unused = {"va": (), "a": ("video_encoder.", "heads.video."), "v": ("audio_encoder.", "heads.audio.")}[given]
    assert used == {name for name, _ in model.named_parameters() if not name.startswith(unused or "-")}
    assert not torch.allclose(scores, model(video, fbank))


def test_a_classifier_refuses_what_it_has_no_head_for():
    model = MAViLClassifier(TINY, inputs=("audio",), classes=7, grids=GRIDS)
    with pytest.raises(ValueError, match="has heads for audio"):
        model(batch().image, None)
    with pytest.raises(ValueError, match="has heads for audio"):
        model(None, None)
    with pytest.raises(ValueError, match="allowed are joint alone, or audio and video"):
        MAViLClassifier(TINY, inputs=("joint", "audio"), classes=7, grids=GRIDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(TINY, frames=3), "frames is 3: allowed are 1 and multiples of 2"),
        (lambda: replace(TINY, frames=0), "frames is 0"),
        (lambda: replace(TINY, norms="raw", target=c.TargetConfig(source="uni", normalised="norm")), "norms is 'raw'"),
        (lambda: replace(TINY, target=c.TargetConfig(source="uni", normalised="top3")), "the teacher has 2 blocks"),
        (lambda: replace(VARIANTS["stage 2"], fusion=c.FusionConfig(depth=0)), "fusion.depth is 0"),
        (lambda: c.TargetConfig(on="all"), "target.on is 'all'"),
        (lambda: c.MaskConfig(second_view="disjoint", audio_ratio=0.4), "two views without a common token"),
        (lambda: c.MaskConfig(second_view="disjoint", audio_strategy="structured"), "allowed is 'random'"),
        (lambda: c.MaskConfig(video_ratio=1.0), "mask.video_ratio is 1.0"),
        (lambda: c.ContrastConfig(intra_temperature=0), "contrast.intra_temperature is 0"),
        (lambda: c.ContrastConfig(negatives="some"), "contrast.negatives is 'some'"),
    ],
)  # fmt: skip
def test_choices_that_contradict_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
