"""MAViL: golden vectors, released layouts, MAE's weights, forms of the video, and counts of the paper's size."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.clips import FIXTURES
from tests.mavil import TINY, batch, on_meta, tiny
from tools import check_vectors
from training.methods.mavil import MAViLConfig
from training.methods.mavil import config as c
from training.methods.mavil.classifier import MAViLClassifier
from training.methods.mavil.weights import from_mae, from_released, in_form_of, is_released
from training.methods.shared.config_values import StackConfig
from training.methods.shared.patches import Grids

VECTORS = FIXTURES / "peers" / "mavil_tiny.safetensors"
with_vectors = pytest.mark.skipif(not VECTORS.is_file(), reason="no golden vectors here")


# Golden vectors


@with_vectors
def test_the_golden_vectors():
    rows = check_vectors.check(VECTORS, torch.float64, 1e-5)
    assert len(rows) == 19
    assert [row for row in rows if not row.is_equal] == []
    assert {row.name for row in rows if row.tolerance > 1e-5} == {
        f"outputs/fbank_rows{which}" for which in ("", "_own_statistics", "_dataset_statistics")
    }


@with_vectors
def test_the_command_says_which_entries_have_a_tolerance_of_their_own(capsys):
    with pytest.raises(SystemExit) as ended:
        check_vectors.main([str(VECTORS)])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[0] for line in lines if "its tolerance is 0.0005" in line]
    assert len(marked) == 3 and all(name.startswith("outputs/fbank_rows") for name in marked)


def test_vectors_of_another_size_by_plain_convolutions(tmp_path):
    """Width, depth, heads, grids, frames and classes come from the file."""
    sizes = {"dim": 32, "depth": 2, "heads": 4, "fusion_depth": 1, "fusion_depth_finetuned": 2, "patch": 16}
    sizes |= {"fbank": [48, 64], "video_frames_height_width": [4, 32, 48]}
    config = MAViLConfig(
        frames=4,
        encoder=StackConfig(dim=32, depth=2, heads=4),
        fusion=c.FusionConfig(depth=2),
        norms="raw",
    )
    torch.manual_seed(0)
    grids = Grids(image=(2, 3), audio=(3, 4))
    model = MAViLClassifier(config, inputs=("joint",), classes=5, grids=grids)
    for value in model.state_dict().values():
        value.add_(torch.randn(value.shape), alpha=0.1)
    fbank, video = torch.randn(3, 1, 48, 64), torch.randn(3, 3, 4, 32, 48)
    sequences = []
    for encoder, x in ((model.audio_encoder, fbank), (model.video_encoder, video)):
        conv = F.conv2d if x.ndim == 4 else F.conv3d
        tokens = conv(x, encoder.proj.weight, encoder.proj.bias, stride=encoder.proj.weight.shape[2:])
        tokens = tokens.flatten(2).transpose(1, 2) + encoder.positions[:, 1:]
        cls = (encoder.cls_token + encoder.positions[:, :1]).expand(3, -1, -1)
        sequences.append(encoder.blocks[1](encoder.blocks[0](torch.cat([cls, tokens], dim=1))))
    fusion_input = torch.cat(sequences, dim=1)
    fused = model.fusion.blocks[0](fusion_input)
    finetuned = model.fusion.blocks[1](fused)
    pooled = torch.cat([finetuned[:, 1:13].mean(1), finetuned[:, 14:].mean(1)], dim=1)
    outputs = {
        "video_tokens": sequences[1][:, 1:],
        "audio_pooled": sequences[0][:, 1:].mean(1, keepdim=True),
        "fused_sequence": fused,
        "finetuned_logits": model.heads["joint"](pooled),
    }
    tensors = {f"outputs/{name}": value for name, value in outputs.items()}
    for name, value in released_names(model.state_dict()).items():
        part = "weights_finetuned" if name.startswith(("blocks_av.1.", "fc_norm", "head")) else "weights"
        tensors[f"{part}/{name}"] = value
    tensors |= {"inputs/fbank": fbank, "inputs/video": video}
    path = tmp_path / "other.safetensors"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path, {"config": json.dumps(sizes)})
    rows = check_vectors.check(path, torch.float32, 1e-5)
    assert [row.name for row in rows if row.is_equal] == sorted(f"outputs/{name}" for name in outputs)


def released_names(state):
    """Our names as theirs: the other way about from what the reader does."""
    names = {"audio_encoder.blocks": "blocks", "video_encoder.blocks": "blocks_v", "fusion.blocks": "blocks_av"}
    names |= {"audio_encoder.proj": "patch_embed.proj", "video_encoder.proj": "patch_embed_v.proj"}
    names |= {"audio_encoder.cls_token": "cls_token", "video_encoder.cls_token": "cls_token_v"}
    names |= {"audio_encoder.positions": "pos_embed", "video_encoder.positions": "pos_embed_v"}
    names |= {"heads.joint.norm": "fc_norm_av", "heads.joint.linear": "head_av"}
    found = {}
    for name, value in state.items():
        stem = next(ours for ours in names if name == ours or name.startswith(f"{ours}."))
        found[names[stem] + name.removeprefix(stem)] = value
    return found


# Weights from elsewhere


def vit_block(stem, dim):
    shapes = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for layer, shape in shapes.items():
        yield f"{stem}.{layer}.weight", shape
        yield f"{stem}.{layer}.bias", shape[:1]
    for norm in ("norm1", "norm2"):
        yield f"{stem}.{norm}.weight", (dim,)
        yield f"{stem}.{norm}.bias", (dim,)


def released_layout(fusion, heads=(), dim=768):
    """Names and shapes of a released file, as reference code loads them."""
    layout = {
        "patch_embed.proj.weight": (dim, 1, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "patch_embed_v.proj.weight": (dim, 3, 2, 16, 16),
        "patch_embed_v.proj.bias": (dim,),
        "cls_token": (1, 1, dim),
        "cls_token_v": (1, 1, dim),
        "pos_embed": (1, 513, dim),
        "pos_embed_v": (1, 785, dim),
    }
    for stack, depth in (("blocks", 12), ("blocks_v", 12), ("blocks_av", fusion)):
        for i in range(depth):
            layout |= vit_block(f"{stack}.{i}", dim)
    for side in heads:
        width = 2 * dim if side == "av" else dim
        layout |= {f"fc_norm_{side}.weight": (width,), f"fc_norm_{side}.bias": (width,)}
        layout |= {f"head_{side}.weight": (527, width), f"head_{side}.bias": (527,)}
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def test_the_released_pre_trained_file_is_encoders_and_fusion():
    file = released_layout(2)
    assert is_released(file)
    state, left = from_released(
        file | {"norm.weight": torch.empty(768), "decoder_embed_v.weight": torch.empty(512, 768)}
    )
    assert left == ["norm.weight", "decoder_embed_v.weight"]
    model, _ = on_meta(norms="raw")
    own = {name: value for name, value in model.state_dict().items() if "_decoder." not in name}
    assert shapes(state) == shapes(own)


@pytest.mark.parametrize(("fusion", "sides", "inputs"), [(3, ("av",), ("joint",)), (0, ("a", "v"), ("audio", "video"))])
def test_the_released_fine_tuned_files_are_classifiers_whole(fusion, sides, inputs):
    state, left = from_released(released_layout(fusion, sides))
    config = MAViLConfig(norms="raw", fusion=c.FusionConfig(depth=fusion))
    with torch.device("meta"):
        model = MAViLClassifier(config, inputs=inputs, classes=527)
    assert not left and shapes(state) == shapes(model.state_dict())


def mae_file(config, dim=32):
    layout = {"patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,), "cls_token": (1, 1, dim)}
    layout |= {"pos_embed": (1, 13, dim), "norm.weight": (dim,), "norm.bias": (dim,), "mask_token": (1, 1, 16)}
    for i in range(config.encoder.depth):
        layout |= vit_block(f"blocks.{i}", dim)
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in layout.items()}


@pytest.mark.parametrize("inflate", ["repeat", "halved"])
def test_mae_starts_the_video_and_the_fusion(inflate):
    file = mae_file(TINY)
    state, left = from_mae(file, TINY, inflate=inflate)
    assert left == ["mask_token"]
    model = tiny()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith(("video_encoder.", "fusion.blocks."))]
    still = batch().image[:, :1]
    video = still.expand(-1, 4, -1, -1, -1).transpose(1, 2)
    found = model.video_encoder.embed(video) - model.video_encoder.positions[:, 1:]
    scale = 2 if inflate == "repeat" else 1
    in_mae = F.conv2d(still[:, 0], file["patch_embed.proj.weight"], stride=16).flatten(2).transpose(1, 2)
    assert torch.allclose(found, scale * in_mae.repeat(1, 2, 1) + file["patch_embed.proj.bias"], atol=1e-4)
    last = file["blocks.1.mlp.fc1.weight"]
    assert torch.equal(model.fusion.blocks[1].mlp.fc1.weight, last)
    assert not any(name.startswith("fusion.") for name in from_mae(file, TINY, fusion="fresh")[0])


def test_mae_starts_both_stacks_of_a_separate_mbt():
    config = replace(TINY, fusion=c.FusionConfig(kind="mbt", mbt_blocks="separate"))
    state, _ = from_mae(mae_file(config), config)
    missing, unexpected = tiny(config).load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "fusion" in name and "blocks" in name]


@pytest.mark.parametrize("positions", ["tiled", "sincos3d"])
def test_a_doubled_still_through_the_video_model_is_the_image_model(positions):
    video = tiny(replace(TINY, frames=2, positions=positions))
    image = tiny(replace(TINY, frames=1, positions=positions), seed=1)
    image.load_state_dict(in_form_of(image.state_dict(), video.state_dict()))
    inputs = batch(frames=1)
    doubled = replace(inputs, image=inputs.image.expand(-1, 2, -1, -1, -1))
    a, b = image.encode(image=inputs.image, fbank=inputs.fbank), video.encode(image=doubled.image, fbank=inputs.fbank)
    assert torch.allclose(a.image.tokens, b.image.tokens, atol=1e-5)
    assert torch.allclose(a.joint.tokens, b.joint.tokens, atol=1e-5)
    views = image.views(inputs.seeds)
    said = [
        model.decode(model.fusion(seen.audio, seen.video), views)[1]
        for model, given in ((image, inputs), (video, doubled))
        for seen in (model.see(given.image, given.fbank, views),)
    ]
    assert torch.allclose(said[0], said[1].unflatten(2, (2, -1)).mean(dim=2), atol=1e-5)
    back = tiny(replace(TINY, frames=2, positions=positions), seed=2)
    back.load_state_dict(in_form_of(back.state_dict(), image.state_dict()))
    assert torch.allclose(back.encode(image=doubled.image).image.tokens, a.image.tokens, atol=1e-5)


def test_eight_frames_become_a_still_and_a_still_eight_frames():
    video, image = tiny(replace(TINY, frames=8)), tiny(replace(TINY, frames=1), seed=1)
    still = in_form_of(image.state_dict(), video.state_dict())
    assert shapes(still) == shapes(image.state_dict())
    assert torch.equal(still["video_encoder.positions"], image.video_encoder.positions)
    again = in_form_of(video.state_dict(), still)
    assert shapes(again) == shapes(video.state_dict())
    assert torch.equal(again["video_decoder.positions"], video.video_decoder.positions)


# Counts of the paper's size


def millions(module):
    return round(sum(value.numel() for value in module.parameters()) / 1e6, 1)


def test_parameters_are_those_of_the_paper():
    model, _ = on_meta()
    assert [millions(part) for part in (model.audio_encoder, model.video_encoder, model.fusion)] == [85.3, 86.2, 14.2]
    assert [millions(part) for part in (model.audio_decoder, model.video_decoder)] == [25.7, 26.4]
    positions = model.video_decoder.positions.numel() / 1e6
    assert round(millions(model.video_decoder) + positions, 1) == 26.8  # "27M"
    student, _ = on_meta(target=c.TargetConfig(source="fusion"))
    assert [millions(part) for part in (student.audio_decoder, student.video_decoder)] == [26.0, 26.0]


def macs(model, inputs):
    """Multiply-adds (10^9) of a forward pass, by module."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(inputs)
    return {name.removeprefix("MAViL."): sum(of.values()) / 2e9 for name, of in counter.get_flop_counts().items()}


