"""What a session has done: counts that a floor is made of, and the seconds that it took."""

from collections import defaultdict
from dataclasses import dataclass, field

from scope.methods.strategy import Counts


@dataclass
class Work:
    """Counts of one session, as far as it has come.

    Attributes:
        prompts: tokens of each prompt that was read.
        steps: decode steps of the batch.
        row_steps: of rows with a prompt.
        idle_row_steps: of rows without one, or beyond the end of their text.
        slot_bytes: keys and values that the steps had to read, each once a step.
        seconds: of the device, ``prompts`` and ``steps``; of the host, ``capture``, the first steps
            of each kind, which are part of the steps.
    """

    prompts: list[int] = field(default_factory=list)
    steps: int = 0
    row_steps: int = 0
    idle_row_steps: int = 0
    slot_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def count_step(self, held: Counts, batch_size: int) -> None:
        """Count one step of a batch, of whose running rows each had to read so many bytes."""
        self.steps += 1
        self.row_steps += len(held)
        self.idle_row_steps += batch_size - len(held)
        self.slot_bytes += int(held.sum())
