"""Every choice of the model, beside the text of the paper that it reads; its sizes; the variants of Table 2.

Sections, equations and tables are those of CrossMAE (CVPR 2024); "A.3" and the like are its supplement's.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from training.methods.shared.config_values import check_literals, check_sizes, from_dict
from training.methods.shared.contrast import MIN_TEMPERATURE, ContrastConfig
from training.methods.shared.encoder import EncoderConfig
from training.methods.shared.losses import LossOn, Normalise, Reduction
from training.methods.shared.masking import AudioStrategy, kept_count
from training.methods.shared.patches import FBANK_TOKENS, IMAGE_TOKENS

Queries = Literal["learnable", "sincos", "zeros", "tokens"]
Targets = Literal["online", "visible_only", "ema", "teacher"]


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Random masking (eqs. 3 and 4)."""

    image_ratio: float = 0.75
    """Share of the 196 image tokens hidden (Sec. 4.1: "0.75 for random masking ratio")."""
    audio_ratio: float = 0.75
    """Share of the 512 audio tokens hidden (A.3)."""
    audio_strategy: AudioStrategy = "random"
    """How the spectrogram is masked (supplement, Fig. 2)."""

    def __post_init__(self) -> None:
        check_literals("mask", self)
        for name, tokens in (("image", IMAGE_TOKENS), ("audio", FBANK_TOKENS)):
            ratio = getattr(self, f"{name}_ratio")
            if not (0 <= ratio < 1 and kept_count(tokens, 1 - ratio) >= 1):
                raise ValueError(f"mask.{name}_ratio is {ratio}: allowed are 0 to below 1, with a token left visible")


