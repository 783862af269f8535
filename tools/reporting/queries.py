"""What single queries of the embedding decoders attend to: the paper's Fig. 3 (b) and (c).

Fig. 3: "(b) Audio Learnable Queries, where different queries focus on various positions of audio features. (c) Visual
Learnable Queries, where different queries focus on different salient regions in the image"; Sec. 4.4: "attention maps
of queries and original visual features". In eq. 10 the audio queries q_a gather audio features from the visible image
tokens, in eq. 11 the visual queries q_v gather visual features from the visible audio tokens. Shown is this
cross-attention, of a decoder's last block (as DETR, which Sec. 3.3 names, shows it), mean over heads.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.pages.pictures import Flags, as_picture, brighten, frame_cells, frame_outline, heat
from tools.pages.report_pictures import Queries
from tools.pages.web_page import Mark
from tools.reporting.samples import Seen, Stored, inputs_of, place_name, see
from training.evaluation.features import LoadedModel
from training.methods.crossmae.decoders import EmbeddingDecoder
from training.methods.crossmae.model import CrossMAE
from training.methods.shared.blocks import CrossAttention
from training.methods.shared.patches import FBANK_GRID, IMAGE_GRID

# Q queries, one for each token of the modality rebuilt; V visible tokens of the other one.
_SHOWN = 4
_SPREAD_PAIRS = 2048  # pairs of queries compared


@torch.no_grad()
def cross_attention(module: CrossAttention, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
    """The weights [B, heads, N, M] with which x [B, N, D] attends to context [B, M, C] in a CrossAttention.

    The module keeps none, so they are computed again from its parts. bias as of its forward.
    """
    q = module.q(module.norm(x)).unflatten(-1, (module.heads, -1)).transpose(1, 2)
    k, _ = module.kv(context).unflatten(-1, (2, module.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])
    return (scores if bias is None else scores + bias).softmax(dim=-1)


@torch.no_grad()
def query_attention(model: CrossMAE, seen: Seen) -> tuple[Tensor, Tensor]:
    """Attention of the audio queries to the visible image tokens [512, V], of the visual ones to audio's [196, V]."""
    assert model.audio_from_image is not None and model.image_from_audio is not None
    caught: dict[str, Tensor] = {}
    decoders: dict[str, EmbeddingDecoder] = {"audio": model.audio_from_image, "visual": model.image_from_audio}
    handles = []
    for name, decoder in decoders.items():
        last = decoder.blocks[-1].cross
        assert isinstance(last, CrossAttention)

        def catch(module: CrossAttention, inputs: tuple[Tensor, Tensor, Tensor | None], name: str = name) -> None:
            caught[name] = cross_attention(module, *inputs)[0].mean(dim=0)

        handles.append(last.register_forward_pre_hook(catch))
    try:
        model.decode_embeddings(seen.image, seen.audio)
    finally:
        for handle in handles:
            handle.remove()
    return caught["audio"], caught["visual"]


def spread(attention: Tensor) -> float:
    """How much two queries' attention [Q, V] differs on average: total variation, 0 (all alike) to 1 (disjoint).

    Over `_SPREAD_PAIRS` random pairs of different queries, the same ones each time.
    """
    count = len(attention)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(count, (_SPREAD_PAIRS,), generator=generator)
    second = (first + torch.randint(1, count, (_SPREAD_PAIRS,), generator=generator)) % count
    attention = attention.cpu()
    return float((attention[first] - attention[second]).abs().sum(dim=1).mean() / 2)


