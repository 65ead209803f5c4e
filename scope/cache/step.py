"""One decode step of one layer: append, attend, let tokens leave."""

from dataclasses import replace

import torch
from torch import Tensor

from scope.cache.layer import SlotLayer
from scope.kernels import Backend, FusingBackend
from scope.kernels.tensors import FREE, NewTokens, Ranking, Received, Sight
from scope.methods.recipe import Recipe
from scope.methods.score import Slots


def decode(
    layer: SlotLayer,
    backend: Backend | FusingBackend,
    recipe: Recipe,
    new: NewTokens,
    sight: Sight,
) -> Tensor:
    """Append one token per row, attend to what is seen, then evict what must go.

    A score that a kernel knows goes through that kernel at once; any other runs between two, and so
    does a strategy that selects or rewrites. On a GPU either way is recorded with the step.

    Returns:
        ``[B, H_q, D]`` attention output.
    """
    score, strategy = recipe.score, recipe.strategy
    dtype = layer.keys.dtype if recipe.score_dtype == "model" else torch.float32
    received = Received(score.group_reduction if score else "mean", dtype)
    looks = strategy.selects or strategy.rewrites
    if isinstance(backend, FusingBackend) and not looks and (score is None or score.kernel):
        ranking = Ranking(
            kernel=score.kernel if score else None,
            received=received,
            recent=strategy.recent,
            total=layer.state.get("total"),
            draw=layer.draw,
            layer=layer.index,
        )
        return backend.attend_and_evict(layer.slots, layer.counts, new, sight, ranking)

    if new.rotation is not None:
        queries, keys = (_rotated(states, *new.rotation) for states in (new.queries, new.keys))
        new = NewTokens(queries, keys, new.values)
    layer.clear_state_of_new()
    if layer.chosen is not None:
        sight = replace(sight, shown=layer.chosen | _by_row(layer.full))
    if score is None and not looks:
        output, _ = backend.attend(layer.slots, layer.counts, new, sight)
        backend.evict(layer.slots, layer.counts, None, strategy.recent)
        return output

    output, current = backend.attend(layer.slots, layer.counts, new, sight, received)
    slots = _slots(layer, new, current)
    if layer.chosen is not None:
        chosen = layer.chosen[:, :, : current.shape[-1]]
        chosen.copy_(strategy.select(slots).where(_by_row(layer.full), chosen))
    worth = score.worth(slots).float().expand(current.shape) if score else None
    if strategy.rewrites:
        slots = replace(slots, positions=slots.positions.clone(), ranks=slots.ranks.clone())
    backend.evict(layer.slots, layer.counts, worth, strategy.recent)
    if strategy.rewrites:
        there = layer.positions[:, :, : current.shape[-1]]
        strategy.rewrite(slots, (slots.positions != FREE) & (there == FREE))
    return output


def _slots(layer: SlotLayer, new: NewTokens, current: Tensor) -> Slots:
    """What a method sees: of the slots, as many as attention was told of."""
    width = current.shape[-1]
    used = layer.slots.first(width)
    return Slots(
        keys=used.keys,
        values=used.values,
        positions=used.positions,
        ranks=used.ranks,
        newest=layer.counts.newest,
        queries=new.queries,
        current=current,
        draw=layer.draw,
        layer=layer.index,
        state={
            name: part[:, :, :width] if name in layer.per_slot else part
            for name, part in layer.state.items()
        },
    )


def _by_row(flags: Tensor) -> Tensor:
    """``[B]`` int32 as ``[B, 1, 1]`` bool."""
    return flags[:, None, None] != 0


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE, ``[B, D]`` cos and sin, to ``[B, H, D]``."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * cos[:, None] + turned * sin[:, None]
