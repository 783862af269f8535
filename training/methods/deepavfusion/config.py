"""Every choice of DeepAVFusion, beside the text of the paper (Mo and Morgado, CVPR 2024) and what its code does.

Where the two part, the default is what made the released weights; the docstring quotes both.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from training.methods.shared.config_values import check_literals, check_sizes

Phi = Literal["factorized_mmi", "dense_mmi", "token", "mbt"]
Where = Literal["all", "mid", "late", "none"]
IMAGE_TOKENS, AUDIO_TOKENS = 196, 96
BLOCKS = 12


def kept_count(tokens: int, ratio: float) -> int:
    """Tokens that stay visible where `ratio` of them is hidden: rounded down, as the code does. 0.8 of 96: 19."""
    return int(tokens * (1 - ratio))


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of ViT blocks."""

    dim: int
    """Width."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion branch (Sec. 3.1): "16 multi-modal fusion tokens, 8 visual aggregation tokens, and 8 audio aggregation
    tokens"."""

    phi: Phi = "factorized_mmi"
    """How a layer's fusion tokens see both modalities. `factorized_mmi`: by pairs of aggregation tokens (eqs. 9 to 13).
    `dense_mmi`: by all pairs of tokens (eqs. 4 to 8). `token`: by the tokens themselves; "this approach, which we refer
    to as token fusion, has been used in previous works such as MBT", and is "a standard self-attention block which in
    addition to the fusion tokens themselves [...] can further attend to all image and audio tokens". The code's `token`
    attends to image and audio alone, with the norms of the two swapped; `mbt` is the letter of the text."""
    layers: tuple[int, ...] | None = None
    """Layers with a fusion block, counted from 0; all of them (None, "early"), 8 to 11 ("mid-fusion (at layers 9-12)"),
    11 ("late-fusion (at layer 12)"), or none at all ("no-fusion"). In the others image and audio do not see the fusion
    tokens."""
    fusion_tokens: int = 16
    """Tokens that the pairs are attended by."""
    image_tokens: int = 8
    """Tokens that aggregate the image."""
    audio_tokens: int = 8
    """Tokens that aggregate the sound."""
    heads: int = 12
    """Attention heads of the fusion blocks."""
    attn_ratio: float = 0.25
    """Width of queries and keys, as a share of the model's: "the dimensionality of space in which the similarity for
    self and cross-attention is computed to 16 (as opposed to the standard 64)" a head. The aggregation of factorized
    interactions, and its values, keep the full width in the code. The released AudioSet model has 1.0."""
    mlp_ratio: float = 1.0
    """Width of the hidden layer, as a multiple of the model's: "an MLP ratio of 1 (instead of the standard 4)". The
    code's yaml and the released AudioSet model have 4.0, the released VGGSound model 1.0."""
    residual: Literal["normalised", "prenorm"] = "normalised"
    """Eq. 7 adds attention to the tokens X, as pre-norm blocks do (`prenorm`). The code adds it to LN(X), and so were
    its weights made."""
    aggregates: Literal["bare", "block"] = "bare"
    """Eqs. 9 and 10 make aggregation tokens by the cross-attention of eqs. 7 and 8, with residual and MLP, and pair
    these (`block`). In the code bare attention outputs make the pairs; residual and MLP come after."""
    scale: Literal["full", "reduced"] = "full"
    """Scores are divided by the root of a head's width: of all its 64 in the code, though only 16 of them are compared,
    or of those (`reduced`). The code's `token` has the reduced one at any rate."""

    def __post_init__(self) -> None:
        check_literals("fusion", self)
        for name in ("fusion_tokens", "image_tokens", "audio_tokens", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"fusion.{name} is {getattr(self, name)}: allowed are 1 and more")
        for name in ("attn_ratio", "mlp_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"fusion.{name} is {getattr(self, name)}: allowed are numbers above 0, and finite")
        layers = self.layers or ()
        if any(type(layer) is not int or layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError(f"fusion.layers is {layers}: allowed are layers counted from 0, ascending, each once")

    @property
    def tokens(self) -> int:
        """All tokens of the branch: fusion, image aggregation, audio aggregation, in this order."""
        return self.fusion_tokens + self.image_tokens + self.audio_tokens


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masking (Sec. 3.2 names no ratios; these are the code's)."""

    image_ratio: float = 0.75
    """Share of the 196 image tokens hidden, at random."""
    audio_ratio: float = 0.8
    """Share of the 96 audio tokens hidden, at random."""

    def __post_init__(self) -> None:
        for name, tokens in (("image", IMAGE_TOKENS), ("audio", AUDIO_TOKENS)):
            ratio = getattr(self, f"{name}_ratio")
            if not (0 < ratio < 1 and kept_count(tokens, ratio) >= 1):
                raise ValueError(f"mask.{name}_ratio is {ratio}: allowed are above 0 to below 1, with a token left")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder of each modality, and its loss (eqs. 14 and 16)."""

    dim: int = 512
    """Width."""
    image_depth: int = 8
    """Blocks of the image's decoder."""
    audio_depth: int = 8
    """Blocks of the sound's decoder."""
    heads: int = 16
    """Attention heads."""
    sees: Literal["own_and_fusion", "fusion_only"] = "own_and_fusion"
    """Eq. 16 gives a decoder the multi-modal tokens X^mm and mask tokens (`fusion_only`); the code gives it its own
    modality's visible tokens, too."""
    positions: Literal["trained", "frozen"] = "trained"
    """The paper has no word. The code begins with the fixed sine-cosine table, and trains it."""
    norm_pix: bool = True
    """Targets normalised a patch, as the code does; the paper does not say."""

    def __post_init__(self) -> None:
        check_literals("decoder", self)
        for depth in (self.image_depth, self.audio_depth):
            check_sizes("decoder", width=self.dim, depth=depth, heads=self.heads)


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """The log-mel spectrogram of 3 s, "128x196" in the paper, 128 x 192 in the code: its frames without the last."""

    source: Literal["waveform", "fbank"] = "waveform"
    """From the waveform, exactly (make-shards --keep-audio --frames 10), with a frame that lies within the 3 s; or
    approximately from the fbank and with the middle frame that every dataset holds: good to train with, not for the
    authors' weights."""
    fbank_mean: float | None = None
    """What the fbanks are normalised by: their source needs it, to have them as they were."""
    fbank_std: float | None = None
    """The same, the standard deviation."""

    def __post_init__(self) -> None:
        check_literals("sound", self)
        if self.source == "fbank" and (self.fbank_mean is None or not self.fbank_std):
            raise ValueError(
                "sound.source is 'fbank', which needs sound.fbank_mean and sound.fbank_std, what the fbanks are"
                " normalised by"
            )


@dataclass(frozen=True, kw_only=True)
class DeepAVFusionConfig:
    """DeepAVFusion: the model of the paper's Fig. 2, of two ViT-B without [CLS]."""

    encoder: StackConfig = field(default_factory=lambda: StackConfig(dim=768, depth=BLOCKS, heads=12))
    """The blocks of each modality."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    sound: SoundConfig = field(default_factory=SoundConfig)
    checkpoint_activations: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, more time, the
    same values."""

    def __post_init__(self) -> None:
        encoder, fusion = self.encoder, self.fusion
        check_sizes("encoder", width=encoder.dim, depth=encoder.depth, heads=encoder.heads)
        if fusion.layers and fusion.layers[-1] >= encoder.depth:
            raise ValueError(
                f"fusion.layers is {fusion.layers}: allowed are layers below encoder.depth, {encoder.depth}"
            )
        narrow = int(encoder.dim * fusion.attn_ratio)
        if encoder.dim % fusion.heads or narrow < 1 or narrow % fusion.heads:
            raise ValueError(
                f"fusion.heads is {fusion.heads}: allowed are divisors of encoder.dim, {encoder.dim}, and of its share"
                f" fusion.attn_ratio, {narrow}"
            )
        if not fusion.layers and fusion.layers is not None and self.decoder.sees == "fusion_only":
            raise ValueError("decoder.sees is 'fusion_only', but no layer of fusion.layers sees image and sound")

    @property
    def fusion_layers(self) -> tuple[int, ...]:
        """The layers that have a fusion block."""
        return tuple(range(self.encoder.depth)) if self.fusion.layers is None else self.fusion.layers


# Table 4, Table 5: how both modalities meet, and in which layers. Rows 4 to 6 are of "dense interactions".
VARIANTS: dict[str, tuple[Phi, Where]] = {
    "deepavfusion": ("factorized_mmi", "all"),
    "dense": ("dense_mmi", "all"),
    "token": ("token", "all"),
    "mbt": ("mbt", "all"),
    "mid": ("dense_mmi", "mid"),
    "late": ("dense_mmi", "late"),
    "none": ("dense_mmi", "none"),
}


def with_variant(config: DeepAVFusionConfig, name: str) -> DeepAVFusionConfig:
    """The config as a model of Table 4: "mid" is the last third of the layers, "late" the last one."""
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}: allowed are {', '.join(VARIANTS)}")
    phi, where = VARIANTS[name]
    depth = config.encoder.depth
    first = {"mid": depth * 2 // 3, "late": depth - 1, "none": depth}.get(where)
    layers = None if first is None else tuple(range(first, depth))
    return replace(config, fusion=replace(config.fusion, phi=phi, layers=layers))
