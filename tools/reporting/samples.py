"""The samples that a report shows, and what a model makes of them: masked, rebuilt, Attentive Tokens, single queries.

The same samples under the same masks for every run, so that reports can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards_spec.sample import FBANK_MELS, FBANK_SHIFT_MS
from tools.pages.pictures import (
    Flags,
    Picture,
    Pixels,
    Sound,
    as_picture,
    brighten,
    frame_cells,
    frame_outline,
    hide,
)
from tools.pages.report_pictures import Both, OfRun, Sample
from training.evaluation.features import LoadedModel
from training.methods.crossmae.model import CrossMAE
from training.methods.crossmae.view import View
from training.methods.interface import Inputs
from training.methods.shared.patches import FBANK_GRID, IMAGE_GRID, unpatchify_fbank, unpatchify_image
from training.stream.index import DatasetIndex
from training.stream.loader import Normalise, count_valid_frames, load
from training.stream.order import Numbers, Place, SampleStream
from training.stream.shares import Share

SEED = 0  # of the samples shown and of their masks: not the run's, so that reports of several runs can be compared


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A sample as a dataset holds it."""

    number: int
    key: str
    seed: int  # of its masks
    frame: Pixels  # [S, S, 3]
    fbank: npt.NDArray[np.float16]  # [T, M]
    labels: list[str]
    sound: Sound

    @property
    def spectrogram(self) -> Pixels:
        """Its sound, drawn."""
        return self.sound.pixels(self.fbank.astype(np.float32))

    @property
    def seconds(self) -> float:
        """Length of its sound."""
        return self.sound.valid * FBANK_SHIFT_MS / 1000


def first_numbers(index: DatasetIndex, count: int) -> Numbers:
    """The first `count` samples of the dataset's order for `SEED`."""
    return SampleStream(index.counts, seed=SEED).take(Place(), min(count, len(index)))[0]


def read_samples(index: DatasetIndex, numbers: Numbers) -> list[Stored]:
    """Samples by their numbers.

    Raises:
        DamagedSampleError: names shard, key and offset.
    """
    names = {entry["index"]: str(entry["name"]) for entry in index.classes}
    shares = [Share(numbers=numbers[i : i + 1], epochs=np.zeros(1, np.int64)) for i in range(len(numbers))]
    found = []
    for batch in load(index, shares, seed=SEED, batch_size=1, workers=0):
        number, fbank = int(batch.numbers[0]), batch.fbank[0].numpy().copy()
        found.append(
            Stored(
                number=number,
                key=batch.keys[0],
                seed=int(batch.seeds[0]),
                frame=batch.image[0, 0].numpy().copy(),
                fbank=fbank,
                labels=[names.get(i, f"class {i}") for i in index.label_ids(number)],
                sound=Sound.of(fbank),
            )
        )
    return found


def original(stored: Stored, *, longest: float) -> Sample:
    """A sample's page entry, before any run is shown. `longest` is the longest sound shown, seconds."""
    return Sample(
        key=stored.key,
        labels=stored.labels,
        seconds=stored.seconds,
        length=stored.seconds / longest,
        original=Both(image=as_picture(stored.frame), sound=as_picture(stored.spectrogram)),
    )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A sample in the model's eyes: B = 1 everywhere."""

    image: View
    audio: View


def inputs_of(loaded: LoadedModel, stored: Stored) -> Inputs:
    """A sample as the model takes it."""
    device = loaded.device
    frame, fbank = (torch.from_numpy(values)[None].to(device) for values in (stored.frame, stored.fbank))
    pixels, values = loaded.normalise(frame.unsqueeze(1), fbank)
    return Inputs(
        image=pixels,
        fbank=values,
        valid_frames=count_valid_frames(fbank),
        seeds=torch.tensor([stored.seed], device=device),
        numbers=torch.tensor([stored.number]),
    )


@torch.no_grad()
def see(model: CrossMAE, inputs: Inputs) -> Seen:
    """Masks and encodes a sample as in training."""
    return Seen(
        image=model.see_image(inputs.image[:, 0], inputs.seeds),
        audio=model.see_audio(inputs.fbank, inputs.seeds, inputs.valid_frames),
    )


@torch.no_grad()
def pictures(loaded: LoadedModel, stored: Stored, run: int) -> OfRun | None:
    """What a run makes of a sample, drawn; None where it neither masks nor rebuilds. `run` is its colour number."""
    inputs = inputs_of(loaded, stored)
    made = loaded.model.rebuild(inputs)
    if isinstance(loaded.model, CrossMAE):
        seen = see(loaded.model, inputs)
        masks = {"image": seen.image.mask.is_masked, "audio": seen.audio.mask.is_masked}
        chosen = Both(
            image=_chosen_frame(stored, _on_grid(seen.image.is_attentive, IMAGE_GRID)),
            sound=_chosen_sound(stored, _on_grid(seen.audio.is_attentive, FBANK_GRID)),
        )
    elif "image" in made and "audio" in made:
        masks, chosen = {side: rebuilt.is_masked for side, rebuilt in made.items()}, Both(image=None, sound=None)
    else:
        return None
    image, audio = stored.frame, stored.spectrogram
    hidden = frame_cells(_on_grid(masks["image"], IMAGE_GRID))
    silent = stored.sound.cells(_on_grid(masks["audio"], FBANK_GRID))
    rebuilt = Both(image=None, sound=None)
    if made:
        frame = _as_frame(made["image"].patches, loaded.normalise)
        sound = _as_stored(made["audio"].patches, loaded.normalise)
        rebuilt = Both(
            image=as_picture(np.where(hidden[..., None], frame, image)),
            sound=as_picture(np.where(silent[..., None], stored.sound.pixels(sound), audio)),
        )
    return OfRun(
        run=run,
        masked=Both(image=as_picture(hide(image, hidden)), sound=as_picture(hide(audio, silent))),
        reconstruction=rebuilt,
        attentive=chosen,
    )


def _chosen_frame(stored: Stored, chosen: Flags) -> Picture:
    return as_picture(brighten(stored.frame, frame_cells(chosen)), frame_outline(chosen))


def _chosen_sound(stored: Stored, chosen: Flags) -> Picture:
    return as_picture(brighten(stored.spectrogram, stored.sound.cells(chosen)), stored.sound.outline(chosen))


def place_name(number: int, grid: Sequence[int]) -> str:
    """Where a token of the fbank lies, for people: its first second and its band from the lowest."""
    time, band = divmod(number, grid[1])
    seconds = time * (1024 // grid[0]) * FBANK_SHIFT_MS / 1000
    return f"{seconds:.1f} s, mel {band * FBANK_MELS // grid[1]}–{(band + 1) * FBANK_MELS // grid[1] - 1}"


def _on_grid(flags: Tensor, grid: tuple[int, int]) -> Flags:
    return flags[0].reshape(grid).cpu().numpy()


def _as_frame(patches: Tensor, normalise: Normalise) -> Pixels:
    """Patches [1, N, P] of a normalised image as uint8 [S, S, 3]."""
    image = unpatchify_image(patches)[0].permute(1, 2, 0) * normalise.image_std + normalise.image_mean
    return image.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _as_stored(patches: Tensor, normalise: Normalise) -> npt.NDArray[np.float32]:
    """Patches [1, N, P] of a normalised fbank in the units of the stored one, [T, M]."""
    fbank = unpatchify_fbank(patches)[0] * normalise.fbank_std + normalise.fbank_mean
    return fbank.float().cpu().numpy()
