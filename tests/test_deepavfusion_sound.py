"""DeepAVFusion: its sound, exactly and from the fbank, its heads' targets and scores, its schedule and optimizer."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.fbank import fbank
from training.evaluation.heads.class_metrics import semantic_scores
from training.methods.deepavfusion.encoder import Streams
from training.methods.deepavfusion.schedule import LARS, pretrained_share
from training.methods.deepavfusion.segmentation import SegmentationDecoder, segmentation_loss
from training.methods.deepavfusion.separation import SeparationDecoder, mask_target, separation_loss
from training.methods.deepavfusion.spectrogram import LogMel, from_fbank, three_seconds


def test_a_short_sound_goes_on_as_its_mirror_image():
    waveform = torch.arange(30000.0).view(1, -1)
    found = three_seconds(waveform)[0]
    assert found[:30000].equal(waveform[0]) and found[30000:30003].tolist() == [29999, 29998, 29997]
    padded = F.pad(waveform, (0, 18000))
    assert torch.equal(three_seconds(padded, torch.tensor([30000]))[0], found)
    assert three_seconds(torch.arange(50000.0).view(1, -1))[0, 0] == 1000


def test_silence_is_minus_seven_and_a_tone_lies_in_its_band():
    log_mel = LogMel()
    assert torch.allclose(log_mel(torch.zeros(1, 48000)), torch.tensor(-7.0))
    tone = (2 * math.pi * 1000 / 16000 * torch.arange(48000)).sin().unsqueeze(0)
    assert (log_mel(tone)[0, :, 5:-5].argmax(dim=0) == 44).all()  # 1000 of 2840 mel, in 129 steps, is 45.4


def test_the_fbank_gives_about_the_same_spectrogram():
    """Of noise that swells, above the lowest bands, where the fbank's pre-emphasis has left little."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(160000) / 16000
    wave = 0.1 * torch.randn(160000, generator=generator) * (1.1 + (2 * math.pi * time).sin())
    rows, valid = (torch.as_tensor(x) for x in fbank(wave.numpy()))
    rows, log_mel = rows.float().unsqueeze(0), LogMel()
    for place, start in ((None, 56000), (torch.zeros(1), 32000), (torch.ones(1), 80000)):
        exact = log_mel(wave[start : start + 48000].unsqueeze(0))
        found = from_fbank(rows, valid.view(1), place)
        error = (found - exact)[:, 10:]
        assert error.square().mean().sqrt() < 0.25 and error.mean().abs() < 0.03
        swell, expected = (x[:, 10:].mean(dim=(0, 1)) for x in (found, exact))
        assert torch.corrcoef(torch.stack([swell, expected]))[0, 1] > 0.97


def test_silence_is_silence_in_the_fbank_too():
    rows, valid = fbank(torch.zeros(160000).numpy())
    assert torch.allclose(
        from_fbank(torch.as_tensor(rows).float().unsqueeze(0), torch.tensor([valid])), torch.tensor(-7.0)
    )


def test_a_short_fbank_goes_on_as_its_mirror_image():
    rows = torch.full((1, 1024, 128), -10.0)
    rows[:, :100] = torch.linspace(-5, 0, 100).view(1, -1, 1)
    found = from_fbank(rows, torch.tensor([100]))[0, 60]
    assert found[:62].diff().min() >= 0 and found[70:120].diff().max() <= 0
    assert found[115] < found[65] - 1


def test_an_open_mask_gives_the_mix_back():
    """Every frequency from the first band's to the last's is fully covered by two triangles."""
    log_mel = LogMel()
    mix = (2 * math.pi * 1000 / 16000 * torch.arange(48000)).sin().unsqueeze(0)
    separated = log_mel.masked(mix, torch.full((1, 128, 192), 50.0))
    assert torch.allclose(separated[:, 1000:-1000], mix[:, 1000:-1000], atol=1e-2)


