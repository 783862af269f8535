"""Pre-training: `accelerate launch train.py --data DIR --out RUN`. One loop, from the first step to the last.

index ─> order ─> loader ─> normalise ─> model ─> loss ─> backward ─> AdamW ─> log, checkpoint
"""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from shards_spec.command_line import one_line_errors
from shards_spec.errors import DamagedSampleError, UserError
from training.checkpoint import (
    CONFIG_FILE,
    UNKNOWN_OFFSET,
    TrainState,
    checkpoints,
    find_checkpoint,
    load_optimizer,
    load_weights,
    read_json,
    read_state,
    save_checkpoint,
    write_json,
)
from training.config import TrainConfig, parse_arguments
from training.model.crossmae import CrossMAE
from training.optimizer import learning_rate, make_optimizer
from training.processes import StopRequest, start_processes
from training.run_folder import METRICS_FILE, StepLog, keys_file
from training.stream.ahead import check_cache
from training.stream.cache_folder import FetchError
from training.stream.index import DatasetIndex, open_index
from training.stream.loader import Batch, Normalise, load, rank_shares
from training.stream.order import Place, SampleStream
from training.stream.ring import WorkerError

EXIT_STOPPED = 75  # saved and stopped on a signal, to be continued (EX_TEMPFAIL of sysexits.h)


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message names the step and the samples."""


def main(arguments: list[str] | None = None) -> None:
    """The command train.py. Exit status: 0 done, 2 a user's mistake, 75 stopped on a signal after saving."""
    with one_line_errors("train.py"):
        config = parse_arguments(arguments)
        accelerator = start_processes(config.mixed_precision)
        try:
            finished = Run(config, accelerator).train()
        except (DamagedSampleError, WorkerError, NonFiniteLossError, FetchError) as error:
            print(f"train.py: stopped: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        finally:
            accelerator.end_training()
    if not finished:
        raise SystemExit(EXIT_STOPPED)


def micro_steps(config: TrainConfig, world: int) -> int:
    """How many pieces a process takes its share of the batch in.

    Raises:
        UserError: the batch does not divide evenly.
    """
    if config.batch_size % world:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be divided among {world} processes: give a multiple of {world}"
        )
    share = config.batch_size // world
    piece = config.device_batch_size or share
    if share % piece:
        raise UserError(
            f"--device-batch-size {piece} does not divide a process's share of {share}"
            f" (--batch-size {config.batch_size} over {world} processes)"
        )
    return share // piece


@dataclass
class Window:
    """What happened since the last log line."""

    first_step: int
    parts: list[Tensor] = field(default_factory=list)  # [P] a step, on the device: nothing waits for it here
    waited: float = 0.0  # seconds for data
    replaced: list[str] = field(default_factory=list)  # what was wrong with the samples that were skipped
    started: float = field(default_factory=time.perf_counter)


