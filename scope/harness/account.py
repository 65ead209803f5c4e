"""What a batch takes: time and work so far, for the run.json of each of its jobs."""

import sys
import time
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.generation.work import Work
from scope.harness.floor import Cost, against_floor, counts, measured_rates, told
from scope.harness.starts import speed

# What a session's seconds go to.
_KINDS = ("prompts", "steps", "capture")


class Account:
    """The account of a batch; on a GPU, whose rates are measured first, also beside its floor.

    Args:
        model: the jobs'.

    Attributes:
        watch: runs while there is generated.
        works: of all sessions: where memory runs out there are several.
        writing: seconds that files took.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._on_gpu = model, model.device.type == "cuda"
        self._rates = measured_rates(model.device, model.dtype) if self._on_gpu else None
        self._cost = Cost.of(model)
        self.watch, self.works, self.writing = Stopwatch(), list[Work](), 0.0

    def sizes(self, plan: CachePlan, full_share: float | None = None) -> dict[str, int]:
        """What a job's sequences hold, as its run.json has it; takes some milliseconds.

        Args:
            plan: the job's.
            full_share: as in `Strategy.read`.
        """
        dtype = self._model.dtype
        sizes = {
            "kv_bytes_per_sequence": plan.kv_bytes(dtype),
            "kv_bytes_read_per_step": plan.read_bytes(dtype, full_share),
        }
        far = plan.host_bytes(dtype)
        return sizes | ({"kv_bytes_on_host_per_sequence": far} if far else {})

    def enter(self, run: dict[str, Any], tokens: int, share: float, session: Session) -> None:
        """Note in what a job's run.json is to hold, which must not take long: the device may wait.

        Args:
            run: that; its last start is the one under way.
            tokens: that the job was given since the start.
            share: of the batch's tokens, which the job's seconds are.
            session: the one under way.
        """
        start, metrics = run["starts"][-1], run["metrics"]
        start["tokens"], start["seconds"] = tokens, round(share * self.watch.seconds, 3)
        start["batch_size"] = metrics["batch_size"] = session.batch_size
        if self._on_gpu:
            peak = torch.cuda.max_memory_allocated(self._model.device)
            metrics["peak_memory_bytes"] = max(peak, metrics.get("peak_memory_bytes", 0))
        metrics.update(speed(run["starts"]))
        start["work"] = counts(self._cost, self.works)
        spent = {kind: sum(work.seconds[kind] for work in self.works) for kind in _KINDS}
        start["spent"] = {k: round(s, 3) for k, s in (spent | {"writing": self.writing}).items()}
        if self._rates is not None:
            start["floor"] = against_floor(start["work"], self._rates, self.watch.seconds)

    def tell(self, label: str, start: dict[str, Any]) -> None:
        """Print how far from its floor the batch was, where that is known."""
        if self._rates is not None:
            tqdm.write(told(label, start, self.watch.seconds), file=sys.stderr)


class Stopwatch:
    """The time inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.finished_seconds, self.started = 0.0, None

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.finished_seconds, self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.finished_seconds + running