def test_a_source_is_where_it_is_the_louder_one():
    source, other = torch.tensor([[[0.0, -1.0]]]), torch.tensor([[[-1.0, 0.0]]])
    mix = (10**source + 10**other).log10()
    assert mask_target(source, mix, other).tolist() == [[[1, 0]]]
    assert mask_target(source, mix, kind="louder_than_mix").tolist() == [[[0, 0]]]
    assert mask_target(source, mix, kind="ratio")[0, 0, 0] == pytest.approx(1 / 2.1, abs=1e-4)
    with pytest.raises(ValueError, match="the other source"):
        mask_target(source, mix)


def test_pretrained_parts_rise_over_the_first_half():
    assert [round(pretrained_share(done), 3) for done in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]


def test_lars_leaves_what_has_no_gradient():
    weight, bias = torch.ones(2, 2), torch.ones(2)
    weight.grad = torch.ones(2, 2)
    LARS([weight, bias], lr=1.0).step()
    assert torch.allclose(weight, torch.full((2, 2), 1 - 1e-3)) and bias.equal(torch.ones(2))


def test_the_decoders_of_dense_tasks_see_both_modalities():
    torch.manual_seed(0)
    layers = [Streams(torch.randn(2, 12, 32), torch.randn(2, 6, 32), torch.randn(2, 5, 32)) for _ in range(3)]
    other = [Streams(layer.image, layer.audio.flip(0), layer.fusion) for layer in layers]
    unseen = [Streams(layer.image.flip(0), layer.audio, layer.fusion) for layer in layers]
    segmentation = SegmentationDecoder(32, classes=3, grid=(3, 4)).eval()
    separation = SeparationDecoder(32, grid=(2, 3)).eval()
    assert segmentation(layers).shape == (2, 3, 48, 64) and separation(layers).shape == (2, 32, 48)
    for decoder in (segmentation, separation):
        assert not any(torch.allclose(decoder(layers), decoder(changed)) for changed in (other, unseen))
    assert segmentation_loss(segmentation(layers), torch.zeros(2, 48, 64, dtype=torch.int64)).isfinite()
    scores, mix = separation(layers), torch.zeros(2, 32, 48)
    plain, weighted = (separation_loss(scores, mix, mix, is_weighted=weighted) for weighted in (False, True))
    assert weighted.item() == pytest.approx(plain.item() * math.log(2), rel=1e-5)


def scores_of(classes, count):
    """Logits [1, C, S, S] whose argmax is `classes` [S, S]."""
    return F.one_hot(classes, count).permute(2, 0, 1).float().unsqueeze(0)


def test_semantic_scores_are_means_over_the_images_of_a_class():
    target = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [2, 2]], [[0, 0], [0, 0]]])
    first, second = torch.tensor([[0, 0], [0, 1]]), torch.tensor([[0, 0], [2, 2]])
    logits = torch.cat([scores_of(first, 3), scores_of(second, 3), scores_of(first, 3)])
    found = semantic_scores(logits, target)  # the third image has no foreground: it is skipped
    assert found["miou"] == pytest.approx(((2 / 3 + 1) / 2 + 1 / 2 + 1) / 3)
    assert found["miou_noBg"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["recall_noBg"] == pytest.approx((1 / 2 + 1) / 2) and found["precision_noBg"] == pytest.approx(1)
    with pytest.raises(ValueError, match="nothing to score"):
        semantic_scores(logits[2:], target[2:])


def test_of_one_channel_the_f_is_the_best_threshold_s():
    logits = torch.tensor([[[[-3.0, -3.0], [-1.0, -1.0]]]])
    found = semantic_scores(logits, torch.tensor([[[0, 0], [1, 1]]]))
    assert found["miou"] == pytest.approx((1 / 2 + 0) / 2) and found["fscore"] == found["fscore_noBg"] == 1


def test_pixels_below_0_do_not_count():
    logits = scores_of(torch.tensor([[0, 1], [1, 1]]), 2)
    assert semantic_scores(logits, torch.tensor([[[0, -1], [1, 1]]]))["miou"] == pytest.approx(1)
