"""Where a run is: `python -m tools.where RUN` prints epoch, cursor, the next shard and byte, samples and time left."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from shards_spec.command_line import one_line_errors, parse
from training.checkpoint import UNKNOWN_OFFSET, find_checkpoint, read_config, read_state
from training.run_folder import METRICS_FILE, read_step_log
from training.stream.index import open_config


@dataclass(frozen=True, kw_only=True)
class WhereConfig:
    """Prints where a run is."""

    run: tyro.conf.Positional[Path]
    """Run folder, or a checkpoint."""


def describe(run: Path) -> str:
    """Lines for people about a run's newest checkpoint (or about the checkpoint `run`).

    Raises:
        UserError: there is no checkpoint, or its dataset is gone.
    """
    checkpoint = find_checkpoint(run)
    config = read_config(checkpoint, needed=("data", "batch_size", "steps", "epochs"))
    index = open_config(config, looks=False)
    n, batch = len(index), config["batch_size"]
    state = read_state(checkpoint, n)
    done = state.place.samples_done(n)
    steps = config["steps"]
    left = (steps - state.step) * batch if steps is not None else round(config["epochs"] * n) - done
    left = max(left, 0)  # of the batch size that the run has now
    lines = [
        f"checkpoint    {checkpoint}",
        f"step          {state.step:,}" + (f" of {steps:,}" if steps is not None else ""),
        f"epoch         {state.epoch}, {state.cursor:,} of {n:,} samples done ({state.cursor / n:.1%})",
        f"next sample   {state.next_shard}"
        + (f" at byte {state.next_offset:,}" if state.next_offset != UNKNOWN_OFFSET else ""),
        f"samples left  {left:,} of {done + left:,}",
    ]
    metrics = read_step_log(checkpoint.parent.parent / METRICS_FILE)
    rates = [line.get("samples_per_second") for line in metrics[-10:]]
    recent = [rate for rate in rates if isinstance(rate, float) and rate > 0]
    if recent:
        rate = len(recent) / sum(1 / r for r in recent)
        hours, minutes = divmod(round(left / rate / 60), 60)
        lines.append(f"time left     {hours}:{minutes:02d} h at {rate:,.1f} samples/s, the mean of the last log lines")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    with one_line_errors("python -m tools.where"):
        print(describe(parse(WhereConfig, arguments).run))


if __name__ == "__main__":
    main()
