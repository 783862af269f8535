"""What the loop, the evaluation, fine-tuning and the report ask of a method, and what they give it.

Letters: B samples, F frames of a sample, S sound samples (16 kHz), N tokens, D width, P values of a patch, C classes.
`is_masked` is True where a token is hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Choose = Literal["middle", "random", "window"]
Side = Literal["image", "audio", "joint"]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a method wants of each sample: nothing else is read from the shards."""

    frames: int = 1
    """Frames of a sample. 0: none; a batch then holds one black frame of each, which nobody looks at."""
    choose: Choose = "middle"
    """The one in the middle; a random one, or as many at random places (in their order); or as many in a row."""
    waveform_seconds: float = 0.0
    """Seconds of sound at 16 kHz, at a random place of the clip (make-shards --keep-audio); 0 for none."""

    def __post_init__(self) -> None:
        if self.frames < 0:
            raise ValueError(f"reads.frames is {self.frames}: allowed are 0 and more")
        if self.choose != "middle" and not self.frames:
            raise ValueError(f"reads.frames is 0, but reads.choose is {self.choose!r}: of no frames none is chosen")
        if self.choose == "middle" and self.frames > 1:
            raise ValueError(f"reads.frames is {self.frames}, but reads.choose is 'middle', which is one frame")
        if not 0 <= self.waveform_seconds <= 10:
            raise ValueError(f"reads.waveform_seconds is {self.waveform_seconds}: allowed are 0 to 10")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a process takes at once, on its device."""

    image: Tensor  # float [B, F, 3, 224, 224], normalised
    fbank: Tensor  # float [B, 1024, 128], time first, normalised
    seeds: Tensor  # int64 [B], of every random choice for the sample
    numbers: Tensor  # int64 [B], sample numbers in the index; on the CPU
    valid_frames: Tensor | None = None  # int64 [B], rows of the fbank before its padding, for who leaves padding out
    waveform: Tensor | None = None  # float [B, S] in [-1, 1]; None where the method reads none
    heard: Tensor | None = None  # int32 [B], samples of the waveform that are the clip's; zeros follow


@dataclass(frozen=True)
class Features:
    """What an encoder makes of one modality; N counts the tokens that it was shown."""

    pooled: Tensor  # [B, D]
    tokens: Tensor  # [B, N, D], without [CLS], after the last norm
    grid: tuple[int, ...] | None = None  # rows and columns of all its tokens, in their order; None of several grids
    cls: Tensor | None = None  # [B, D], where the method has one
    attention: Tensor | None = None  # [B, N], of [CLS] to the tokens in the last block, mean over heads; no gradient
    is_valid: Tensor | None = None  # [B, N] bool, False = padding that was left out of all the others


@dataclass(frozen=True)
class Encoded:
    """A batch as a method's encoders see it, unmasked. None is what was not asked for, or what the method has not."""

    image: Features | None = None
    audio: Features | None = None
    joint: Features | None = None


@dataclass(frozen=True)
class Output:
    """The loss of a batch."""

    loss: Tensor  # scalar, of which the gradient is taken
    parts: dict[str, Tensor]  # its unweighted parts, scalars without gradient


@dataclass(frozen=True)
class Rebuilt:
    """One modality's pixels as rebuilt, for pictures."""

    patches: Tensor  # [B, N, P], in the units of the input
    grid: tuple[int, int]  # rows and columns of the tokens
    is_masked: Tensor  # [B, N] bool, True = hidden from the encoder
    is_marked: Tensor | None = None  # [B, N] bool, True = a token that the method chose, as an Attentive Token


@dataclass(frozen=True, kw_only=True)
class CachedLoss:
    """A loss of the whole batch, and its gradient for the piece of it that is at hand (GradCache, Gao et al. 2021).

    A gradient is that of the mean over the pieces: the sum's times their number.
    """

    loss: Tensor  # scalar, of the whole batch
    features: tuple[Tensor, ...]  # [B, D] each, its gradient in the piece's features
    parameters: tuple[Tensor, ...] = ()  # its gradient in the loss's own parameters, a temperature say

    def attach(self, features: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> Tensor:
        """The loss as a scalar whose gradient reaches the encoders through the features [B, D] of a piece."""
        linear = self.loss.new_zeros(())
        for own, gradient in zip((*features, *parameters), (*self.features, *self.parameters), strict=True):
            linear = linear + (own.float() * gradient).sum()
        return self.loss + (linear - linear.detach())


class Model(nn.Module, ABC):
    """A method's model: what it computes, and what it wants to be told.

    It draws nothing from a generator but its own start: every choice for a sample is a function of the sample's seed.
    It never prints, logs, autocasts or moves to a device. A parameter that gets no gradient by design has
    `requires_grad` False.
    """

    dim: int  # width of its features
    reads: Reads = Reads()
    encodes_apart: bool = True  # whether it encodes one modality without the other

    @property
    def has_contrast(self) -> bool:
        """Whether a part of its loss sees the whole batch."""
        return False

    @abstractmethod
    def forward(self, inputs: Inputs, cached: dict[str, CachedLoss] | None = None) -> Output:
        """The loss of B samples.

        Args:
            cached: by name, the contrastive losses of the batch that these samples are a piece of; None where they are
                all of it.
        """

    @abstractmethod
    def encode(
        self, *, image: Tensor | None = None, fbank: Tensor | None = None, valid_frames: Tensor | None = None
    ) -> Encoded:
        """Features of all tokens of images [B, F, 3, 224, 224] and fbanks [B, 1024, 128], normalised.

        Args:
            valid_frames: int64 [B], the fbanks' rows before padding, for a method that leaves padding out.

        Raises:
            ValueError: one of them is missing, and the method does not encode the other alone.
        """

    def contrast_features(self, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
        """By name, the features [B, D] that each contrastive loss compares; empty where there is none."""
        return {}

    def contrast_loss(self, name: str, features: Sequence[Tensor]) -> Tensor:
        """The contrastive loss `name`, a scalar, of features as `contrast_features` gives them."""
        raise AssertionError(f"{type(self).__name__} has no contrastive loss {name}")

    def contrast_parameters(self, name: str) -> tuple[nn.Parameter, ...]:
        """The parameters that the contrastive loss `name` has itself."""
        return ()

    def check_batch(self, pairs: int) -> None:
        """Refuses a batch of so many samples of all processes, of which a contrastive loss could compare nothing.

        Raises:
            ValueError: what is allowed.
        """

    def after_start(self) -> None:
        """Called when the weights were given a start from elsewhere, before the first step; not after resuming."""

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def pretend_ready(self) -> None:
        """Called where the model's work is counted on the meta device: a teacher is then as good as loaded."""

    def rebuild(self, inputs: Inputs) -> dict[Side, Rebuilt]:
        """What the decoders make of a batch; empty where nothing is decoded to pixels."""
        return {}

    def diagnose(self, inputs: Inputs) -> dict[str, Tensor]:
        """What tells learning from collapse: scalars on the device, without gradient."""
        return {}
