"""Every choice of CAV-MAE, beside the text of the paper (Gong et al., ICLR 2023) and what the authors' code does.

Where the two part, the default is what made the paper's tables; the docstring quotes both.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from training.methods.shared.config_values import StackConfig, check_literals, check_sizes
from training.methods.shared.patches import FBANK_TOKENS, IMAGE_TOKENS

AudioMasking = Literal["uniform", "time", "frequency", "time-frequency"]
Direction = Literal["video_to_audio", "both"]


def kept_count(tokens: int, ratio: float) -> int:
    """Tokens that stay visible where `ratio` of them is hidden: rounded down, as the code does. 0.65 of 196: 68."""
    return int(tokens * (1 - ratio))


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masking (Sec. 2.2: "randomly mask 75% of the tokens")."""

    image_ratio: float = 0.75
    """Share of the 196 image tokens hidden, at random."""
    audio_ratio: float = 0.75
    """Share of the 512 audio tokens hidden."""
    audio_strategy: AudioMasking = "uniform"
    """How the spectrogram is masked (App. F: "uniform", "time", "frequency" and "time-frequency" masking)."""

    def __post_init__(self) -> None:
        check_literals("mask", self)
        for name, tokens in (("image", IMAGE_TOKENS), ("audio", FBANK_TOKENS)):
            ratio = getattr(self, f"{name}_ratio")
            if not (0 < ratio < 1 and kept_count(tokens, ratio) >= 1):
                raise ValueError(f"mask.{name}_ratio is {ratio}: allowed are above 0 to below 1, with a token left")


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The contrastive loss (eqs. 6 and 7)."""

    weight: float = 0.01
    """Lambda of eq. 10 ("lambda_c = 0.01"); 0 is AV-MAE."""
    temperature: float = 0.05
    """Tau of eq. 7 ("tau = 0.05")."""
    direction: Direction = "video_to_audio"
    """Eq. 7 sums over the sounds of the batch for each frame, and so does the code. `both` also over the frames for
    each sound, the mean of the two: the code's option --bidirect_contrast, off there."""
    negatives: Literal["groups", "global"] = "groups"
    """Among which other samples. The authors trained on four GPUs whose replicas each saw a quarter of the batch (12 of
    48), so `groups` of a quarter of the global batch, whatever the number of processes; or all of it (`global`)."""

    def __post_init__(self) -> None:
        check_literals("contrast", self)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"contrast.weight is {self.weight}: allowed are numbers of at least 0, and finite")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"contrast.temperature is {self.temperature}: allowed are numbers above 0, and finite")


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """The reconstruction loss (eqs. 8 and 9)."""

    weight: float = 1.0
    """Of the sum of both modalities' losses; 0 is CAV. (The code's argparse default, 3.0, is never used.)"""
    norm_pix: bool = True
    """Targets normalised a patch. The paper: it helps "marginally"; to look at what is rebuilt, train without."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"pixel.weight is {self.weight}: allowed are numbers of at least 0, and finite")


@dataclass(frozen=True, kw_only=True)
class CAVMAEConfig:
    """CAV-MAE: the model of the paper's Fig. 1, of ViT-B's blocks without [CLS]."""

    encoder: StackConfig = field(default_factory=lambda: StackConfig(dim=768, depth=11, heads=12))
    """The blocks that each modality has for itself."""
    joint_depth: int = 1
    """Blocks that both modalities share."""
    decoder: StackConfig = field(default_factory=lambda: StackConfig(dim=512, depth=8, heads=16))
    """The decoder of both modalities together."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    frame: Literal["random", "middle"] = "random"
    """Which frame of a clip is seen: a random one of those that `make-shards --frames 10` stores (the code: "random one
    of 10 frames"), or the middle one, which every dataset has."""
    single_streams: Literal["all", "last"] = "all"
    """With several joint blocks: the streams of one modality pass all of them, or the last alone as in the code's
    training (which its retrieval does not do). The same for one block."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again: less memory, more time, the
    same values."""

    def __post_init__(self) -> None:
        check_literals("model", self)
        for name in ("encoder", "decoder"):
            stack = getattr(self, name)
            check_sizes(name, width=stack.dim, depth=stack.depth, heads=stack.heads)
        if self.joint_depth < 1:
            raise ValueError(f"joint_depth is {self.joint_depth}: allowed are 1 and more")
        if not self.contrast.weight and not self.pixel.weight:
            raise ValueError("no loss is left: contrast.weight and pixel.weight are 0, allowed is one of them above")

    @property
    def has_contrast(self) -> bool:
        """Whether there is a contrastive loss."""
        return self.contrast.weight > 0

    def check_new_run(self) -> None:
        """Nothing that it allows is refused of a new run."""


# Sec. 3, as the weights of the two losses: reconstruction, contrast. The networks and the masks are the same.
VARIANTS: dict[str, tuple[float, float]] = {"cav-mae": (1.0, 0.01), "cav": (0.0, 0.01), "av-mae": (1.0, 0.0)}


def with_variant(config: CAVMAEConfig, name: str) -> CAVMAEConfig:
    """The config as a model of Sec. 3."""
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}: allowed are {', '.join(VARIANTS)}")
    pixel, contrast = VARIANTS[name]
    return replace(
        config, pixel=replace(config.pixel, weight=pixel), contrast=replace(config.contrast, weight=contrast)
    )


def cav_mae_base() -> CAVMAEConfig:
    """The paper's model: 11 own blocks and a shared one, as wide as ViT-B."""
    return CAVMAEConfig()


def cav_mae_tiny() -> CAVMAEConfig:
    """For tests, and for training on a CPU. Not in the paper."""
    return CAVMAEConfig(
        encoder=StackConfig(dim=128, depth=3, heads=4), decoder=StackConfig(dim=64, depth=2, heads=4), frame="middle"
    )


def world_small() -> CAVMAEConfig:
    """For the synthetic world on one GPU. Not in the paper."""
    return CAVMAEConfig(
        encoder=StackConfig(dim=384, depth=7, heads=6), decoder=StackConfig(dim=192, depth=2, heads=6), frame="middle"
    )


def world_tiny() -> CAVMAEConfig:
    """For the synthetic world on a CPU: one head, since attention costs most there. Not in the paper."""
    return CAVMAEConfig(
        encoder=StackConfig(dim=128, depth=3, heads=1), decoder=StackConfig(dim=64, depth=1, heads=1), frame="middle"
    )
