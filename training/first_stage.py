"""The encoders that a run takes from another one, for --init and --teacher: whether they are what it has itself.

A checkpoint's weights do not show how many heads they are of, nor on which scale of fbanks they were trained; its
config.json does. Heads must agree. The scale is converted: an affine map of the input is one of the patch embedding.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from shards_spec.errors import UserError
from training.checkpoint import WEIGHTS_FILE
from training.config import RunConfig
from training.methods.crossmae.config import CrossMAEConfig
from training.methods.shared.encoder import EncoderConfig
from training.stream.index import DatasetIndex
from training.trained import FbankScale, read_trained

_PATCHES = "audio_encoder.patch_embed.proj"


def fbank_scale(config: RunConfig, index: DatasetIndex) -> FbankScale:
    """--fbank-mean and --fbank-std; what was not given is the dataset's own.

    Raises:
        UserError: the dataset's is none to divide by.
    """
    mean = index.mean if config.fbank_mean is None else config.fbank_mean
    std = index.std if config.fbank_std is None else config.fbank_std
    if not (0 < std < math.inf and math.isfinite(mean)):
        raise UserError(
            f"the fbanks have a mean of {mean} and a standard deviation of {std}: mend the dataset, or give"
            " --fbank-mean and --fbank-std"
        )
    return FbankScale(mean=mean, std=std)


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """What the config.json of a checkpoint tells of its model. Of a fine-tuned one the encoders alone are meant."""

    folder: Path  # a checkpoint, or a folder of `save_pretrained`
    model: CrossMAEConfig
    scale: FbankScale

    def check_encoders(self, encoder: EncoderConfig, *, option: str, flag: str) -> None:
        """Refuses encoders that are not of the size and heads of `encoder`.

        Args:
            option: that named the checkpoint, for the message.
            flag: the option that sets the encoders, for the message.

        Raises:
            UserError: they are not.
        """
        theirs, ours = asdict(self.model.encoder), asdict(encoder)
        if differing := [name for name in ("dim", "depth", "heads") if theirs[name] != ours[name]]:
            them = ", ".join(f"{name} {theirs[name]}" for name in differing)
            us = ", ".join(f"{name} {ours[name]}" for name in differing)
            flags = " ".join(f"{flag}.{name} {theirs[name]}" for name in differing)
            raise UserError(
                f"{option}: the encoders of {self.folder} have {them}, this run's have {us}:"
                f" give {flags}, or the --preset of that run"
            )

    def to_scale(self, state: Mapping[str, Tensor], scale: FbankScale) -> dict[str, Tensor]:
        """The state of its model for fbanks of another scale, on which it computes the same, to round-off.

        Where x' = (f - m') / s' is what the audio encoder knows and x = (f - m) / s what it will get, x' = a x + b with
        a = s / s' and b = (m - m') / s'. So the kernel is multiplied by a, and the bias grows by b times its sum.

        Raises:
            UserError: the kernel and bias of the audio patch embedding are none.
        """
        result = dict(state)
        kernel, bias = (result.get(f"{_PATCHES}.{part}") for part in ("weight", "bias"))
        if scale != self.scale and kernel is not None and bias is not None:
            if kernel.ndim != 4 or bias.shape != kernel.shape[:1]:
                raise UserError(
                    f"{self.folder / WEIGHTS_FILE} holds no encoder of ours: {_PATCHES} has a weight of"
                    f" {list(kernel.shape)} and a bias of {list(bias.shape)}, expected [D, 1, 16, 16] and [D]"
                )
            factor, shift = scale.std / self.scale.std, (scale.mean - self.scale.mean) / self.scale.std
            wide = kernel.double()
            result[f"{_PATCHES}.weight"] = (factor * wide).to(kernel.dtype)
            result[f"{_PATCHES}.bias"] = (bias.double() + shift * wide.sum(dim=(1, 2, 3))).to(bias.dtype)
        return result

    def said_of_scale(self, scale: FbankScale) -> list[str]:
        """What `to_scale` did, in lines to print."""
        if scale == self.scale:
            return []
        return [f"  adapted: its audio patch embedding, from fbanks of {self.scale} to this run's {scale}"]


def read_first_stage(path: Path, option: str) -> FirstStage:
    """What a checkpoint, a run folder (its newest) or a folder of `save_pretrained` tells of its CrossMAE.

    Args:
        option: that names it, for messages.

    Raises:
        UserError: there is none, or it is none of this program, or of another method.
    """
    trained = read_trained(path)
    if not isinstance(trained.model, CrossMAEConfig):
        raise UserError(f"{option}: {trained.folder} is of {trained.method.title}, expected a CrossMAE")
    return FirstStage(folder=trained.folder, model=trained.model, scale=trained.scale)
