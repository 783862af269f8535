"""What a trained model makes of the samples of a dataset: pooled embeddings, cached on disk, and dense features.

Audio and image pass their encoders apart and unmasked (docs/evaluation.md, "Features"); each task takes from there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shards_spec.atomic import atomic_path
from shards_spec.errors import UserError
from training.checkpoint import WEIGHTS_FILE
from training.evaluation.metadata import all_numbers, sample_keys
from training.evaluation.row_cache import PIECE, Rows, cached_rows
from training.methods.interface import Features, Model
from training.stream.index import DatasetIndex
from training.stream.loader import Normalise, count_valid_frames, load
from training.stream.order import Numbers
from training.stream.shares import Share
from training.trained import read_trained

# B samples, N samples in all, D features, S pixels a side.
Precision = Literal["auto", "fp32", "bf16"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint, ready to encode.

    Attributes:
        step: optimizer steps behind the weights; 0 for the untrained model.
        fingerprint: of all that its features depend on beside the data: weights, model, normalisation, precision.
        is_trained: False for the run's own initial weights.
        autocast_dtype: in which the encoders compute, None for float32 throughout.
    """

    model: Model
    method: str  # its title, for messages
    normalise: Normalise
    checkpoint: Path
    step: int
    fingerprint: str
    is_trained: bool = True
    autocast_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.normalise.fbank_mean.device

    @torch.no_grad()
    def encode_image(self, frames: Tensor) -> Features:
        """Features of all tokens of frames as stored, uint8 [B, S, S, 3], on any device.

        Raises:
            UserError: the method does not encode a frame without its sound.
        """
        pixels, _ = self.normalise(frames.to(self.device).unsqueeze(1), self.normalise.fbank_mean)
        with self._autocast():
            return self._alone(self.model.encode(image=pixels).image, "a frame without its sound")

    @torch.no_grad()
    def encode_audio(self, fbank: Tensor) -> Features:
        """Features of all tokens of fbanks as stored, float16 [B, T, M], on any device.

        Raises:
            UserError: the method does not encode sound without its frame.
        """
        fbank = fbank.to(self.device)
        _, values = self.normalise(self.normalise.image_mean.view(1, 1, 1, -1), fbank)
        with self._autocast():
            encoded = self.model.encode(fbank=values, valid_frames=count_valid_frames(fbank))
            return self._alone(encoded.audio, "sound without its frame")

    def _alone(self, features: Features | None, what: str) -> Features:
        if features is None:
            raise UserError(f"{self.checkpoint}: {self.method} does not encode {what}, which this needs")
        return features

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def load_model(
    checkpoint: Path, device: torch.device, *, untrained: bool = False, precision: Precision = "auto"
) -> LoadedModel:
    """Loads the model of a checkpoint (or of a run's newest), with the normalisation it was trained with.

    Args:
        untrained: the same model with the weights that the run's seed drew, instead of the trained ones.
        precision: bf16 is autocast; auto takes it on a GPU, and float32 on the CPU.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    trained = read_trained(checkpoint)
    if trained.is_finetuned:
        raise UserError(f"{trained.folder} is a fine-tuned classifier: evaluate.py classification is for it")
    model = trained.fresh() if untrained else trained.load()
    is_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    facts = {
        "weights": _hash_of_state(model) if untrained else _hash_of_file(trained.folder / WEIGHTS_FILE),
        "model": trained.told["model"],
        "normalise": [trained.told["fbank_mean"], trained.told["fbank_std"]],
        "precision": "bf16" if is_bf16 else "fp32",
    }
    return LoadedModel(
        model=model.eval().to(device),
        method=trained.method.title,
        normalise=trained.normalise().to(device),
        checkpoint=trained.folder,
        step=0 if untrained else trained.step,
        fingerprint=_hash_of_values(facts),
        is_trained=not untrained,
        autocast_dtype=torch.bfloat16 if is_bf16 else None,
    )


def _hash_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _hash_of_state(model: Model) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_of_values(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------- pooled


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One vector a sample and modality, on the CPU."""

    numbers: Numbers  # int64 [N], sample numbers in the index
    keys: list[str]
    audio: Tensor  # float32 [N, D]
    image: Tensor  # float32 [N, D]; [N, 0] where no frame is read