@pytest.mark.parametrize(
    ("frames", "video", "fusion", "video_decoder", "stage1", "second_view", "student", "teacher"),
    [(8, 79.0, (3.9, 23.6), 25.5, 91.0, 22.7, 90.9, 151.0), (1, 17.6, (2.1, 11.6), 5.4, 47.6, 12.4, 47.7, 77.7)],
)
def test_multiply_adds_of_a_sample(frames, video, fusion, video_decoder, stage1, second_view, student, teacher):
    found = macs(*on_meta(frames=frames))
    near = {"audio_decoder": 15.2, "video_decoder": video_decoder, "fusion": fusion[0], "Global": stage1}
    assert {name: found[name] for name in near} == pytest.approx(near, abs=0.051)
    both_views = found["audio_encoder"] + found["video_encoder"]
    assert both_views / 2 == pytest.approx(second_view, abs=0.051)
    later = macs(*on_meta(frames=frames, target=c.TargetConfig(source="fusion")))

    def of_teacher(part, depth):
        return sum(later[f"teacher.{part}.blocks.{i}"] for i in range(depth)) + later.get(f"teacher.{part}.proj", 0)

    full = [of_teacher("audio_encoder", 12), of_teacher("video_encoder", 12), of_teacher("fusion", 2)]
    assert full == pytest.approx([48.5, video, fusion[1]], abs=0.051)
    assert [sum(full), later["Global"] - sum(full)] == pytest.approx([teacher, student], abs=0.11)
