"""A trained model in one line, and back: from_pretrained, save_pretrained, push_to_hub.

from training.pretrained import CrossMAE

model = CrossMAE.from_pretrained("runs/pretrain")             # a run, a checkpoint, or a name on the Hugging Face Hub
image, fbank = model.normalise(frames, fbanks)                # uint8 [B, 224, 224, 3], float [B, 1024, 128]
features = model.encode_audio(fbank)                          # pooled [B, D], tokens [B, 512, D], cls [B, D]
# with --model.encoder.padding left_out: encode_audio(fbank, count_valid_frames(fbanks)), of training.stream.loader
model.push_to_hub("me/crossmae-base")
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from torch import Tensor

from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint, load_weights, read_config, write_json
from training.methods.crossmae import config_from_dict, model
from training.stream.loader import Normalise
from training.tensor_files import read_shapes, write_safetensors

# What a saved model tells of the run that made it. The rest of a run's config.json is about the machine: folders.
_PUBLIC = (
    "preset",
    "variant",
    "model",
    "fbank_mean",
    "fbank_std",
    "steps",
    "epochs",
    "batch_size",
    "seed",
    "mixed_precision",
    "optimizer",
)

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

_CARD = """---
{{ card_data }}
---

# CrossMAE

An audio-visual model of video clips, pre-trained with CrossMAE (Guo et al., CVPR 2024): a ViT for a frame
(224 x 224) and a ViT for ten seconds of sound (a log-mel filterbank of 1024 x 128).

    from training.pretrained import CrossMAE

    model = CrossMAE.from_pretrained("OWNER/NAME")
    image, fbank = model.normalise(frames, fbanks)  # uint8 [B, 224, 224, 3], float [B, 1024, 128]
    model.encode_image(image), model.encode_audio(fbank)  # pooled, tokens, cls

`model.safetensors` holds the weights, `config.json` the sizes and how it was trained. Filterbanks are normalised with
the mean and standard deviation in config.json, which `normalise` does; it also normalises frames as ImageNet's.
"""


class CrossMAE(
    model.CrossMAE,
    PyTorchModelHubMixin,
    library_name="crossmae",
    tags=["audio-visual", "masked-autoencoder", "self-supervised"],
    model_card_template=_CARD,
):
    """CrossMAE that knows how it was trained, and how its inputs are normalised. See training.methods.crossmae."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        """A fresh model for the `model`, `fbank_mean` and `fbank_std` of a run's config.json; the rest is kept.

        Raises:
            UserError: one of the three is missing or malformed.
        """
        try:
            model_config = config_from_dict(run_config["model"])
            mean, std = float(run_config["fbank_mean"]), float(run_config["fbank_std"])
        except KeyError as error:
            raise UserError(f"the config.json of a CrossMAE has {error}, which this one lacks") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"not the config.json of a CrossMAE: {error}") from None
        super().__init__(model_config)
        self.run_config = run_config
        self.fbank_mean, self.fbank_std = mean, std

    def normalise(self, image: Tensor, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """Frames as stored, uint8 [B, 224, 224, 3], and fbanks [B, 1024, 128] -> the inputs, float32.

        They come back as [B, 3, 224, 224] and [B, 1024, 128], on the device they were on.
        """
        return Normalise(self.fbank_mean, self.fbank_std).to(fbank.device)(image, fbank)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub_options: Any) -> "CrossMAE":
        """The model of a checkpoint, in evaluation mode and on the CPU.

        Strict and from safetensors only; PyTorchModelHubMixin's own would pass over missing weights.

        Args:
            pretrained_model_name_or_path: a checkpoint, a run folder (its newest checkpoint), a folder of
                `save_pretrained`, or a name on the Hub.
            hub_options: revision, token, cache_dir, local_files_only, force_download.

        Raises:
            UserError: there is no such folder or model, or it is damaged.
        """
        if unknown := hub_options.keys() - _HUB_OPTIONS:
            raise TypeError(f"from_pretrained takes {', '.join(_HUB_OPTIONS)}, not {', '.join(sorted(unknown))}")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _download(str(pretrained_model_name_or_path), hub_options)
        elif not (folder / WEIGHTS_FILE).is_file():
            folder = find_checkpoint(folder)
        config = read_config(folder)
        cls._check_sizes(config, folder)
        result = cls(config)
        load_weights(folder, result)
        return result.eval()

    @classmethod
    def _check_sizes(cls, config: dict[str, Any], folder: Path) -> None:
        """Refuses a config.json whose sizes are not those of the weights, before memory is taken for such a model."""
        try:
            with torch.device("meta"):
                described = cls(config).state_dict()
        except RuntimeError as error:  # torch's, of sizes that it cannot count
            raise UserError(f"{folder / CONFIG_FILE} is damaged ({error}): use another checkpoint") from error
        shapes = read_shapes(folder / WEIGHTS_FILE, "use another checkpoint")
        for name, value in described.items():
            if shapes.get(name) != list(value.shape):
                raise UserError(
                    f"{folder / WEIGHTS_FILE} holds another model than its config.json describes:"
                    f" {name} is {shapes.get(name, 'missing')}, expected {list(value.shape)}"
                )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Weights and config.json, as a checkpoint has them; what config.json says of the machine is left out."""
        write_safetensors(self.state_dict(), save_directory / WEIGHTS_FILE)
        public = {name: self.run_config[name] for name in _PUBLIC if name in self.run_config}
        write_json(save_directory / CONFIG_FILE, public)


def _download(name: str, options: dict[str, Any]) -> Path:
    """The folder in the Hub's cache that holds the model `name`."""
    try:
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            path = hf_hub_download(name, file, **options)
    except HFValidationError:
        raise UserError(f"{name} is no folder, and no name on the Hugging Face Hub either (OWNER/NAME)") from None
    except (HfHubHTTPError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} is no folder here, and the Hugging Face Hub did not give it: {reason}") from error
    return Path(path).parent
