"""A page about a run: curves, what the model rebuilds, retrieval. One HTML file that needs no other.

    python -m tools.report runs/pretrain            writes runs/pretrain/report.html
    python -m tools.report runs/pretrain --data shards/eval --samples 12 --out /tmp/report.html

It reads the run folder (config.json, metrics.jsonl, the newest checkpoint and, where evaluate.py wrote one there,
retrieval.json) and a few samples of the dataset. The run may still be going on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from torch import Tensor

from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import DamagedSampleError, UserError
from shards_spec.sample import FBANK_SHIFT_MS
from shards_spec.storage import place
from tools.pages.pictures import Flags, Pixels, audio_triple, image_triple, valid_rows
from tools.pages.report import DatasetFacts, Line, Report, RetrievalFacts, Sample, page
from training.checkpoint import CONFIG_FILE, checkpoints, read_json, read_state
from training.evaluation.retrieval import RANKS, LoadedModel, load_model
from training.model.crossmae import Reconstructed, View
from training.model.patches import FBANK_GRID, IMAGE_GRID, unpatchify_fbank, unpatchify_image
from training.run_folder import METRICS_FILE, read_step_log
from training.stream.index import DatasetIndex, open_config
from training.stream.loader import Batch, Normalise, load, rank_shares
from training.stream.order import Place, SampleStream

SEED = 0  # of the samples shown and of their masks: not the run's, so that reports of several runs can be compared
REPORT_FILE = "report.html"
RETRIEVAL_FILE = "retrieval.json"
_PROGRAM = "python -m tools.report"


@dataclass(frozen=True)
class Seen:
    """One modality of one sample as the model sees it and, with a pixel decoder, rebuilds it."""

    patches: Tensor | None  # [1, N, P], in the units of the input; None without a pixel decoder
    is_masked: Tensor  # [1, N] bool, True = hidden from the encoder
    is_attentive: Tensor  # [1, N] bool


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Writes a page about a run: curves, reconstructions, retrieval."""

    run: tyro.conf.Positional[Path]
    """Run folder, the --out of train.py, with a checkpoint."""
    data: str | None = None
    """Dataset folder, or its URL, to take samples from. Default: the run's own, as config.json names it."""
    out: Path | None = None
    """File to write. Default: report.html in the run folder."""
    samples: int = 6
    """Samples to show; 0 needs no dataset."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"--samples must be at least 0, got {self.samples}")


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 2 a user's mistake."""
    with one_line_errors(_PROGRAM):
        config: ReportConfig = parse(ReportConfig, arguments, prog=_PROGRAM)
        out = config.out or config.run / REPORT_FILE
        if config.out is not None and not out.parent.is_dir():
            raise UserError(f"--out {out}: the folder {out.parent} does not exist")
        document = page(gather(config)).encode("utf-8", "replace")  # names of files may be no Unicode
        with atomic_path(out) as temporary:
            temporary.write_bytes(document)
    print(f"{_PROGRAM}: {out}, {len(document) / 1e6:.1f} MB")


