"""Golden losses and gradients: any change to what is computed shows here.

Weights and inputs come from our own hash, not from torch's generator. A gradient is looked at by part, and told by a
number that each of its values moves: its product with a fixed random direction, beside its length.

float32 sums are taken in another order by other machines and torch versions: that moves a loss by some 1e-6 and a
gradient by 1e-7 of its length. Another clip's Attentive Tokens, at the small weights here, move a pixel loss by 1.6e-5,
which a tolerance may hide, and the gradient of what attends to them by 0.7% of its length.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.models import SMALLEST, TINY, told
from training.methods.crossmae import CrossMAE, CrossMAEConfig
from training.methods.shared.masking import noise

SWITCHED = replace(
    SMALLEST,
    attentive=replace(SMALLEST.attentive, base="patches", image_ratio=0.2, audio_ratio=0.1, score="cosine"),
    contrast=replace(SMALLEST.contrast, pooling="mlp", learnable_temperature=True),
    pixel=replace(SMALLEST.pixel, conditioning="every_block", loss_on="visible", norm_pix=False),
    embedding=replace(SMALLEST.embedding, queries="tokens", targets="visible_only", target_gradient=True),
)
CONFIGS = {"default": TINY, "switched": SWITCHED}

LOSSES: dict[str, dict[str, float]] = {
    "default": {
        "contrast": 1.3805102,
        "cdt_visual": 1.2204338,
        "cdt_audio": 1.2120816,
        "emb_visual": 1.2652562,
        "emb_audio": 1.1435258,
    },
    "switched": {
        "contrast": 1.3858037,
        "cdt_visual": 0.8571882,
        "cdt_audio": 0.8623333,
        "emb_visual": 1.1217067,
        "emb_audio": 1.0827293,
    },
}
# Of each part: its gradient times a fixed direction, and the length of its gradient.
GRADIENTS: dict[str, dict[str, tuple[float, float]]] = {
    "default": {
        "image_encoder": (0.1700214, 0.574054),
        "audio_encoder": (0.2021568, 0.923377),
        "image_decoder": (-0.05737441, 0.2860855),
        "image_decoder, cross": (0.008854462, 0.00996694),
        "audio_decoder": (0.01421937, 0.4007916),
        "audio_decoder, cross": (0.002274952, 0.009692177),
        "image_from_audio": (0.2473553, 1.8088),
        "image_from_audio, cross": (0.1121649, 0.975823),
        "audio_from_image": (-0.1420624, 2.221947),
        "audio_from_image, cross": (-0.2373687, 0.9570711),
    },
    "switched": {
        "image_encoder": (0.02516015, 0.2932809),
        "audio_encoder": (0.2519078, 0.3976728),
        "contrast": (-0.001451684, 0.006057299),
        "image_decoder": (0.02963177, 0.105375),
        "image_decoder, cross": (-0.0002509047, 0.02166816),
        "audio_decoder": (-0.02425471, 0.187574),
        "audio_decoder, cross": (-0.005140083, 0.03243112),
        "image_from_audio": (0.3426168, 1.009952),
        "image_from_audio, cross": (0.02104272, 0.1889303),
        "audio_from_image": (-0.3930616, 1.5463),
        "audio_from_image, cross": (0.2516487, 0.3130069),
    },
}

pytestmark = pytest.mark.usefixtures("one_thread")


def uniform(seed: int, *shape: int) -> Tensor:
    """Values in [-0.5, 0.5) of a seed."""
    values = noise(torch.tensor([seed]), stream=1000, count=math.prod(shape))
    return (values.double() * 2.0**-64).float().view(shape)


def golden_model(config: CrossMAEConfig) -> CrossMAE:
    model = CrossMAE(config)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(uniform(i, *parameter.shape) * 0.2 + float(is_scale))
    return model


def part_of(name: str) -> str:
    """The part that a parameter belongs to: the modules of the model, and in decoders what looks at the other side."""
    module = name.split(".")[0]
    return f"{module}, cross" if ".condition." in name or ".cross." in name else module


def facts_of(model: nn.Module) -> Iterator[tuple[str, tuple[float, float]]]:
    """For each part, its gradient times a fixed direction, and its length."""
    products: dict[str, float] = {}
    squares: dict[str, float] = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        assert parameter.grad is not None
        part, grad = part_of(name), parameter.grad.double()
        direction = uniform(1000 + i, *parameter.shape).double()
        products[part] = products.get(part, 0.0) + float((grad * direction).sum())
        squares[part] = squares.get(part, 0.0) + float(grad.square().sum())
    for part, square in squares.items():
        yield part, (products[part], math.sqrt(square))


@pytest.mark.parametrize("kind", CONFIGS)
def test_golden_losses_and_gradients(kind: str) -> None:
    model = golden_model(CONFIGS[kind])
    output = model(told(uniform(-1, 2, 3, 224, 224) * 3, uniform(-2, 2, 1024, 128) * 3, torch.tensor([7, 8])))
    output.loss.backward()
    assert {name: part.item() for name, part in output.parts.items()} == pytest.approx(LOSSES[kind], abs=5e-6)
    found = dict(facts_of(model))
    assert found.keys() == GRADIENTS[kind].keys()
    for part, (product, length) in GRADIENTS[kind].items():
        assert found[part] == pytest.approx((product, length), abs=1e-4 * length), part
