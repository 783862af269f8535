"""What every evaluation can be told, and what it works with. A task of evaluate.py extends EvaluationOptions."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from shards_spec.errors import UserError
from shards_spec.messages import say, warn
from training.config import Device
from training.evaluation.features import Embeddings, LoadedModel, Pooling, Precision, embed_dataset, load_model
from training.evaluation.keys import Chosen, choose_keys
from training.evaluation.predictions import Columns, check_place, write_predictions
from training.evaluation.results import Result, Rows, result_path, run_folder
from training.processes import join_processes
from training.stream.cache_folder import DEFAULT_SIZE, parse_size
from training.stream.index import DatasetIndex, open_index
from training.stream.order import Numbers


@dataclass(frozen=True, kw_only=True)
class Session:
    """One evaluation under way: its processes, dataset and model, and where its results go."""

    task: str
    options: "EvaluationOptions"
    accelerator: Accelerator
    index: DatasetIndex
    loaded: LoadedModel
    out: Path  # of the JSON
    cache: Path | None  # of what is computed for single samples

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes."""
        return bool(self.accelerator.is_main_process)

    def untrained(self) -> LoadedModel:
        """The same model with its initial weights."""
        options = self.options
        return load_model(options.checkpoint, self.loaded.device, untrained=True, precision=options.precision)

    def embed(
        self, numbers: Numbers | None = None, *, loaded: LoadedModel | None = None, pool: Pooling = "mean"
    ) -> Embeddings:
        """Pooled features of samples (all where None), of this session's model where no other is given."""
        return embed_dataset(
            self.index,
            self.loaded if loaded is None else loaded,
            numbers=numbers,
            pool=pool,
            cache=self.cache,
            batch_size=self.options.batch_size,
            workers=self.options.workers,
            accelerator=self.accelerator,
        )

    def finish(
        self,
        *,
        pool: int,
        pool_rule: str,
        protocol_name: str,
        protocol: str,
        metrics: Rows,
        baselines: Rows | None = None,
        paper: Rows | None = None,
        notes: tuple[str, ...] = (),
        **tables: Any,
    ) -> Result:
        """The result; the first process prints its table and writes its JSON. `tables` are other fields of Result."""
        result = Result(
            task=self.task,
            data=", ".join(map(str, self.index.folders)),
            dataset_fingerprint=self.index.fingerprint,
            checkpoint=str(self.loaded.checkpoint),
            step=self.loaded.step,
            pool=pool,
            pool_rule=pool_rule,
            protocol_name=protocol_name,
            protocol=protocol,
            metrics=metrics,
            baselines=baselines or {},
            paper=paper or {},
            notes=(*notes, *self.index.quiet_warnings()),
            **tables,
        )
        return publish(result, self.out, self.accelerator)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What every task of evaluate.py takes."""

    data: str
    """Dataset folder, complete, or its URL (https://, s3://, gs://, ...)."""
    checkpoint: Path
    """A checkpoint, or a run folder (its newest checkpoint is taken)."""
    out: Path | None = None
    """JSON file for the result. Default: RUN/evaluation/TASK-DATASET.json."""
    keys: Path | None = None
    """Score only the samples that a file names, a key a line, or a CSV with them in its first column. Clips may be
    named as benchmarks do: ID_000030."""
    save_predictions: Path | None = None
    """File.csv or File.parquet for what was found for each sample: key, scores, truth."""
    batch_size: int = 64
    """Samples that a process encodes at once."""
    workers: int = 2
    """Loader processes of each process; 0 loads in this one."""
    device: Device = "auto"
    """auto: GPUs, where there are any; cpu: the CPU, whatever there is and whatever the launcher was told; cuda: GPUs,
    or none of it."""
    precision: Precision = "auto"
    """Of the encoders. auto: bf16 on a GPU, fp32 on the CPU."""
    cache_features: Literal["auto", "none"] | Path = "auto"
    """Folder for features, which are computed once. auto: RUN/evaluation/cache; none keeps nothing."""
    cache_dir: Path | None = None
    """Where shards of remote datasets are kept. Default: ~/.cache/crossmae."""
    cache_size: str = DEFAULT_SIZE
    """The most that --cache-dir holds, as 200GB."""

    def __post_init__(self) -> None:
        parse_size(self.cache_size)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise ValueError(f"--workers must be at least 0, got {self.workers}")

    def begin(self, task: str, *, looks: bool = True) -> Session:
        """Joins the processes, opens the dataset, loads the model, and makes sure that results can be written.

        Args:
            looks: as of `open_index`.

        Raises:
            UserError: the dataset or the checkpoint cannot be used, or there is no place for the results.
        """
        accelerator = self.join()
        index = self.open_data(self.data, accelerator, looks=looks)
        loaded = load_model(self.checkpoint, accelerator.device, precision=self.precision)
        return Session(
            task=task,
            options=self,
            accelerator=accelerator,
            index=index,
            loaded=loaded,
            out=self.result_file(accelerator, loaded.checkpoint, result_path(loaded.checkpoint, task, index)),
            cache=self.feature_folder(loaded.checkpoint),
        )

    def open_data(self, data: str, accelerator: Accelerator, *, looks: bool = True) -> DatasetIndex:
        """Opens a dataset, and warns where much of it has next to no sound; arguments and errors as of `open_index`."""
        index = open_index(data, cache_dir=self.cache_dir, cache_size=self.cache_size, looks=looks)
        for line in index.quiet_warnings() if accelerator.is_main_process else ():
            warn(line)
        return index

    def join(self) -> Accelerator:
        """Joins the processes. A task that does not `begin` here calls this first, and `result_file` before it encodes.

        Raises:
            UserError: --out or --save-predictions can be no file, or the launcher was asked for another number of
                processes than there are.
        """
        if self.out is not None and not self.out.parent.is_dir():
            raise UserError(f"--out {self.out}: the folder {self.out.parent} does not exist")
        if self.out is not None and self.out.is_dir():
            raise UserError(f"--out {self.out} is a folder: give a file in it")
        check_place(self.save_predictions)
        return join_processes(device=self.device, workers=self.workers)

    def chosen(self, index: DatasetIndex) -> Chosen:
        """The samples that --keys names; raises as `choose_keys`."""
        return choose_keys(index, self.keys)

    def save(self, accelerator: Accelerator, *tables: Columns) -> None:
        """The first process writes --save-predictions, where it was given."""
        if self.save_predictions is not None and accelerator.is_main_process:
            write_predictions(self.save_predictions, tables)
            say(f"-> {self.save_predictions}")

    def result_file(self, accelerator: Accelerator, checkpoint: Path, default: Path) -> Path:
        """--out, else `default`. Makes sure that the result and the features can be written.

        Raises:
            UserError: a folder cannot be made, or not be written to.
        """
        out = default if self.out is None else self.out
        if accelerator.is_main_process:
            make_writable(out.parent, "--out FILE")
            cache = self.feature_folder(checkpoint)
            if cache is not None:
                make_writable(cache, "--cache-features DIR or none")
        return out

    def feature_folder(self, checkpoint: Path) -> Path | None:
        """Where features are kept; None where nothing is."""
        if self.cache_features == "auto":
            return run_folder(checkpoint) / "evaluation" / "cache"
        return None if self.cache_features == "none" else Path(self.cache_features)


def publish(result: Result, out: Path, accelerator: Accelerator) -> Result:
    """The first process prints the table, and writes the JSON: where that fails, the numbers have been seen."""
    if accelerator.is_main_process:
        print(result.table(), flush=True)
        result.write(out)
        say(f"-> {out}")
    accelerator.wait_for_everyone()
    return result


def make_writable(folder: Path, option: str) -> None:
    """Makes a folder, where it is not there.

    Raises:
        UserError: it cannot be made or written to; names the `option` that gives another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}): give {option}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the folder {folder} cannot be written to: give {option}")