def embed_dataset(
    index: DatasetIndex,
    loaded: LoadedModel,
    *,
    numbers: Numbers | None = None,
    pool: Pooling = "mean",
    cache: Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    accelerator: Accelerator | None = None,
) -> Embeddings:
    """Pooled features of samples: computed by all processes, or read from the cache where they were computed before.

    Args:
        numbers: which samples, int64 [N], each once; all of the dataset where None.
        pool: mean of the patch tokens after the last norm (CAV-MAE, MAViL), or the [CLS] token after it.
        cache: folder for what is computed; an interrupted extraction goes on there. None keeps nothing.

    Raises:
        UserError: a feature is not a finite number.
        DamagedSampleError, FetchError: a sample cannot be read.
    """
    numbers = all_numbers(index) if numbers is None else numbers

    def compute(shares: Iterable[Share]) -> Iterator[tuple[Numbers, Rows]]:
        for batch in load(index, shares, seed=0, batch_size=min(batch_size, PIECE), workers=workers):
            audio = _pooled(loaded, loaded.encode_audio(batch.fbank), pool)
            rows = {"audio": audio, "image": torch.empty(len(audio), 0)}
            if index.reads.frames:
                rows["image"] = _pooled(loaded, loaded.encode_image(batch.image[:, 0]), pool)
            check_finite(loaded, rows, batch.keys)
            yield batch.numbers.numpy(), rows

    folder = cache_folder(cache, loaded, index, {"kind": "embeddings", "pool": pool})
    rows = cached_rows(
        numbers,
        compute,
        folder=folder,
        batch_size=min(batch_size, PIECE),
        accelerator=accelerator,
        title="encode" if loaded.is_trained else "encode, untrained",
    )
    return Embeddings(numbers=numbers, keys=sample_keys(index, numbers), audio=rows["audio"], image=rows["image"])


def _pooled(loaded: LoadedModel, features: Features, pool: Pooling) -> Tensor:
    if pool == "mean":
        return features.pooled.float().cpu()
    if features.cls is None:
        raise UserError(f"--pool cls: {loaded.method} has no [CLS] token, take --pool mean")
    return features.cls.float().cpu()


def check_finite(loaded: LoadedModel, rows: Rows, keys: list[str]) -> None:
    """Raises UserError where a value is NaN or infinite: such features would rank and localize at random."""
    for name, tensor in rows.items():
        bad = ~tensor.isfinite().flatten(1).all(dim=1)
        if bad.any():
            key = keys[int(bad.nonzero()[0])]
            raise UserError(
                f"{loaded.checkpoint}: the {name} features of sample {key} are not finite: evaluate an older checkpoint"
            )


def cache_folder(cache: Path | None, loaded: LoadedModel, index: DatasetIndex, options: dict[str, Any]) -> Path | None:
    """The folder below `cache` for rows that depend on this model, this dataset and these options; None without cache.

    Its about.json says which these are, for people.
    """
    if cache is None:
        return None
    about = {"checkpoint": loaded.fingerprint, "dataset": index.fingerprint, **options}
    folder = cache / _hash_of_values(about)[:32]
    if not (folder / "about.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        said = about | {"checkpoint_path": str(loaded.checkpoint), "step": loaded.step}
        with atomic_path(folder / "about.json") as temporary:
            temporary.write_text(json.dumps(said, indent=2) + "\n")
    return folder


# -------------------------------------------------------------------- dense


@dataclass(frozen=True, kw_only=True)
class DenseBatch:
    """All that the encoders give for B samples, on the model's device."""

    numbers: Numbers  # int64 [B]
    keys: list[str]
    frames: Tensor  # uint8 [B, S, S, 3], a view of the loader's memory: gone when the next batch comes
    image: Features  # of 196 tokens, row by row of the 14 x 14 grid
    audio: Features | None  # of 512 tokens, token t * 8 + f; None where it was not asked for


def dense_features(
    index: DatasetIndex,
    loaded: LoadedModel,
    shares: Iterable[Share] | Numbers | None = None,
    *,
    batch_size: int = 64,
    workers: int = 2,
    with_audio: bool = True,
) -> Iterator[DenseBatch]:
    """Token features of samples, batch by batch; nothing of them is kept (AudioSet's eval set would take 30 GB).

    Args:
        shares: which samples, as their numbers int64 [N] or as the shares that `cached_rows` asks for; None for all.

    Raises:
        DamagedSampleError, FetchError: a sample cannot be read.
    """
    if shares is None or isinstance(shares, np.ndarray):
        numbers = all_numbers(index) if shares is None else shares
        pieces = np.split(numbers, range(batch_size, len(numbers), batch_size))
        shares = [Share(numbers=piece, epochs=np.zeros_like(piece)) for piece in pieces]
    for batch in load(index, shares, seed=0, batch_size=batch_size, workers=workers):
        yield DenseBatch(
            numbers=batch.numbers.numpy(),
            keys=batch.keys,
            frames=batch.image[:, 0],
            image=loaded.encode_image(batch.image[:, 0]),
            audio=loaded.encode_audio(batch.fbank) if with_audio else None,
        )