@torch.no_grad()
def gather(config: ReportConfig) -> Report:
    """What the page shows of a run.

    Raises:
        UserError: the run has no checkpoint or no metrics, or its dataset is not there.
    """
    run = config.run
    checkpoint = _newest_checkpoint(run)
    state = read_state(checkpoint)
    settings, metrics = read_json(run / CONFIG_FILE), _metrics(run)
    retrieval = _retrieval(run / RETRIEVAL_FILE, trained_on=state.fingerprint)
    index = None if config.samples == 0 else _open_dataset(config, settings)
    loaded = load_model(checkpoint, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = epochs = None
    if index is not None:
        is_training_set = index.fingerprint == state.fingerprint
        dataset = DatasetFacts(
            folder=", ".join(map(str, index.folders)), samples=len(index), is_training_set=is_training_set
        )
        epochs = state.place.samples_done(len(index)) / len(index) if is_training_set else None
    return Report(
        name=run.resolve().name,
        config=settings,
        step=state.step,
        epochs=epochs,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        metrics=metrics,
        dataset=dataset,
        samples=[] if index is None else show_samples(loaded, index, config.samples),
        retrieval=retrieval,
    )


# -------------------------------------------------------------------- what it reads


def _newest_checkpoint(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist: give the --out of train.py")
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is no run folder (no {CONFIG_FILE}): give the --out of train.py")
    found = checkpoints(run)
    if not found:
        raise UserError(f"run {run} has no checkpoint: let it train to its first (--save-every of train.py)")
    return found[-1]


def _metrics(run: Path) -> list[Line]:
    path = run / METRICS_FILE
    try:
        lines = read_step_log(path)
        steps = [line["step"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove the line, or the file's end from there") from error
    if not all(isinstance(step, int) and step > 0 for step in steps) or steps != sorted(steps):
        raise UserError(f"{path} is damaged: its steps do not ascend from 1")
    if not lines:
        raise UserError(f"{path} {'holds no line' if path.is_file() else 'is missing'}: nothing was logged in this run")
    return lines


def _retrieval(path: Path, *, trained_on: str) -> RetrievalFacts | None:
    """What evaluate.py retrieval --out wrote, if it did."""
    if not path.is_file():
        return None
    result = read_json(path)

    def row(recall: dict[str, Any], median: float) -> dict[str, float]:
        return {str(k): float(recall[str(k)]) for k in RANKS} | {"median": float(median)}

    try:
        rows = {
            name: row(result[field]["recall"], result[field]["median_rank"])
            for name, field in (("audio → image", "audio_to_image"), ("image → audio", "image_to_audio"))
        }
        rows["chance"] = row(result["chance"], (result["pool"] + 1) / 2)
        return RetrievalFacts(
            pool=int(result["pool"]),
            data=str(result["data"]),
            is_training_set=result["fingerprint"] == trained_on,
            step=int(result["step"]),
            rows=rows,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not what evaluate.py retrieval writes ({error!r}): write it again") from error


def _open_dataset(config: ReportConfig, settings: dict[str, Any]) -> DatasetIndex:
    if config.data is not None:
        return open_config(settings | {"data": [config.data]})
    folders = [place(str(folder)) for folder in settings.get("data", [])]
    if missing := [folder for folder in folders if isinstance(folder, Path) and not folder.is_dir()]:
        raise UserError(
            f"the run's dataset {missing[0]} is not there (as {CONFIG_FILE} names it, from the current folder):"
            " give --data DIR, or --samples 0 for a page without samples"
        )
    return open_config(settings)


def show_samples(loaded: LoadedModel, index: DatasetIndex, count: int) -> list[Sample]:
    """Pictures of the first `count` samples of the dataset's order for `SEED`.

    Raises:
        UserError: a sample is damaged; names shard, key and offset.
    """
    count = min(count, len(index))
    names = {entry["index"]: str(entry["name"]) for entry in index.classes}
    shares = rank_shares(SampleStream(index.counts, seed=SEED), Place(), steps=count, batch_size=1)
    shown = []
    try:
        for batch in load(index, shares, seed=SEED, batch_size=1, workers=0):
            ids = index.label_ids(int(batch.numbers[0]))
            shown.append(show_sample(loaded, batch, [names.get(i, f"class {i}") for i in ids]))
    except DamagedSampleError as error:
        raise UserError(f"{error}: restore the shard, or give another --data") from error
    return shown


def show_sample(loaded: LoadedModel, batch: Batch, labels: list[str]) -> Sample:
    """Pictures of a batch of one."""
    device = loaded.normalise.fbank_mean.device
    pixels, fbank = loaded.normalise(batch.image.to(device), batch.fbank.to(device))
    image, audio = _seen(loaded, pixels, fbank, batch.seeds.to(device))
    stored = batch.fbank[0].numpy()
    valid = valid_rows(stored)
    return Sample(
        key=batch.keys[0],
        labels=labels,
        seconds=valid * FBANK_SHIFT_MS / 1000,
        image=image_triple(
            batch.image[0].numpy(),
            None if image.patches is None else _as_frame(image.patches, loaded.normalise),
            _on_grid(image.is_masked, IMAGE_GRID),
            _on_grid(image.is_attentive, IMAGE_GRID),
        ),
        audio=audio_triple(
            stored.astype(np.float32),
            None if audio.patches is None else _as_stored(audio.patches, loaded.normalise),
            _on_grid(audio.is_masked, FBANK_GRID),
            _on_grid(audio.is_attentive, FBANK_GRID),
            valid=valid,
        ),
    )


def _seen(loaded: LoadedModel, pixels: Tensor, fbank: Tensor, seeds: Tensor) -> tuple[Seen, Seen]:
    """Image and audio of a sample in the model's eyes."""
    model = loaded.model
    if model.config.pixel.target == "none":
        return _of_view(model.see_image(pixels, seeds)), _of_view(model.see_audio(fbank, seeds))
    rebuilt = model.reconstruct(pixels, fbank, seeds)
    return _of_rebuilt(rebuilt.image), _of_rebuilt(rebuilt.audio)


def _of_rebuilt(rebuilt: Reconstructed) -> Seen:
    return Seen(rebuilt.patches, rebuilt.is_masked, rebuilt.is_attentive)


def _of_view(view: View) -> Seen:
    is_masked = view.mask.is_masked
    chosen = view.mask.visible.gather(1, view.places)
    return Seen(None, is_masked, torch.zeros_like(is_masked).scatter(1, chosen, True))


def _on_grid(flags: Tensor, grid: tuple[int, int]) -> Flags:
    return flags[0].reshape(grid).cpu().numpy()


def _as_frame(patches: Tensor, normalise: Normalise) -> Pixels:
    """Patches [1, N, P] of a normalised image as uint8 [S, S, 3]."""
    image = unpatchify_image(patches)[0].permute(1, 2, 0) * normalise.image_std + normalise.image_mean
    return image.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _as_stored(patches: Tensor, normalise: Normalise) -> npt.NDArray[np.float32]:
    """Patches [1, N, P] of a normalised fbank in the units of the stored one, [T, M]."""
    fbank = unpatchify_fbank(patches)[0] * normalise.fbank_std + normalise.fbank_mean
    return fbank.cpu().numpy()


if __name__ == "__main__":
    main()