@dataclass(frozen=True, kw_only=True)
class AttentiveConfig:
    """Attentive Tokens (eqs. 5 and 6)."""

    image_ratio: float = 0.25
    """Share of the image tokens taken: "the top 25% of tokens"; 0 builds no cross-attention in the audio decoder."""
    audio_ratio: float = 0.25
    """Share of the audio tokens taken; 0 builds no cross-attention in the image decoder."""
    base: Literal["visible", "patches"] = "visible"
    """Share of what. "25% of the patch number" (`patches`) would be all visible tokens at a mask ratio of 0.75."""
    score: Literal["attention", "cosine"] = "attention"
    """"The highest attention to the [CLS] token" in "the last layer block", or the letter of eq. 5: sim([CLS], a)."""
    kind: Literal["attentive", "zeros", "random"] = "attentive"
    """What the other decoder is given: Table 6's "Attentive Tokens", "zero vectors" or "random tokens"."""

    def __post_init__(self) -> None:
        check_literals("attentive", self)
        for name in ("image_ratio", "audio_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"attentive.{name} is {getattr(self, name)}: allowed are 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Pixel reconstruction: vanilla, or cross-conditioned (Sec. 3.2)."""

    target: Literal["none", "self", "cross"] = "cross"
    """No pixel loss, MAE's own (SelfMAE), or conditioned on the other side's Attentive Tokens (eqs. 7 to 9)."""
    conditioning: Literal["first", "every_block"] = "first"
    """Where the cross-attention stands: on the visible tokens before the decoder (eqs. 7 and 8), or in each block."""
    condition_start: Literal["zero", "xavier"] = "zero"
    """What its last layer starts from; the paper does not say. `zero`: the decoder begins as the plain one does (and as
    the one it was initialised from); `xavier`: as every other layer, which at first adds noise to each token."""
    dim: int = 512
    """Width of the decoders ("following MAE")."""
    depth: int = 8
    """Blocks of the decoders."""
    heads: int = 16
    """Attention heads of the decoders."""
    loss_on: LossOn = "masked"
    """Patches that count. Eq. 9: those "that have not been masked" (`visible`); MAE, which it extends: `masked`."""
    norm_pix: bool = True
    """Targets normalised a patch (MAE); the paper is silent."""
    reduction: Reduction = "mean"
    """Mean over all values, or eq. 2's letter: sum over a patch's values, mean over patches."""

    def __post_init__(self) -> None:
        check_literals("pixel", self)
        check_sizes("pixel", width=self.dim, depth=self.depth, heads=self.heads)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Cross-Embedding Reconstruction (Sec. 3.3)."""

    enabled: bool = True
    """Whether there is one (Table 2)."""
    dim: int = 512
    """Width of the decoders."""
    depth: int = 4
    """Blocks of the decoders ("several blocks")."""
    heads: int = 16
    """Attention heads of the decoders."""
    queries: Queries = "learnable"
    """Table 7: Learnable Queries, fixed sin-cos positions, the "empty query" (`zeros`), or sin-cos positions to which
    the Attentive Tokens of the modality to be rebuilt are added (`tokens`, the ablation that fails)."""
    targets: Targets = "online"
    """"Complete original features": the encoder on the full input, or on its visible tokens only; or, on the full
    input, a running mean of the encoder (`ema`) or a frozen one of a finished run (`teacher`; supplement, Table 6)."""
    target_gradient: bool = False
    """Whether gradients pass into the targets."""
    ema_momentum: float = 0.999
    """With `ema`: the share that the running mean keeps at each step, constant. The paper has none; 0.999 is ours."""
    normalise: Normalise = "token"
    """"Normalized": each token by its own mean and variance, or each feature by the batch's (which keeps the features
    from shrinking to one shared direction)."""
    reduction: Reduction = "mean"
    """As of the pixel loss (eq. 2)."""

    def __post_init__(self) -> None:
        check_literals("embedding", self)
        check_sizes("embedding", width=self.dim, depth=self.depth, heads=self.heads)
        if not 0 <= self.ema_momentum <= 1:
            raise ValueError(f"embedding.ema_momentum is {self.ema_momentum}: allowed are 0 to 1")
        if self.target_gradient and self.targets in ("ema", "teacher"):
            raise ValueError(
                f"embedding.target_gradient is True, but embedding.targets is {self.targets!r}, which no gradient"
                " moves: allowed are False, or targets online, visible_only"
            )


@dataclass(frozen=True, kw_only=True)
class CrossMAEConfig:
    """CrossMAE: the model of the paper's Fig. 2, ViT-B/16 unless said otherwise."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again: less memory, more time, the
    same values."""

    def __post_init__(self) -> None:
        if not self.contrast.enabled and self.pixel.target == "none" and not self.embedding.enabled:
            raise ValueError(
                "no loss is left: contrast.enabled and embedding.enabled are False and pixel.target is 'none'; "
                f"allowed are the variants {', '.join(VARIANTS)} and any other with one loss or more"
            )
        for name, tokens in (("image", IMAGE_TOKENS), ("audio", FBANK_TOKENS)):
            self._check_modality(name, tokens)

    @property
    def has_contrast(self) -> bool:
        """Whether there is a contrastive loss."""
        return self.contrast.enabled

    def check_new_run(self) -> None:
        """Refuses what a new run would not mean; runs of older versions may hold it.

        Raises:
            ValueError: names the options of the command line.
        """
        contrast, embedding = self.contrast, self.embedding
        if embedding.targets in ("ema", "teacher") and not embedding.enabled:
            raise ValueError(
                f"--model.embedding.targets is {embedding.targets}, but the model has no embedding loss"
                " (model.embedding.enabled is False): leave it out, or take --variant crossmae or cl-crossembmae"
            )
        if contrast.learnable_temperature and contrast.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"--model.contrast.temperature is {contrast.temperature}, where a learned one starts: allowed are"
                f" {MIN_TEMPERATURE}, below which it never falls, and more"
            )

    def _check_modality(self, name: str, tokens: int) -> None:
        masked, top = getattr(self.mask, f"{name}_ratio"), getattr(self.attentive, f"{name}_ratio")
        visible = kept_count(tokens, 1 - masked)
        if top > 0 and not 1 <= self.attentive_count(top, visible, tokens) <= visible:
            raise ValueError(
                f"attentive.{name}_ratio is {top} of the {self.attentive.base} tokens, which gives "
                f"{self.attentive_count(top, visible, tokens)}: allowed are 0, or what gives "
                f"1 to {visible}, the visible tokens"
            )
        if self.pixel.target != "none" and self.pixel.loss_on == "masked" and visible == tokens:
            raise ValueError(
                f"mask.{name}_ratio is {masked}, which hides no patch, but pixel.loss_on is 'masked': "
                "allowed are a ratio that hides one, or loss_on 'visible' or 'all'"
            )
        if self.embedding.enabled and self.embedding.queries == "tokens" and top == 0:
            raise ValueError(
                f"embedding.queries is 'tokens', but attentive.{name}_ratio is 0: allowed are ratios above 0, "
                "or queries learnable, sincos, zeros"
            )

    def attentive_count(self, ratio: float, visible: int, tokens: int) -> int:
        """k of eqs. 5 and 6, of a modality with so many visible tokens among so many."""
        return kept_count(visible if self.attentive.base == "visible" else tokens, ratio)


