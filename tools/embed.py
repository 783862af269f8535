"""Audio and image embeddings of any media files, by the code that make-shards and evaluate.py use.

    python -m tools.embed clip.mp4 other.webm --checkpoint runs/pretrain
    python -m tools.embed *.mp4 --checkpoint runs/pretrain --out emb.npz --heatmap pictures/

    from tools.embed import embed
    result = embed(["clip.mp4"], "runs/pretrain")   # result.audio, result.image: float32 [N, D]; result.similarity

A file is cut as make-shards without a CSV cuts it: its first 10 s, the frame in their middle; --start S takes the 10 s
from second S on. The command prints how alike each sound and each image are, and writes, where asked, embeddings and
pictures of where in the frame each sound comes from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro

from pipeline.encode_sample import SampleOptions
from shards_spec.atomic import atomic_path
from shards_spec.command_line import one_line_errors, parse
from shards_spec.errors import UserError
from shards_spec.messages import tell
from tools.embedding.files import Failed, FileSample, read_files
from tools.embedding.picture import localization_picture
from training.evaluation.features import LoadedModel, load_model
from training.evaluation.localization import heatmaps
from training.methods.interface import Features
from training.out_of_memory import out_of_memory_told

# N files with a sample, D features.
Floats = npt.NDArray[np.float32]
FrameFit = Literal["resize", "crop"]

_MOST_IN_MATRIX = 8  # files; of more, each one's own similarity and its best match
_NAME_WIDTH = 36


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What the model makes of the files that gave a sample, in the order given; pooled, not normalised."""

    paths: list[str]
    keys: list[str]
    audio: Floats  # [N, D]
    image: Floats  # [N, D]
    failures: list[Failed]

    @property
    def similarity(self) -> Floats:
        """Cosine of the sound of file i and the image of file j, [N, N]."""
        audio = self.audio / np.linalg.norm(self.audio, axis=1, keepdims=True)
        image = self.image / np.linalg.norm(self.image, axis=1, keepdims=True)
        return audio @ image.T


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Embeds media files: prints how alike sounds and images are, writes embeddings and heatmaps."""

    files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]")]]
    """Media files, each with sound and pictures."""
    checkpoint: Path
    """A checkpoint, or a run folder (its newest checkpoint is taken)."""
    out: Path | None = None
    """Write keys, paths, audio and image embeddings to this .npz file."""
    heatmap: Path | None = None
    """Folder for a picture of each file: frame, where its sound comes from, spectrogram."""
    start: float | None = None
    """Second at which the 10 s begin in each file. Default: its first 10 s."""
    frame_fit: FrameFit = "resize"
    """As the training data was made (make-shards --frame-fit)."""
    batch_size: int = 16
    """Files encoded at once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.start is not None and not 0 <= self.start < 1e6:
            raise ValueError(f"--start is a second of the file, at least 0, got {self.start}")
        if not self.files:
            raise ValueError("no file given")

    def check(self) -> None:
        """Raises UserError where what is to be written has no place."""
        for name, path in (("out", self.out), ("heatmap", self.heatmap)):
            if path is not None and not path.absolute().parent.is_dir():
                raise UserError(f"--{name} {path}: the folder {path.parent} does not exist")
        if self.out is not None and (self.out.suffix != ".npz" or self.out.is_dir()):
            raise UserError(f"--out {self.out}: expected a file that ends in .npz")
        if self.heatmap is not None and self.heatmap.is_file():
            raise UserError(f"--heatmap {self.heatmap} is a file: give a folder")


