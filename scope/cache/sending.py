"""The counts of a decode step on their way from the host to every layer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scope.cache.layer import SlotLayer
from scope.cache.schedule import Schedule
from scope.kernels.tensors import StepCounts
from scope.methods.recipe import Recipe


class CountSender:
    """Copies what every layer must know of a step, at once and without waiting for it.

    It always goes to the same place on the device, where a captured graph finds it. A row without a
    prompt is fed with the others, each time as if its first token came: what that writes stays
    within the row, and the row's next prompt forgets it.

    Args:
        recipe: the methods.
        schedule: whose counts they are.
        layers: those with slots.
    """

    def __init__(self, recipe: Recipe, schedule: Schedule, layers: Sequence[SlotLayer]) -> None:
        self._recipe, self._schedule, self._layers = recipe, schedule, layers
        self._counts: Tensor | None = None
        # Views of it, made once: a small model's step is short.
        self._of_layers: list[tuple[Tensor, ...]] = []
        self._of_rows: tuple[Tensor, ...] = ()

    def __call__(self, device: torch.device) -> Tensor:
        """Send this step's: ``[B]`` int32, the position of each row's token, on the device."""
        schedule, before = self._schedule, np.maximum(self._schedule.now.step - 1, 0)
        # Slots and ranks know nothing of the tokens that are held in less room beside them.
        beside = self._recipe.storage.compact(schedule.kept)
        newest, protected = schedule.kept - beside + before, schedule.protected - beside
        counts = np.stack([newest, protected, schedule.losses], axis=1)
        of_rows = [schedule.prompt_lengths + before, schedule.full]
        host = torch.from_numpy(np.append(counts, of_rows).astype(np.int32))
        if self._counts is None:
            self._counts = torch.empty_like(host, device=device)
            self._of_layers = list(map(tuple, self._counts[: counts.size].view(counts.shape)))
            self._of_rows = tuple(self._counts[counts.size :].view(2, -1))
        if device.type == "cuda":
            host = host.pin_memory()
        self._counts.copy_(host, non_blocking=True)
        used = (schedule.peak - beside).max(axis=1).tolist()
        losses = schedule.losses.max(axis=1).tolist()
        for i, layer in enumerate(self._layers):
            own = *self._of_rows, *self._of_layers[i]
            if (there := layer.vacant.device) != self._counts.device:
                own = tuple(part.to(there) for part in own)
            position, full, rank, frozen, leaving = own
            layer.used = max(layer.used, used[i])
            layer.counts = StepCounts(position, rank, frozen, leaving, losses[i], layer.used)
            layer.full = full
            layer.refreshing = layer.working is not None and schedule.may_be_full
        return self._of_rows[0]