class Run:
    """One run of train.py: what it was told, where it is, and the loop."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.is_main: bool = accelerator.is_main_process
        self.world: int = accelerator.num_processes
        self.micro_steps = micro_steps(config, self.world)
        self.index: DatasetIndex = open_index(*config.data, cache_dir=config.cache_dir, cache_size=config.cache_size)
        self.stream = SampleStream(
            self.index.counts, seed=config.seed, window=config.shuffle_window, weights=config.weight_list
        )
        mean = self.index.mean if config.fbank_mean is None else config.fbank_mean
        std = self.index.std if config.fbank_std is None else config.fbank_std
        self.config = config = replace(config, fbank_mean=mean, fbank_std=std)  # checkpoints tell what they saw
        self.normalise = Normalise(mean, std).to(accelerator.device)

        torch.manual_seed(config.seed)
        self.weights = CrossMAE(config.model)
        optimizer = make_optimizer(self.weights, config.optimizer, fused=True)
        self.step, self.place = 0, Place()
        resumed = self._checkpoint_to_resume()
        if resumed is not None:
            self._check_same_run(resumed)
            load_weights(resumed, self.weights)
            state = read_state(resumed)
            self.step, self.place = state.step, state.place
        check_cache(self.index, self.stream, self.place, config.batch_size)
        self.steps = self._steps_in_all()
        model = torch.compile(self.weights) if config.compile else self.weights
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if resumed is not None:
            saved = load_optimizer(resumed)
            self.optimizer.load_state_dict(saved["optimizer"])
            if accelerator.scaler is not None and "scaler" in saved:
                accelerator.scaler.load_state_dict(saved["scaler"])
        self._open_run_folder(resumed)

    # ---------------------------------------------------------------- the loop

    def train(self) -> bool:
        """Trains to the last step. False when a signal stopped it before (after saving)."""
        stop = StopRequest()
        batches = self._batches()
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            disable=not (self.is_main and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        window = Window(first_step=self.step)
        last_saved = self.step
        stopping = False
        while self.step < self.steps and not stopping:
            self._one_step(batches, window)
            bar.update()
            stopping = stop.agreed()
            ending = stopping or self.step == self.steps
            saving = ending or self.step % self.config.save_every == 0
            if saving or self.step % self.config.log_every == 0:
                line = self._log(window)
                bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['samples_per_second']:.0f} samples/s")
                window = Window(first_step=self.step)
            if saving and self.step != last_saved:
                self._save()
                last_saved = self.step
        bar.close()
        self._close(stop.signal if stopping and self.step < self.steps else None)
        return self.step == self.steps

    def _one_step(self, batches: Iterator[Batch], window: Window) -> None:
        """Forward, backward and update for the next batch of the order; then, and only then, the place moves on."""
        rate = learning_rate(self.step, self.steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total: Tensor | None = None
        for piece in range(self.micro_steps):
            asked = time.perf_counter()
            batch = next(batches)
            window.waited += time.perf_counter() - asked
            window.replaced += batch.replaced
            if self.keys_log is not None:
                self.keys_log.write({"step": self.step + 1, "keys": batch.keys})
            last = piece == self.micro_steps - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                parts = self._forward_backward(batch)
            total = parts if total is None else total + parts
        assert total is not None
        limit = self.config.optimizer.clip_grad
        norm = self.accelerator.clip_grad_norm_(self.weights.parameters(), float("inf") if limit is None else limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        window.parts.append(torch.cat([total / self.micro_steps, norm.detach().float().reshape(1)]))
        self.step += 1
        self.place = self.place.advance(self.config.batch_size, len(self.index))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Adds the gradient of one piece of the batch. Returns the loss and its parts, detached, [1 + parts]."""
        device = self.accelerator.device
        image, fbank = self.normalise(
            batch.image.to(device, non_blocking=True), batch.fbank.to(device, non_blocking=True)
        )
        output = self.model(image, fbank, batch.seeds.to(device, non_blocking=True))
        self.accelerator.backward(output.loss / self.micro_steps)
        self.part_names = list(output.parts)
        return torch.stack([output.loss.detach().float(), *(p.detach().float() for p in output.parts.values())])

    # ---------------------------------------------------------------- what it reads

    def _batches(self) -> Iterator[Batch]:
        shares = rank_shares(
            self.stream,
            self.place,
            steps=self.steps - self.step,
            batch_size=self.config.batch_size,
            rank=self.accelerator.process_index,
            world=self.world,
            micro_steps=self.micro_steps,
        )
        piece = self.config.batch_size // self.world // self.micro_steps
        return load(
            self.index,
            shares,
            seed=self.config.seed,
            batch_size=piece,
            workers=self.config.workers,
            skip_bad_in=self.stream if self.config.on_bad_sample == "skip" else None,
        )

    def _steps_in_all(self) -> int:
        if self.config.steps is not None:
            return self.config.steps
        left = self.config.epochs * len(self.index) - self.place.samples_done(len(self.index))
        return self.step + max(0, -int(-left // self.config.batch_size))

    # ---------------------------------------------------------------- what it resumes from

    def _checkpoint_to_resume(self) -> Path | None:
        resume, out = self.config.resume, self.config.out
        if isinstance(resume, Path):
            return find_checkpoint(resume)
        found = checkpoints(out)
        if found and resume == "never":
            raise UserError(f"{out} holds checkpoints up to {found[-1].name}: use --resume auto or another --out")
        return found[-1] if found else None

    def _check_same_run(self, checkpoint: Path) -> None:
        """Refuses a checkpoint of another model, dataset or seed, naming what differs."""
        state = read_state(checkpoint)
        fingerprint = self.index.fingerprint
        if state.fingerprint != fingerprint:
            raise UserError(
                f"{checkpoint} was trained on another dataset: its fingerprint is {state.fingerprint[:12]},"
                f" that of {', '.join(map(str, self.config.data))} is {fingerprint[:12]}"
            )
        if state.seed != self.config.seed:
            raise UserError(f"{checkpoint} was trained with --seed {state.seed}, not {self.config.seed}")
        theirs, ours = read_json(checkpoint / CONFIG_FILE), self.config.to_dict()
        if differing := sorted(_differences(theirs["order"], ours["order"], "order")):
            raise UserError(f"{checkpoint} was trained in another order: {'; '.join(differing)}")
        if differing := sorted(_differences(theirs["model"], ours["model"], "model")):
            raise UserError(f"{checkpoint} holds another model: {'; '.join(differing[:3])}")

    # ---------------------------------------------------------------- what it writes

    def _open_run_folder(self, resumed: Path | None) -> None:
        out, rank = self.config.out, self.accelerator.process_index
        out.mkdir(parents=True, exist_ok=True)
        self.keys_log = StepLog(out / keys_file(rank), self.step) if self.config.trace_keys else None
        self.metrics_log = StepLog(out / METRICS_FILE, self.step) if self.is_main else None
        if not self.is_main:
            return
        write_json(out / CONFIG_FILE, self.config.to_dict())
        begin = f"resuming {resumed}" if resumed is not None else "starting"
        device = self.accelerator.device.type
        print(
            f"train.py: {begin} at step {self.step} of {self.steps}: {len(self.index)} samples,"
            f" {self.world} process{'es' if self.world > 1 else ''} on {device},"
            f" batch {self.config.batch_size} = {self.world} x {self.micro_steps}"
            f" x {self.config.batch_size // self.world // self.micro_steps}",
            flush=True,
        )
        if self.micro_steps > 1:
            print("train.py: the contrastive loss sees the samples of one piece, not of the whole batch", flush=True)

    def _log(self, window: Window) -> dict[str, Any]:
        """Waits for the window's steps, checks their losses, and writes a line of metrics (the means over them)."""
        parts = self.accelerator.reduce(torch.stack(window.parts), reduction="mean").cpu()  # [steps, 1 + parts + 1]
        finite = parts[:, :-1].isfinite().all(dim=1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise NonFiniteLossError(self._describe_step(window.first_step + bad, parts[bad]))
        seconds = time.perf_counter() - window.started
        for message in window.replaced:
            print(f"train.py: warning: skipped: {message}", file=sys.stderr, flush=True)
        skipped = torch.tensor(len(window.replaced), device=self.accelerator.device)
        values = dict(zip(["loss", *self.part_names, "grad_norm"], parts.mean(dim=0).tolist(), strict=True))
        line = {
            "step": self.step,
            "epoch": self.place.epoch,
            "cursor": self.place.cursor,
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples_per_second": len(parts) * self.config.batch_size / seconds,
            "data_wait": window.waited / seconds,
            "bad_samples": int(self.accelerator.reduce(skipped)),
            "seconds": seconds,
        }
        if self.metrics_log is not None:
            self.metrics_log.write(line)
            if not sys.stderr.isatty():
                print(
                    f"train.py: step {self.step}/{self.steps} loss {line['loss']:.4f} lr {line['lr']:.2e}"
                    f" {line['samples_per_second']:.1f} samples/s data wait {line['data_wait']:.0%}",
                    flush=True,
                )
        return line

    def _describe_step(self, step: int, parts: Tensor) -> str:
        """Step (0-based), loss parts and sample keys, for the message on a non-finite loss."""
        n, batch = len(self.index), self.config.batch_size
        back = self.place.samples_done(n) - (self.step - step) * batch
        numbers, _ = self.stream.take(Place().advance(back, n), batch)
        names = ["loss", *self.part_names]
        values = ", ".join(f"{name} {value:g}" for name, value in zip(names, parts.tolist(), strict=False))
        keys = " ".join(self.index.key(number) for number in numbers.tolist())
        return f"the loss of step {step + 1} is not finite ({values}); its samples: {keys}"

    def _save(self) -> None:
        if not self.is_main:
            return
        number = int(self.stream.take(self.place, 1)[0][0])
        shard = self.index.locate(number)[0]
        # Nothing is fetched here: what stopped the run may be the server.
        offset = self.index.place(number).offset if self.index.is_at_hand(shard) else UNKNOWN_OFFSET
        state = TrainState(
            step=self.step,
            fingerprint=self.index.fingerprint,
            seed=self.config.seed,
            epoch=self.place.epoch,
            cursor=self.place.cursor,
            next_shard=self.index.tars[shard].name,
            next_offset=offset,
        )
        saved = {"optimizer": self.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            saved["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(
            self.config.out,
            state,
            model=self.weights,
            optimizer=saved,
            config=self.config.to_dict(),
            keep=self.config.keep,
        )

    def _close(self, stopped_by: int | None) -> None:
        for log in (self.metrics_log, self.keys_log):
            if log is not None:
                log.close()
        if self.is_main:
            end = "done" if stopped_by is None else "stopped on a signal; the same command goes on"
            print(f"train.py: {end}: step {self.step} of {self.steps}, {self.config.out}", flush=True)


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    """Where two nested configurations differ, as `name is A, asked for B`."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}")
    elif theirs != ours:
        yield f"{name} is {theirs}, asked for {ours}"
