"""Cross-modal retrieval: which image belongs to this sound, and the other way round.

The paper's Tables 4 to 7 (section 4.4), without fine-tuning: audio and image pass their encoders apart and
unmasked, the outputs are pooled, similarity is their cosine, and R@K is the share of queries whose own partner
is among the K most similar. Every result names its pool, since R@K means little without it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from shards_spec.errors import UserError
from training.checkpoint import CONFIG_FILE, find_checkpoint, load_weights, read_json, read_state
from training.model.config import config_from_dict
from training.model.crossmae import CrossMAE
from training.stream.index import DatasetIndex
from training.stream.loader import Normalise, all_shares, load

# Q queries, C candidates, D features.
RANKS = (1, 5, 10)
_CHUNK = 1024  # queries scored at once: memory is _CHUNK x C, whatever Q


@dataclass(frozen=True, kw_only=True)
class Recall:
    """One direction of retrieval. `recall` maps K to the share of queries with their partner in the first K, in %."""

    recall: dict[int, float]
    median_rank: float


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Both directions, with what they have to be read against. `chance` is R@K of a random ranking, in %."""

    pool: int
    chance: dict[int, float]
    audio_to_image: Recall
    image_to_audio: Recall
    ties: str = "a candidate as similar as the partner ranks before it"


def partner_ranks(queries: Tensor, candidates: Tensor) -> Tensor:
    """The rank (1 = first) of each query's own partner among all candidates, int64 [Q].

    Query i's partner is candidate i. A tie counts against the query, so that collapsed features score no hit.

    Args:
        queries: unit vectors, float [Q, D].
        candidates: unit vectors, float [C = Q, D].
    """
    ranks = []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ candidates.T  # [chunk, C]
        own = similarity.diagonal(start).unsqueeze(1)
        ranks.append((similarity >= own).sum(dim=1))  # its own similarity counts for rank 1
    return torch.cat(ranks)


def retrieval(audio: Tensor, image: Tensor) -> RetrievalResult:
    """Scores paired features, float [N, D] each, in both directions."""
    audio, image = F.normalize(audio.float(), dim=1), F.normalize(image.float(), dim=1)
    pool = len(audio)
    return RetrievalResult(
        pool=pool,
        chance={k: 100 * min(k / pool, 1.0) for k in RANKS},
        audio_to_image=_recall(partner_ranks(audio, image)),
        image_to_audio=_recall(partner_ranks(image, audio)),
    )


def _recall(ranks: Tensor) -> Recall:
    recall = {k: 100 * (ranks <= k).double().mean().item() for k in RANKS}
    return Recall(recall=recall, median_rank=ranks.double().quantile(0.5).item())


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint, ready to encode."""

    checkpoint: Path
    step: int
    model: CrossMAE
    normalise: Normalise


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Loads the model of a checkpoint (or of a run's newest), with the normalisation it was trained with.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    checkpoint = find_checkpoint(path)
    config = read_json(checkpoint / CONFIG_FILE)
    try:
        model = CrossMAE(config_from_dict(config["model"]))
        normalise = Normalise(config["fbank_mean"], config["fbank_std"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{checkpoint / CONFIG_FILE} describes no CrossMAE of this program: {error}") from error
    load_weights(checkpoint, model)
    return LoadedModel(
        checkpoint=checkpoint,
        step=read_state(checkpoint).step,
        model=model.eval().to(device),
        normalise=normalise.to(device),
    )


@torch.no_grad()
def encode_dataset(
    loaded: LoadedModel, index: DatasetIndex, *, batch_size: int, workers: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pooled audio and image features of every sample, in the dataset's order, float32 [N, D] each, on the CPU."""
    batches = load(index, all_shares(len(index), batch_size), seed=0, batch_size=batch_size, workers=workers)
    audio, image = [], []
    total = -(-len(index) // batch_size)
    for batch in tqdm(batches, total=total, desc="encode", unit="batch", disable=None, dynamic_ncols=True):
        pixels, fbank = loaded.normalise(batch.image.to(device), batch.fbank.to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            audio.append(loaded.model.encode_audio(fbank).pooled.float().cpu())
            image.append(loaded.model.encode_image(pixels).pooled.float().cpu())
    return torch.cat(audio), torch.cat(image)


def evaluate_retrieval(index: DatasetIndex, checkpoint: Path, *, batch_size: int, workers: int) -> dict[str, Any]:
    """Retrieval over all samples of a dataset: the result and what it was measured on, as JSON values.

    Raises:
        UserError: the checkpoint cannot be used, or a remote shard cannot be had.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(checkpoint, device)
    audio, image = encode_dataset(loaded, index, batch_size=batch_size, workers=workers, device=device)
    return {
        "protocol": "cosine of pooled unmasked features, all samples of the dataset",
        "data": ", ".join(map(str, index.folders)),
        "fingerprint": index.fingerprint,
        "checkpoint": str(loaded.checkpoint),
        "step": loaded.step,
        **asdict(retrieval(audio, image)),
    }