def shown_queries(grid: tuple[int, int], rows: int) -> list[int]:
    """Four tokens at the quarter points of a grid's first `rows` rows: the same ones for every model."""
    columns = grid[1]
    return [
        int((rows * (2 * i + 1)) // 4) * columns + int((columns * (2 * j + 1)) // 4) for i in (0, 1) for j in (0, 1)
    ]


def query_pictures(loaded: LoadedModel, stored: Stored, run: int) -> tuple[list[Queries], list[float]]:
    """Pictures for both decoders, and how much the queries of each differ (`spread`); nothing without decoders."""
    if not isinstance(loaded.model, CrossMAE) or not loaded.model.config.embedding.enabled:
        return [], []
    seen = see(loaded.model, inputs_of(loaded, stored))
    over_image, over_sound = query_attention(loaded.model, seen)
    rows = -(-stored.sound.valid * FBANK_GRID[0] // 1024)
    return [
        _audio_queries(stored, seen, over_image, shown_queries(FBANK_GRID, rows), run),
        _visual_queries(stored, seen, over_sound, shown_queries(IMAGE_GRID, IMAGE_GRID[0]), run),
    ], [spread(over_image), spread(over_sound)]


def _audio_queries(stored: Stored, seen: Seen, attention: Tensor, numbers: list[int], run: int) -> Queries:
    """q_a: places in the spectrogram, attention over the frame."""
    visible, cells = seen.image.mask.visible[0], _cells(numbers, FBANK_GRID)
    maps = []
    for number in numbers:
        values, is_seen = _on_grid(attention[number], visible, IMAGE_GRID)
        maps.append(as_picture(heat(stored.frame, frame_cells(values), frame_cells(is_seen))))
    places = brighten(stored.spectrogram, stored.sound.cells(cells))
    rows = stored.sound.valid * FBANK_GRID[0] / 1024
    marks = [
        Mark(x=(time + 0.5) / rows, y=1 - (band + 0.5) / FBANK_GRID[1], text=str(i + 1))
        for i, (time, band) in enumerate(divmod(number, FBANK_GRID[1]) for number in numbers)
    ]
    return Queries(
        run=run,
        key=stored.key,
        rebuilds="sound",
        places=as_picture(places, stored.sound.outline(cells)),
        marks=marks,
        maps=maps,
        captions=[f"{i + 1}: {place_name(number, FBANK_GRID)}" for i, number in enumerate(numbers)],
    )


def _visual_queries(stored: Stored, seen: Seen, attention: Tensor, numbers: list[int], run: int) -> Queries:
    """q_v: places in the frame, attention over the spectrogram."""
    visible, cells = seen.audio.mask.visible[0], _cells(numbers, IMAGE_GRID)
    maps = []
    for number in numbers:
        values, is_seen = _on_grid(attention[number], visible, FBANK_GRID)
        heard = stored.sound.cells(is_seen)
        maps.append(as_picture(heat(stored.spectrogram, stored.sound.cells(values), heard)))
    places = [divmod(number, IMAGE_GRID[1]) for number in numbers]
    return Queries(
        run=run,
        key=stored.key,
        rebuilds="image",
        places=as_picture(brighten(stored.frame, frame_cells(cells)), frame_outline(cells)),
        marks=[
            Mark(x=(column + 0.5) / IMAGE_GRID[1], y=(row + 0.5) / IMAGE_GRID[0], text=str(i + 1))
            for i, (row, column) in enumerate(places)
        ],
        maps=maps,
        captions=[f"{i + 1}: row {row + 1}, column {column + 1}" for i, (row, column) in enumerate(places)],
    )


def _cells(numbers: list[int], grid: tuple[int, int]) -> Flags:
    cells = np.zeros(grid, bool)
    cells.flat[numbers] = True
    return cells


def _on_grid(attention: Tensor, visible: Tensor, grid: tuple[int, int]) -> tuple[npt.NDArray[np.float32], Flags]:
    """Attention [V] to the visible tokens [V] on their grid, its largest value being 1; and which are visible."""
    values, is_seen = np.zeros(grid, np.float32), np.zeros(grid, bool)
    where = visible.cpu().numpy()
    values.flat[where] = (attention / attention.max()).float().cpu().numpy()
    is_seen.flat[where] = True
    return values, is_seen
