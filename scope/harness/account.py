"""What a batch takes: time and work so far, for the run.json of each of its jobs."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.generation.work import Work
from scope.harness.floor import Cost, against_floor, counts, measured_rates, told
from scope.harness.found import Found
from scope.harness.starts import speed

# What a session's seconds go to.
_KINDS = ("prompts", "steps", "capture")


@dataclass(eq=False)
class Part:
    """A job in the batch.

    Attributes:
        plan: what its sequences hold; beside longer prompts than its own there are more slots.
        tokens: that it was given since the start.
        finished: those of texts that have ended.
    """

    found: Found
    plan: CachePlan
    tokens: int = 0
    finished: int = 0


class Account:
    """The account of a batch; on a GPU, whose rates are measured first, also beside its floor.

    Sessions are told of and not held: their slots must be free when memory has run out.

    Args:
        model: the jobs'.
        parts: the jobs that miss texts.

    Attributes:
        watch: runs while there is generated.
        writing: runs while files are written.
    """

    def __init__(self, model: PreTrainedModel, parts: Sequence[Part]) -> None:
        self._model, self._on_gpu = model, model.device.type == "cuda"
        self._rates = measured_rates(model.device, model.dtype) if self._on_gpu else None
        self._cost = Cost.of(model)
        self._parts, self._works = parts, list[Work]()
        self.watch, self.writing = Stopwatch(), Stopwatch()

    @property
    def tokens(self) -> int:
        """Given to all jobs since the start."""
        return sum(part.tokens for part in self._parts)

    def begin(self, session: Session) -> None:
        """Count a session's work from here on; texts that one before it had not ended are lost."""
        self._works.append(session.work)
        for part in self._parts:
            part.tokens = part.finished
            part.found.run["metrics"] |= self._sizes(part.plan)

    def note(self, part: Part, session: Session) -> None:
        """Write how far a job is into its run.json, whose last start is the one under way.

        The job's seconds are its share of the batch's by tokens. This must not take long: the
        device may wait.
        """
        run = part.found.run
        start, metrics = run["starts"][-1], run["metrics"]
        share = part.tokens / max(self.tokens, 1)
        start["tokens"], start["seconds"] = part.tokens, round(share * self.watch.seconds, 3)
        start["batch_size"] = metrics["batch_size"] = session.batch_size
        if self._on_gpu:
            peak = torch.cuda.max_memory_allocated(self._model.device)
            metrics["peak_memory_bytes"] = max(peak, metrics.get("peak_memory_bytes", 0))
        metrics.update(speed(run["starts"]))
        start["work"] = counts(self._cost, self._works)
        spent = {kind: sum(work.seconds[kind] for work in self._works) for kind in _KINDS}
        spent["writing"] = self.writing.seconds
        start["spent"] = {kind: round(seconds, 3) for kind, seconds in spent.items()}
        if self._rates is not None:
            start["floor"] = against_floor(start["work"], self._rates, self.watch.seconds)
        part.found.run_file.write(run)

    def end(self, session: Session) -> None:
        """Write all jobs' run.json, with what the session's steps really read."""
        for part in self._parts:
            part.found.run["metrics"] |= self._sizes(part.plan, session.cache.full_share)
            self.note(part, session)

    def tell(self, label: str) -> None:
        """Print how far from its floor the batch was, where that is known."""
        if self._rates is not None:
            start = self._parts[0].found.run["starts"][-1]
            tqdm.write(told(label, start, self.watch.seconds), file=sys.stderr)

    def _sizes(self, plan: CachePlan, full_share: float | None = None) -> dict[str, int]:
        """What a job's sequences hold, as its run.json has it; takes some milliseconds."""
        dtype = self._model.dtype
        sizes = {
            "kv_bytes_per_sequence": plan.kv_bytes(dtype),
            "kv_bytes_read_per_step": plan.read_bytes(dtype, full_share),
        }
        far = plan.host_bytes(dtype)
        return sizes | ({"kv_bytes_on_host_per_sequence": far} if far else {})


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
