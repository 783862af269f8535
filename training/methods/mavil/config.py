"""Every choice of MAViL, beside the text of the paper (Huang et al., NeurIPS 2023) that it reads.

The training code never came out. Where the text leaves a choice open, the docstring quotes it, and says what there is
of other evidence: the authors' code that runs their released encoders (in av-superb), and AudioMAE, by the same first
author. The defaults are the paper's base model in its first stage.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from training.methods.shared.config_values import StackConfig, check_literals, check_sizes
from training.methods.shared.losses import Reduction
from training.methods.shared.patches import FBANK_TOKENS, IMAGE_TOKENS

Count = Literal["floor", "round"]
SecondView = Literal["independent", "disjoint"]
Strategy = Literal["random", "structured"]
Positions = Literal["tiled", "sincos3d"]
Negatives = Literal["global", "local", "no_gradient"]
Source = Literal["raw", "separate", "uni", "fusion"]
Normalised = Literal["layer_norm", "none", "norm", "top3"]
TUBE = 2  # frames of a video token: "the temporal kernel and stride are 2" (Sec. 4.2)
TOP = 3  # blocks whose mean is the target `top3`


def kept_count(tokens: int, ratio: float, count: Count = "floor") -> int:
    """Tokens that stay visible where `ratio` of them is hidden: 102 of 512 and 156 of 784 at 0.8."""
    kept = tokens * (1 - ratio)
    return int(kept + 0.5) if count == "round" else int(kept)


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion encoder (Sec. 3.1, Appendix B.2), of the encoders' width and heads."""

    kind: Literal["vanilla", "mbt"] = "vanilla"
    """"For vanilla Transformers, we jointly encode the audio and video tokens"; `mbt`: bottleneck tokens pass between
    them. "For simplicity, we default to using a 2-layer vanilla Transformer" (Sec. 4.4)."""
    depth: int = 2
    """Blocks; 0 is Table 1's "None", two uni-modal MAEs."""
    bottleneck_tokens: int = 4
    """Of `mbt`: "an additional 4 trainable MBT tokens"."""
    mbt_blocks: Literal["shared", "separate"] = "shared"
    """Of `mbt`: one g for both modalities, as the appendix writes it ("a || b_a = g(a || b)", "v || b_v = g(v || b)"),
    or one for each, as in MBT's own paper."""

    def __post_init__(self) -> None:
        check_literals("fusion", self)
        if self.depth < 0:
            raise ValueError(f"fusion.depth is {self.depth}: allowed are 0 and more")
        if self.bottleneck_tokens < 1:
            raise ValueError(f"fusion.bottleneck_tokens is {self.bottleneck_tokens}: allowed are 1 and more")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masking (Sec. 3.1: "randomly mask the majority (i.e. 80%) of audio and video tokens")."""

    video_ratio: float = 0.8
    """Share of the video tokens hidden."""
    audio_ratio: float = 0.8
    """Share of the 512 audio tokens hidden."""
    count: Count = "floor"
    """How a count that is no whole number is taken. B.2 has 102 and 156 tokens "after appending the [CLS] token",
    the floors of 102.4 and 156.8, and AudioMAE rounds down: [CLS] comes to them. Fig. 3 has 154 of 512 at 70%, which is
    153.6 rounded (`round`). C.1's "Bernoulli trial" for each patch would give no fixed count at all."""
    audio_strategy: Strategy = "random"
    """Table 12b: `random` does best; `structured` hides times and bands ("Time-Freq"), twice as large a share of the
    bands as of the times ("2:1"). Where they leave more or fewer tokens than are to stay visible, random ones make up
    for it."""
    video_strategy: Strategy = "random"
    """The same of the video: `structured` hides pairs of frames and places ("Space-Time")."""
    second_view: SecondView = "independent"
    """"We apply random masking and sample a second view that contains 20% tokens" (Sec. 3.2): a draw of its own, or
    only tokens that the first view hides (`disjoint`)."""

    def __post_init__(self) -> None:
        check_literals("mask", self)
        for name, tokens in (("video", IMAGE_TOKENS), ("audio", FBANK_TOKENS)):
            ratio = getattr(self, f"{name}_ratio")
            if not (0 < ratio < 1 and kept_count(tokens, ratio, self.count) >= 1):
                raise ValueError(f"mask.{name}_ratio is {ratio}: allowed are above 0 to below 1, with a token left")
            if self.second_view == "disjoint" and ratio < 0.5:
                raise ValueError(
                    f"mask.second_view is 'disjoint', but mask.{name}_ratio is {ratio}: two views without a common"
                    " token hide at least 0.5 each"
                )
            if self.second_view == "disjoint" and getattr(self, f"{name}_strategy") == "structured":
                raise ValueError(
                    f"mask.second_view is 'disjoint', but mask.{name}_strategy is 'structured': allowed is 'random'"
                )


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The contrastive losses (eqs. 2 and 3), of the encoders' outputs before the fusion, without a head.

    "The fusion layer provides a shortcut/leakage of information exchange for every paired audio-video clip" (footnote
    1). The text calls tau 0.1 "more tolerant" and 1.0 "stricter" (C.2), which is the other way about: we keep the
    numbers.
    """

    inter_weight: float = 0.1
    """Alpha of eqs. 4 and 6 (Sec. 4.3); 0 leaves the loss out (Table 3)."""
    inter_temperature: float = 0.1
    """Tau of sound with video (Sec. 4.3)."""
    intra_weight: float = 0.01
    """Beta of eqs. 4 and 6 (Sec. 4.3); 0 leaves the loss and the second views out (Table 3)."""
    intra_temperature: float = 1.0
    """Tau of two views of one modality (Sec. 4.3). At 512 samples the loss then moves from 6.24 to 5.24 only."""
    intra_direction: Literal["letter", "symmetric"] = "letter"
    """Eq. 3 compares the first view with the second ones of the batch; `symmetric` also the second with the first, the
    mean of the two."""
    pooling: Literal["patches", "with_cls"] = "patches"
    """"We first average the sequence of uni-modal encoder outputs": its patch tokens, as the authors' encoder for
    av-superb does, or with [CLS] among them."""
    negatives: Negatives = "global"
    """Among which other samples: "a batch of size B" does not say whether that is the 512 or a GPU's 8. All of the
    global batch; groups of 8 of it, whatever the number of processes (`local`); or all, and no gradient passes the side
    that is compared with, as in AudioMAE's gather (`no_gradient`)."""

    def __post_init__(self) -> None:
        check_literals("contrast", self)
        for name in ("inter", "intra"):
            weight, temperature = (getattr(self, f"{name}_{what}") for what in ("weight", "temperature"))
            if not 0 <= weight < math.inf:
                raise ValueError(f"contrast.{name}_weight is {weight}: allowed are numbers of at least 0, and finite")
            if not 0 < temperature < math.inf:
                raise ValueError(
                    f"contrast.{name}_temperature is {temperature}: allowed are numbers above 0, and finite"
                )


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the decoders are to say (eq. 1 in stage 1, eq. 5 in stage 2)."""

    source: Source = "raw"
    """Table 4a. `raw`: the patches, stage 1. Stage 2, of the frozen teacher's view of all tokens: its fusion encoder's
    outputs (`fusion`, the paper's choice); its encoders' (`uni`); `separate`: the same, where the teacher is a run of
    uni-modal MAEs (fusion.depth 0, both weights of the contrast 0)."""
    normalised: Normalised = "layer_norm"
    """Of a teacher's tokens, of which the text says "fusion encoder outputs" and nothing of normalisation: those of the
    last block, each layer-normed without scales, whose unit variance keeps alpha and beta "in a comparable range"; as
    they are (`none`, the letter); through the teacher's own last norm (`norm`); the mean of the layer-normed outputs of
    the last three blocks (`top3`, which AudioMAE's code has, unused)."""
    norm_pix: bool = True
    """Raw patches each in their own mean and deviation. Appendix A's pictures are of a model "with un-normalized raw
    spectrograms and video frames"; AudioMAE normalises but for its pictures."""
    reduction: Reduction = "mean"
    """Eqs. 1 and 5 write 1/n times a squared norm (`patch_sum`); AudioMAE divides by the values of a patch, too."""
    on: Literal["masked", "all"] = "masked"
    """Eq. 1's n counts "masked" patches; eq. 5 has the same n (`masked`), or means all tokens (`all`). Stage 2 only."""
    video_values: Literal["tube", "frame"] = "tube"
    """What a video token predicts in stage 1, of which the text says nothing: all 2 x 16 x 16 x 3 values, which makes
    "27M" of the decoder, or those of its first frame (the authors' loader for av-superb keeps 768)."""
    student: Literal["fresh", "teacher"] = "fresh"
    """Where stage 2 starts: the student is "re-initialized" (Sec. 3.3), or "initialize" means the teacher's weights
    (Sec. 4.4)."""

    def __post_init__(self) -> None:
        check_literals("target", self)
        if self.source == "raw" and self.on == "all":
            raise ValueError("target.on is 'all', but target.source is 'raw': eq. 1 is of the masked patches")


@dataclass(frozen=True, kw_only=True)
class MAViLConfig:
    """MAViL: an encoder a modality, a fusion, a decoder a modality."""

    frames: int = 8
    """Of a sample: "8 frames", in tubes of two ("4 x 14 x 14 = 784" tokens). 1 is a form of ours that the paper has
    not: a still, 196 tokens, the same as the video of two equal frames."""
    encoder: StackConfig = field(default_factory=lambda: StackConfig(dim=768, depth=12, heads=12))
    """Of each modality: "12-layer Transformers (ViT-B) with 12 attention heads" (Sec. 4.2)."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    decoder: StackConfig = field(default_factory=lambda: StackConfig(dim=512, depth=8, heads=16))
    """Of each modality: "8-layer Transformers with an embedding dimension of 512 and 16 attention heads"."""
    positions: Positions = "tiled"
    """"Fixed 2D sinusoidal positional embeddings", of the video too: MAE's table for each pair of frames (`tiled`).
    Hidden tokens of one place then get one output for all times, by symmetry. `sincos3d`, which the authors' code for
    av-superb knows: the first quarter of the width holds the time."""
    norms: Literal["normed", "raw"] = "normed"
    """Around the fusion, of which the text says nothing. MAE's encoder ends in a norm: one in each encoder, and one
    after the fusion (`normed`). None at all (`raw`) is what the released weights are for."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again: less memory, more time, the
    same values."""

    def __post_init__(self) -> None:
        check_literals("model", self)
        if self.frames != 1 and (self.frames < 1 or self.frames % TUBE):
            raise ValueError(f"frames is {self.frames}: allowed are 1 and multiples of {TUBE}")
        for name in ("encoder", "decoder"):
            stack = getattr(self, name)
            check_sizes(name, width=stack.dim, depth=stack.depth, heads=stack.heads)
            if self.positions == "sincos3d" and stack.dim % 16:
                raise ValueError(f"{name}.dim is {stack.dim}: allowed are multiples of 16 (positions 'sincos3d')")
        self._check_target()

    def _check_target(self) -> None:
        source, normalised = self.target.source, self.target.normalised
        if source == "fusion" and not self.fusion.depth:
            raise ValueError("target.source is 'fusion', but fusion.depth is 0: 'uni' is what such a teacher has")
        if source != "raw" and normalised == "norm" and self.norms == "raw":
            raise ValueError("target.normalised is 'norm', but norms is 'raw': the teacher has no norm of its own")
        blocks = self.encoder.depth + (self.fusion.depth if source == "fusion" else 0)
        if normalised == "top3" and blocks < TOP:
            raise ValueError(f"target.normalised is 'top3', but the teacher has {blocks} blocks: {TOP} are needed")

    @property
    def has_contrast(self) -> bool:
        """Whether there is a contrastive loss."""
        return self.contrast.inter_weight > 0 or self.contrast.intra_weight > 0

    @property
    def tube(self) -> int:
        """Frames of a token: 1 of a still."""
        return 1 if self.frames == 1 else TUBE

    @property
    def slots(self) -> int:
        """Places in time of video tokens: 4 of 8 frames."""
        return self.frames // self.tube