def embed(
    files: Sequence[str | Path],
    checkpoint: str | Path,
    *,
    start: float | None = None,
    frame_fit: FrameFit = "resize",
    batch_size: int = 16,
    heatmap: str | Path | None = None,
    isolate: bool = False,
) -> Embedded:
    """Embeds media files; those that give no sample are in `failures` of the result.

    Args:
        files: paths of media files.
        checkpoint: a checkpoint or a run folder.
        start: second at which the 10 s begin in each file; None for its first 10 s.
        frame_fit: as the training data was made.
        batch_size: files encoded at once.
        heatmap: folder to write a picture of each file to.
        isolate: decode in a process of its own, so that no file can crash or hang this one. Like all of
            multiprocessing it then needs `if __name__ == "__main__":` in a script; the command does this.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    loaded = load_model(Path(checkpoint), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    pictures = None if heatmap is None else _Pictures(Path(heatmap))
    options = SampleOptions(frame_fit=frame_fit)
    failures: list[Failed] = []
    names: list[tuple[str, str]] = []
    rows: list[tuple[Floats, Floats]] = []
    read = read_files([Path(file) for file in files], start=start, options=options, isolate=isolate)
    for batch in _batches(read, batch_size, failures):
        rows.append(_encode(loaded, batch, pictures))
        names += [(sample.path, sample.key) for sample in batch]
    none = np.zeros((0, loaded.model.dim), np.float32)
    return Embedded(
        paths=[path for path, _ in names],
        keys=[key for _, key in names],
        audio=np.concatenate([none, *(audio for audio, _ in rows)]),
        image=np.concatenate([none, *(image for _, image in rows)]),
        failures=failures,
    )


def _batches(
    read: Iterator[FileSample | Failed], batch_size: int, failures: list[Failed]
) -> Iterator[list[FileSample]]:
    """Samples, `batch_size` at a time; files without one go to `failures`."""
    batch: list[FileSample] = []
    for outcome in read:
        if isinstance(outcome, Failed):
            failures.append(outcome)
            continue
        batch.append(outcome)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(loaded: LoadedModel, batch: list[FileSample], pictures: "_Pictures | None") -> tuple[Floats, Floats]:
    """Pooled features of a batch, audio and image [B, D]."""
    audio = loaded.encode_audio(torch.from_numpy(np.stack([sample.fbank for sample in batch])))
    image = loaded.encode_image(torch.from_numpy(np.stack([sample.frame for sample in batch])))
    if pictures is not None:
        pictures.write(batch, audio, image)
    return audio.pooled.float().cpu().numpy(), image.pooled.float().cpu().numpy()


class _Pictures:
    """A folder of pictures, KEY.png; a key that is met again gets a number."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._taken: set[str] = set()

    def write(self, batch: list[FileSample], audio: Features, image: Features) -> None:
        """One picture a file of the batch."""
        maps = heatmaps(image.tokens.float(), audio.pooled.float()).cpu().numpy()
        alike = torch.nn.functional.cosine_similarity(audio.pooled.float(), image.pooled.float()).tolist()
        for sample, heatmap, similarity in zip(batch, maps, alike, strict=True):
            name, number = sample.key, 1
            while name in self._taken:
                number += 1
                name = f"{sample.key}-{number}"
            self._taken.add(name)
            with atomic_path(self._folder / f"{name}.png") as temporary:
                localization_picture(sample, heatmap, similarity).save(temporary, "PNG")


# -------------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> None:
    """The command. Exit status: 0 done, 1 some files gave no sample, 2 a user's mistake."""
    with one_line_errors("python -m tools.embed"):
        config: EmbedConfig = parse(EmbedConfig, arguments)
        config.check()
        with out_of_memory_told("a smaller --batch-size needs less memory"):
            result = embed(
                config.files,
                config.checkpoint,
                start=config.start,
                frame_fit=config.frame_fit,
                batch_size=config.batch_size,
                heatmap=config.heatmap,
                isolate=True,
            )
        _publish(result, config)


def _publish(result: Embedded, config: EmbedConfig) -> None:
    """Prints what was found and writes it; ends the program with 1 where files gave no sample."""
    for failure in result.failures:
        tell(str(failure))
    failed, asked = len(result.failures), len(config.files)
    if failed == asked:
        tell(f"error: none of the {asked:,} files gave a sample, nothing is written")
        raise SystemExit(1)
    print(table(result))
    if config.out is not None:
        write(result, config.out)
        print(f"\nembeddings {list(result.audio.shape)} of sound and image: {config.out}")
    if config.heatmap is not None:
        print(f"{'' if config.out else chr(10)}pictures: {config.heatmap}")
    if failed:
        tell(f"{failed:,} of {asked:,} files gave no sample, see above")
        raise SystemExit(1)


def write(result: Embedded, path: Path) -> None:
    """Writes an .npz of keys, paths, audio, image."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            keys=np.array(result.keys),
            paths=np.array(result.paths),
            audio=result.audio,
            image=result.image,
        )


def table(result: Embedded) -> str:
    """The cosine of every sound and every image where they are few; else each file's own, and its best match."""
    alike = result.similarity
    count = len(alike)
    names = [_short(key) for key in result.keys]
    wide = max(len(name) for name in names)
    if count <= _MOST_IN_MATRIX:
        head = "cosine of sound (row) and image (column)"
        columns = " " * (wide + 4) + "".join(f"{number:>8}" for number in range(1, count + 1))
        rows = [
            f"{i + 1:>2}  {name:<{wide}}{''.join(f'{value:8.3f}' for value in alike[i].tolist())}"
            for i, name in enumerate(names)
        ]
        return "\n".join([head, columns, *rows])
    best = alike.argmax(axis=1).tolist()
    rows = [
        f"{name:<{wide}}{alike[i, i]:8.3f}{alike[i, j]:8.3f}  {'own' if i == j else names[j]}"
        for i, (name, j) in enumerate(zip(names, best, strict=True))
    ]
    hits = sum(i == j for i, j in enumerate(best))
    head = f"{'cosine of sound and image':<{wide}}{'own':>8}{'best':>8}  image that is most alike"
    return "\n".join([head, *rows, f"{hits:,} of {count:,} sounds are most alike their own image"])


def _short(key: str) -> str:
    return key if len(key) <= _NAME_WIDTH else key[: _NAME_WIDTH - 3] + "..."


if __name__ == "__main__":
    main()
