"""The training loop: one, from the first step to the last, for pre-training and for fine-tuning.

index ─> order ─> loader ─> normalise ─> task: model and loss ─> backward ─> optimizer ─> log, checkpoint
"""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from shards_spec.errors import UserError
from shards_spec.messages import say, warn
from training.checkpoint import (
    CONFIG_FILE,
    UNKNOWN_OFFSET,
    TrainState,
    checkpoints,
    load_weights,
    read_state,
    save_checkpoint,
    set_later_aside,
    write_json,
)
from training.config import RunConfig
from training.first_stage import fbank_scale
from training.flops import peak_flops
from training.methods.interface import Inputs
from training.optimizer import gradient_norms, learning_rate
from training.processes import StopRequest, compiled, lay_out_gradients, start_trackers
from training.resume import check_same_run, checkpoint_to_resume, going_on, how_to_go_on, resume_optimizer
from training.run_folder import METRICS_FILE, StepLog, keys_file, lock_run
from training.stream.ahead import check_cache
from training.stream.index import DatasetIndex
from training.stream.loader import Batch, Normalise, count_valid_frames, load
from training.stream.order import Place, SampleStream
from training.stream.shares import rank_shares
from training.stream.waiting import StopWaiting
from training.task import Task


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the message names the step and the samples."""


class NotSavedError(RuntimeError):
    """The last checkpoint of a run could not be written."""


@dataclass
class Window:
    """What happened since the last log line."""

    first_step: int
    parts: list[Tensor] = field(default_factory=list)  # [P] a step, on the device: nothing waits for it here
    diagnosis: dict[str, Tensor] = field(default_factory=dict)  # the newest, scalars on the device
    waited: float = 0.0  # seconds for data
    replaced: list[str] = field(default_factory=list)  # what was wrong with the samples that were skipped
    started: float = field(default_factory=time.perf_counter)


class Loop:
    """One run: what it was told, where it is, and the loop."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, index: DatasetIndex, stream: SampleStream, task: Task
    ) -> None:
        self.accelerator, self.index, self.stream, self.task = accelerator, index, stream, task
        self.is_main: bool = accelerator.is_main_process
        self.world: int = accelerator.num_processes
        self.micro_steps = config.micro_steps(self.world)
        self.lock = lock_run(config.out) if self.is_main else None  # held until the process ends
        self.step, self.place = 0, Place()
        self.has_saved = False
        self.resumed = checkpoint_to_resume(config)
        self.changes: list[str] = []
        if self.resumed is not None:
            check_same_run(self.resumed, config, index.fingerprint, ("order", *task.identity))
            config, self.changes = going_on(self.resumed, config)
            load_weights(self.resumed, task.weights)
            state = read_state(self.resumed, len(index))
            self.step, self.place = state.step, state.place
        scale = fbank_scale(config, index)
        self.config = config = replace(config, fbank_mean=scale.mean, fbank_std=scale.std)  # checkpoints tell it
        self.normalise = Normalise(scale.mean, scale.std).to(accelerator.device)
        if self.resumed is None:
            for line in task.initialise(scale):
                self._say(line)
        for line in index.quiet_warnings() if self.is_main else ():
            warn(line)
        check_cache(self.index, self.stream, self.place, config.batch_size)
        self.steps = self._steps_in_all()
        model = compiled(task.weights) if config.compile else task.weights
        if self.world > 1:
            lay_out_gradients(task.weights)
        self.model, self.optimizer = accelerator.prepare(model, task.make_optimizer(config.optimizer))
        if self.resumed is not None:
            resume_optimizer(self.resumed, self.optimizer, task.make_optimizer, accelerator.scaler)
        self.flops_limit = self._flops_limit()
        self._open_run_folder()

    # ---------------------------------------------------------------- the loop

    def train(self) -> bool:
        """Trains to the last step. False when a signal stopped it before (after saving).

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
            NotSavedError: the last checkpoint could not be written.
        """
        stop = StopRequest()
        batches = self._batches(stop)
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
            try:
                self._one_step(batches, window)
            except StopWaiting:  # no step was taken: the state is that after the last one
                stopping = True
            else:
                bar.update()
                stopping = stop.agreed()
            ending = stopping or self.step == self.steps
            saving = ending or self.step % self.config.save_every == 0
            if window.parts and (saving or self.step % self.config.log_every == 0):
                line = self._log(window)
                bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['samples_per_second']:.0f} samples/s")
                window = Window(first_step=self.step)
            if saving and self.step != last_saved:
                self._save(is_last=ending)
                last_saved = self.step
        bar.close()
        self._close(stop.signal if stopping and self.step < self.steps else None)
        return self.step == self.steps

    def _one_step(self, batches: Iterator[Batch], window: Window) -> None:
        """Forward, backward and update for the next batch of the order; then, and only then, the place moves on."""
        done, in_all = self._progress()
        rate = learning_rate(done, in_all, self.config.optimizer, self.config.batch_size, epoch=self.place.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        pieces = self._pieces(batches, window)
        if self.task.needs_all_pieces:
            together = list(pieces)
            with self.accelerator.autocast():
                self.task.look_ahead(together)
            pieces = iter(together)
        total: Tensor | None = None
        for number, inputs in enumerate(pieces):
            last = number == self.micro_steps - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, named = self.task.losses(self.model, inputs, number)
                self.accelerator.backward(loss / self.micro_steps)
            self.part_names = list(named)
            parts = torch.stack([loss.detach().float(), *(part.detach().float() for part in named.values())])
            total = parts if total is None else total + parts
        assert total is not None
        self.accelerator.unscale_gradients()
        norm = get_total_norm(p.grad for p in self.task.weights.parameters() if p.grad is not None)
        if self.config.diagnose_every and (self.step + 1) % self.config.diagnose_every == 0:
            with self.accelerator.autocast():
                window.diagnosis = self.task.diagnose(inputs) | gradient_norms(self.task.weights)
        if self.config.optimizer.clip_grad is not None:
            clip_grads_with_norm_(self.task.weights.parameters(), self.config.optimizer.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.after_step(done + 1, in_all)
        window.parts.append(torch.cat([total / self.micro_steps, norm.detach().float().reshape(1)]))
        self.step += 1
        self.place = self.place.advance(self.config.batch_size, len(self.index))

    def _pieces(self, batches: Iterator[Batch], window: Window) -> Iterator[Inputs]:
        """This process's share of the next step, in pieces, normalised and augmented on the device."""
        device = self.accelerator.device
        for _ in range(self.micro_steps):
            asked = time.perf_counter()
            batch = next(batches)
            window.waited += time.perf_counter() - asked
            window.replaced += batch.replaced
            if self.keys_log is not None:
                self.keys_log.write({"step": self.step + 1, "keys": batch.keys})
            stored = batch.fbank.to(device, non_blocking=True)
            image, fbank = self.normalise(batch.image.to(device, non_blocking=True), stored)
            inputs = Inputs(
                image=image,
                fbank=fbank,
                valid_frames=count_valid_frames(stored),
                seeds=batch.seeds.to(device, non_blocking=True),
                numbers=batch.numbers,
                waveform=None if batch.sound is None else batch.sound.to(device, non_blocking=True).float() / 32768,
                heard=None if batch.heard is None else batch.heard.to(device, non_blocking=True),
            )
            yield self.task.prepare(inputs)

    # ---------------------------------------------------------------- what it reads

    def _batches(self, stop: StopRequest) -> Iterator[Batch]:
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
            stopping=stop.interrupts,
            pin=self.accelerator.device.type == "cuda",
        )

    def _progress(self) -> tuple[float, float]:
        """How many steps are done, and of how many in all, for what depends on how far the run is.

        Where --epochs gives its length, samples are counted, in steps of today's batch size: after one of another size
        the rate goes on where it was. --steps gives a number of steps, whatever they hold.
        """
        if self.config.steps is not None:
            return self.step, self.steps
        done = self.place.samples_done(len(self.index)) / self.config.batch_size
        return done, done + self.steps - self.step

    def _steps_in_all(self) -> int:
        if self.config.steps is not None:
            if self.step > self.config.steps:
                raise UserError(
                    f"{self.config.out} is at step {self.step}, past --steps {self.config.steps}: give more --steps,"
                    f" or go back with --resume {self.config.out}/checkpoints/step-N"
                )
            return self.config.steps
        left = self.config.epochs * len(self.index) - self.place.samples_done(len(self.index))
        return self.step + max(0, -int(-left // self.config.batch_size))

    # ---------------------------------------------------------------- what it writes

    def _say(self, line: str) -> None:
        if self.is_main:
            say(line)

    def _open_run_folder(self) -> None:
        out, rank = self.config.out, self.accelerator.process_index
        out.mkdir(parents=True, exist_ok=True)
        if self.is_main and (later := set_later_aside(out, self.step)):
            names = ", ".join(path.name for path in later)
            self._say(f"set aside, later than where this run goes on from: {names} of {out} (now .abandoned)")
        self.keys_log = StepLog(out / keys_file(rank), self.step) if self.config.trace_keys else None
        self.metrics_log = StepLog(out / METRICS_FILE, self.step) if self.is_main else None
        start_trackers(self.accelerator, self.config, self.step)
        if not self.is_main:
            return
        write_json(out / CONFIG_FILE, self.config.to_dict())
        for line in self.changes:
            self._say(line)
        begin = f"resuming {self.resumed}" if self.resumed is not None else "starting"
        precision = {"no": "float32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)
        self._say(
            f"{begin} at step {self.step} of {self.steps}: {len(self.index)} samples,"
            f" {self.world} process{'es' if self.world > 1 else ''} on {self.accelerator.device.type}"
            f" in {precision}{', compiled' if self.config.compile else ''},"
            f" batch {self.config.batch_size} = {self.world} x {self.micro_steps}"
            f" x {self.config.batch_size // self.world // self.micro_steps}"
        )
        if self.micro_steps > 1 and (note := self.config.note_on_pieces):
            self._say(note)

    def _log(self, window: Window) -> dict[str, Any]:
        """Waits for the window's steps, checks them, and writes a line of metrics (the means over them)."""
        parts = self.accelerator.reduce(torch.stack(window.parts), reduction="mean").cpu()  # [steps, 1 + parts + 1]
        if self.accelerator.scaler is not None:  # it has left out the steps whose gradients overflowed
            parts[:, -1].nan_to_num_(0.0, 0.0, 0.0)
        for message in window.replaced:
            warn(f"skipped: {message}")
        finite = parts.isfinite().all(dim=1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise NonFiniteLossError(self._describe_step(window.first_step + bad, parts[bad]))
        seconds = time.perf_counter() - window.started
        samples = len(parts) * self.config.batch_size
        skipped = torch.tensor(len(window.replaced), device=self.accelerator.device)
        line = {
            "step": self.step,
            "epoch": self.place.epoch,
            "cursor": self.place.cursor,
            **dict(zip(["loss", *self.part_names, "grad_norm"], parts.mean(dim=0).tolist(), strict=True)),
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples_per_second": samples / seconds,
            "data_wait": window.waited / seconds,
            **({"mfu": samples / seconds / self.flops_limit} if self.flops_limit else {}),
            "bad_samples": int(self.accelerator.reduce(skipped)),
            "seconds": seconds,
            **self._diagnosis(window),
        }
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.step)
        if self.metrics_log is not None:
            self.metrics_log.write(line)
            if not sys.stderr.isatty():
                self._say(
                    f"step {self.step}/{self.steps} loss {line['loss']:.4f} lr {line['lr']:.2e}"
                    f" {line['samples_per_second']:.1f} samples/s data wait {line['data_wait']:.0%}"
                )
        return line

    def _flops_limit(self) -> float | None:
        """Samples a second that would take all that the devices can compute; None where one of the two is not known."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        peak = peak_flops(self.accelerator.device, dtype)
        flops = None if peak is None else self.task.flops_per_sample()
        return None if peak is None or flops is None else peak * self.world / flops

    def _diagnosis(self, window: Window) -> dict[str, float]:
        """The window's diagnosis, the mean over the processes."""
        if not window.diagnosis:
            return {}
        values = torch.stack([value.detach().float().reshape(()) for value in window.diagnosis.values()])
        values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(window.diagnosis, values.tolist(), strict=True))

    def _describe_step(self, step: int, parts: Tensor) -> str:
        """Step (0-based), loss parts, norm of the gradient and sample keys, for the message on a non-finite one.

        The keys are those of the epoch's order; what stood in for a damaged sample is in none of them.
        """
        n, batch = len(self.index), self.config.batch_size
        back = self.place.samples_done(n) - (self.step - step) * batch
        numbers, _ = self.stream.take(Place().advance(back, n), batch)
        names = ["loss", *self.part_names, "grad_norm"]
        values = ", ".join(f"{name} {value:g}" for name, value in zip(names, parts.tolist(), strict=True))
        keys = " ".join(self.index.key(number) for number in numbers.tolist())
        what = "gradient" if parts[:-1].isfinite().all() else "loss"
        return f"the {what} of step {step + 1} is not finite ({values}); its samples: {keys}"

    def _save(self, *, is_last: bool) -> None:
        """Writes a checkpoint. Where that fails (a full disk), the run goes on to the next one, if there is one."""
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
        try:
            save_checkpoint(
                self.config.out,
                state,
                model=self.task.weights,
                optimizer=saved,
                config=self.config.to_dict(),
                keep=self.config.keep,
                resumed=self.resumed,
            )
            self.has_saved = True
        except OSError as error:
            newest = checkpoints(self.config.out)
            left = f"the newest checkpoint is {newest[-1].name}" if newest else "there is no checkpoint yet"
            message = f"the checkpoint of step {self.step} could not be written ({error}); {left}"
            if is_last:
                raise NotSavedError(f"{message}: make room; {how_to_go_on(self.config, self.has_saved)}") from error
            warn(f"{message}; going on to the next save")

    def _close(self, stopped_by: int | None) -> None:
        self.accelerator.wait_for_everyone()  # the launcher kills what runs on after one has ended
        for log in (self.metrics_log, self.keys_log):
            if log is not None:
                log.close()
        going_on = how_to_go_on(self.config, self.has_saved)
        end = "done" if stopped_by is None else f"stopped on a signal; {going_on}"
        self._say(f"{end}: step {self.step} of {self.steps}, {self.config.out}")
