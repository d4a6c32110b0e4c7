"""Logs a training while it runs: rates, waits and the loss.

The log is stored in `<stage>/log/`, outside of out/, as it differs between two equal trainings.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import install
from clipmill.pipeline.stage import ignored

FOLDER = "log"
NAME = "log.jsonl"
LINES = 1000  # of one training, approximately
Line = dict[str, Any]


class Log:
    """Lines of `log.jsonl`, and the progress that the terminal shows.

    A line has step, samples_seen, loss, learning_rate, scale, samples_per_s, data_wait_s, and
    slowest_shard, of the batch with the longest wait since the last line. A streamed training adds
    replaced, the samples so far whose picture did not decode. If the GPU's peak is known, mfu is
    the used share of its arithmetic.
    """

    def __init__(
        self,
        *,
        steps: int,  # of the whole training
        batch_size: int,  # rows of a step, over all ranks
        tell: Callable[..., None] = ignored,
        clock: Callable[[], float] = time.perf_counter,
        at_most_per_s: float | None = None,  # steps at the GPUs' peak arithmetic
        lines: Sequence[Line] = (),  # of a training that was stopped
        step: int = 0,  # where it resumes: later lines are dropped
    ) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.tell, self.clock, self.at_most_per_s = tell, clock, at_most_per_s
        self.lines = [line for line in lines if line["step"] <= step]
        self.replaced: int | None = None  # samples so far that another picture replaced
        self._since, self._began = step, clock()
        self._waited = self._longest = 0.0
        self._slowest: Callable[[], Sequence[str]] = list

    def waited(self, seconds: float, files: Callable[[], Sequence[str]]) -> None:
        """Records a wait for a batch; `files` returns the shards that it read."""
        self._waited += seconds
        if seconds > self._longest:
            self._longest, self._slowest = seconds, files

    def step(self, step: int, loss: float, learning_rate: float, scale: float) -> None:
        """Reports a step (counted from 1), and appends a line if one is due."""
        spent = max(self.clock() - self._began, 1e-9)
        rate = (step - self._since) * self.batch_size / spent
        self.tell(step, self.steps, "steps", loss=loss, **{"samples/s": rate})
        if step % max(1, self.steps // LINES) and step < self.steps:
            return
        line: Line = {
            "step": step,
            "samples_seen": step * self.batch_size,
            "loss": loss,
            "learning_rate": learning_rate,
            "scale": scale,
            "samples_per_s": round(rate, 1),
            "data_wait_s": round(self._waited, 3),
            "slowest_shard": next(iter(self._slowest()), None),
            "time": round(time.time(), 3),
        }
        if self.replaced is not None:
            line["replaced"] = self.replaced
        if self.at_most_per_s:
            line["mfu"] = round((step - self._since) / spent / self.at_most_per_s, 4)
        self.lines.append(line)
        self._since, self._began = step, self.clock()
        self._waited = self._longest = 0.0


def read_lines(folder: str, prefix: str) -> list[Line]:
    """Reads the lines that a stopped training left; none if they are torn: no weight needs them."""
    stored = Storage(folder).read_if_there(f"{FOLDER}/{prefix}{NAME}") or b""
    try:
        return [json.loads(line) for line in stored.splitlines()]
    except ValueError:
        return []


def store_lines(lines: Sequence[Line], folder: str, prefix: str) -> None:
    """Writes `log/[seed-3.]log.jsonl` in the stage's folder."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Storage(folder).put(f"{FOLDER}/{prefix}{NAME}", text.encode(), "log")


def store_events(lines: Sequence[Line], folder: str, prefix: str, scratch: Path) -> None:
    """Writes the lines as events for TensorBoard: `tensorboard --logdir <stage>/log`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        found = f"TensorBoard's package is not installed: {error}"
        do = f"{install('tensorboard')}, or leave the key out: log.jsonl has the same"
        raise StageError(found, "key `tensorboard`", do) from None
    own = scratch / "events"
    with SummaryWriter(str(own)) as writer:
        for line in lines:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "time"):
                    writer.add_scalar(name, value, line["step"], walltime=line["time"])
    (written,) = own.iterdir()
    name = f"{FOLDER}/{prefix.rstrip('.') or 'run'}/events.out.tfevents.clipmill"
    Storage(folder).put(name, written.read_bytes(), "log")
    written.unlink()