Variant = Literal["crossmae", "cl-av", "selfmae", "cl-selfmae", "cl-crosscdtmae", "cl-crossembmae"]
# Table 2, as values of three switches: contrastive loss, pixel loss, embedding loss.
VARIANTS: dict[str, tuple[bool, Literal["none", "self", "cross"], bool]] = {
    "crossmae": (True, "cross", True),
    "cl-av": (True, "none", False),
    "selfmae": (False, "self", False),
    "cl-selfmae": (True, "self", False),
    "cl-crosscdtmae": (True, "cross", False),
    "cl-crossembmae": (True, "none", True),
}


def with_variant(config: CrossMAEConfig, name: str) -> CrossMAEConfig:
    """The config as a row of Table 2."""
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}: allowed are {', '.join(VARIANTS)}")
    contrast, pixel, embedding = VARIANTS[name]
    return replace(
        config,
        contrast=replace(config.contrast, enabled=contrast),
        pixel=replace(config.pixel, target=pixel),
        embedding=replace(config.embedding, enabled=embedding),
    )


def crossmae_base() -> CrossMAEConfig:
    """ViT-B/16 encoders (Sec. 4.1), MAE's decoders: the paper's model."""
    return CrossMAEConfig()


def crossmae_large() -> CrossMAEConfig:
    """ViT-L/16 encoders (Table 4); MAE keeps its decoders for them."""
    return CrossMAEConfig(encoder=EncoderConfig(dim=1024, depth=24, heads=16))


def crossmae_small() -> CrossMAEConfig:
    """ViT-S/16 encoders and half-size decoders: for one GPU. Not in the paper."""
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=384, depth=12, heads=6),
        pixel=PixelConfig(dim=256, depth=4, heads=8),
        embedding=EmbeddingConfig(dim=256, depth=2, heads=8),
    )


def crossmae_tiny() -> CrossMAEConfig:
    """For tests, and for training on a CPU. Not in the paper."""
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=128, depth=4, heads=4),
        pixel=PixelConfig(dim=64, depth=2, heads=4),
        embedding=EmbeddingConfig(dim=64, depth=2, heads=4),
    )


def world_small() -> CrossMAEConfig:
    """For the synthetic world on one GPU. Not in the paper."""
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=384, depth=8, heads=6),
        pixel=PixelConfig(dim=192, depth=2, heads=6),
        embedding=EmbeddingConfig(dim=192, depth=2, heads=6),
    )


def world_tiny() -> CrossMAEConfig:
    """For the synthetic world on a CPU: one head, since attention costs most there. Not in the paper."""
    return CrossMAEConfig(
        encoder=EncoderConfig(dim=128, depth=4, heads=1),
        pixel=PixelConfig(dim=64, depth=1, heads=1),
        embedding=EmbeddingConfig(dim=64, depth=2, heads=1),  # of one block the self-attention would see queries alone
    )


Preset = Literal["crossmae-base", "crossmae-large", "crossmae-small", "crossmae-tiny", "world-small", "world-tiny"]
PRESETS: dict[Preset, Callable[[], CrossMAEConfig]] = {
    "crossmae-base": crossmae_base,
    "crossmae-large": crossmae_large,
    "crossmae-small": crossmae_small,
    "crossmae-tiny": crossmae_tiny,
    "world-small": world_small,
    "world-tiny": world_tiny,
}
assert set(PRESETS) == set(get_args(Preset))


def config_to_dict(config: CrossMAEConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return asdict(config)


def config_from_dict(values: dict[str, Any]) -> CrossMAEConfig:
    """The config of `config_to_dict`; the missing takes its default, the unknown or of a wrong type is refused."""
    config = from_dict(CrossMAEConfig, values)
    assert isinstance(config, CrossMAEConfig)
    return config
