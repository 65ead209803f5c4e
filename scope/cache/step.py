"""One decode step of one layer: append, attend, let tokens leave."""

from dataclasses import replace

import torch
from torch import Tensor

from scope.cache.layer import SlotLayer
from scope.kernels import Backend
from scope.kernels.tensors import FREE, NewTokens, Ranking, Received, Sight
from scope.methods.recipe import Recipe
from scope.methods.score import Slots


def decode(
    layer: SlotLayer, backend: Backend, recipe: Recipe, new: NewTokens, sight: Sight
) -> Tensor:
    """Append one token per row, attend to what is seen, then evict what must go.

    A score that a kernel knows goes through that kernel at once; any other runs between two, and so
    does a strategy that selects or rewrites. On a GPU either way is recorded with the step.

    Returns:
        ``[B, H_q, D]`` attention output.
    """
    dtype = layer.keys.dtype if recipe.score_dtype == "model" else torch.float32
    score, strategy, counts = recipe.score, recipe.strategy, layer.counts
    received = Received(score.group_reduction, dtype) if score else Received(dtype=dtype)
    at_once = getattr(backend, "attend_and_evict", None)
    touches = strategy.selects or strategy.rewrites
    if at_once is not None and not touches and (score is None or score.kernel is not None):
        ranking = Ranking(
            score.kernel if score else None,
            received,
            strategy.recent,
            layer.state.get("total"),
            layer.draw,
            layer.index,
        )
        return at_once(layer.slots, counts, new, sight, ranking)

    if new.rotation is not None:
        queries, keys = (_rotated(states, *new.rotation) for states in (new.queries, new.keys))
        new = NewTokens(queries, keys, new.values)
    layer.clear_state_of_new()
    if layer.chosen is not None:
        shown = layer.chosen | layer.full[:, None, None]
        sight = Sight(sight.scaling, sight.sliding_window, shown)
    wanted = received if score or touches else None
    output, current = backend.attend(layer.slots, counts, new, sight, wanted)
    worth = slots = used = None
    if current is not None:
        width = current.shape[-1]  # plain torch leaves out slots that were never taken
        used = layer.slots.first(width)
        state = {
            name: part[:, :, :width] if name in layer.per_slot else part
            for name, part in layer.state.items()
        }
        slots = Slots(
            used.keys, used.values, used.positions, used.ranks, counts.newest, new.queries,
            current, layer.draw, layer.index, state,
        )  # fmt: skip
        if strategy.selects:
            before = layer.chosen[:, :, :width]
            before.copy_(strategy.select(slots).where(layer.full[:, None, None], before))
        worth = score.worth(slots).float() if score else None
        if strategy.rewrites:
            slots = replace(slots, positions=slots.positions.clone(), ranks=slots.ranks.clone())
    backend.evict(layer.slots, counts, worth, strategy.recent)
    if strategy.rewrites:
        strategy.rewrite(slots, (slots.positions != FREE) & (used.positions == FREE))
    return output


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE, ``[B, D]`` cos and sin, to ``[B, H, D]``."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * cos[:, None] + turned * sin[:, None]
